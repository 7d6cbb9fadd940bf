"""`--log-to mlflow`: the values of a training in a real MLflow store, in one run over restarts."""

import sys

import pytest
from command_line import run

from ltrp_core.errors import RequestError
from pipeline.training.folder import DiskTrainingFolder, read_curve

IDENTITY = {"ranker": "vit_tiny", "seed": 0}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Its client, with a store in a file of its own."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "patches")
    return mlflow.MlflowClient()


def runs(store):
    experiment = store.get_experiment_by_name("patches")
    return store.search_runs([experiment.experiment_id])


def test_the_curve_of_a_training_is_in_mlflow(store, shards, small_mae, tmp_path):
    run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache", "--pixels")
    run("train-ranker", "--cache", tmp_path / "cache", "--ranker", "vit_tiny", "--epochs", 2,
        "--out", tmp_path / "ranker", "--log-to", "mlflow")  # fmt: skip
    (found,) = runs(store)
    curve = read_curve(tmp_path / "ranker")
    history = store.get_metric_history(found.info.run_id, "loss")
    assert [point.value for point in history] == pytest.approx([row["loss"] for row in curve])
    assert found.data.params["stage"] == "train-ranker"
    assert found.data.params["ranker"] == "vit_tiny"
    assert found.info.status == "FINISHED"
    assert list((tmp_path / "ranker" / "tensorboard").iterdir())


def test_a_training_that_goes_on_goes_on_in_the_same_run(store, tmp_path):
    for step in (1, 2):
        folder = DiskTrainingFolder(tmp_path / "out", "train-ranker", log_to="mlflow")
        folder.open(IDENTITY)
        folder.log(step, {"loss": 1.0 / step})
        folder.close()
    (found,) = runs(store)
    history = store.get_metric_history(found.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


def test_without_mlflow_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RequestError, match=r"pip install 'ltrp-pipeline\[mlflow\]'"):
        DiskTrainingFolder(tmp_path, "train-ranker", log_to="mlflow")


def test_without_a_server_it_is_said_how_to_name_one(monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RequestError, match="set MLFLOW_TRACKING_URI"):
        DiskTrainingFolder(tmp_path, "train-ranker", log_to="mlflow")


def test_a_server_that_is_gone_is_said_once_and_ends_no_training(monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    notes = []
    folder = DiskTrainingFolder(
        tmp_path / "out", "train-ranker", log_to="mlflow", on_note=notes.append
    )
    folder.open(IDENTITY)
    folder.log(1, {"loss": 1.0})
    folder.log(2, {"loss": 0.5})
    folder.close()
    assert len(notes) == 1
    assert "no more values go to the other logger" in notes[0]
    assert list((tmp_path / "out" / "tensorboard").iterdir())


def test_another_logger_is_refused_with_those_there_are(tmp_path):
    from click.testing import CliRunner

    from pipeline.cli import cli

    words = ["train-ranker", "--cache", str(tmp_path), "--log-to", "paper"]
    assert "'tensorboard', 'mlflow'" in CliRunner().invoke(cli, words).output
