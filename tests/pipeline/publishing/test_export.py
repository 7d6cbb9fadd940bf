"""What leaves the project: files other runtimes read, and repositories of the hub."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hub_server import TOKEN, Hub, serve_hub

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.rankers import Ranker, create_ranker, load_ranker, mobile_former, save_ranker
from pipeline.commands.exports import export, push_to_hub
from pipeline.publishing import export as exporting
from pipeline.publishing.export import ExportReport, export_ranker

GRID = 4
SIDE = GRID * 16


def _ranker(name: str, **options) -> Ranker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_ranker(name, **{"grid": GRID, **options}).eval()


def _images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ranker")
    # timm's network for tests: a vision transformer like others, traced in a second.
    save_ranker(_ranker("test_vit"), place, {"measures": {"tau": 0.5}})
    return place


class TestOnnx:
    @pytest.fixture(scope="class", autouse=True)
    def _onnx(self) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)

    @pytest.fixture(scope="class")
    def report(self, folder, tmp_path_factory) -> ExportReport:
        return export_ranker(folder, tmp_path_factory.mktemp("onnx") / "ranker.onnx")

    def test_another_runtime_ranks_any_batch_as_the_ranker_does(self, folder, report) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(report.path))
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.shape) == ("images", ["batch", 3, SIDE, SIDE])
        assert (given.name, given.shape) == ("scores", ["batch", GRID * GRID])
        ranker = load_ranker(folder)
        for batch in (1, 2, 5):
            with torch.no_grad():
                expected = ranker(_images(batch)).numpy()
            (scores,) = session.run(None, {"images": _images(batch).numpy()})
            np.testing.assert_allclose(scores, expected, atol=1e-4)
        assert report.opset == 18
        assert report.max_difference < 1e-4
        assert [path.name for path in report.path.parent.iterdir()] == ["ranker.onnx"]

    def test_the_file_says_how_pixels_are_scaled_and_which_grid_it_has(self, report) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(report.path))
        says = json.loads(session.get_modelmeta().custom_metadata_map["ltrp"])
        assert says["input"]["mean"] == [0.485, 0.456, 0.406]
        assert says["input"]["std"] == [0.229, 0.224, 0.225]
        assert (says["ranker"]["grid"], says["input"]["image_size"]) == (GRID, SIDE)

    def test_mobile_former_goes_too(self, tmp_path: Path, monkeypatch) -> None:
        # One block of each kind: all there is to trace, in a fifth of the time.
        monkeypatch.setattr(mobile_former, "_STAGES", mobile_former._STAGES[:2])
        save_ranker(_ranker("mobile_former_26m"), tmp_path, {})
        assert export_ranker(tmp_path, tmp_path / "ranker.onnx").max_difference < 1e-3

    def test_missing_packages_are_named_with_the_extra_to_install(
        self, folder, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(RequestError, match=r"onnxruntime.*ltrp-pipeline\[export\]"):
            export_ranker(folder, tmp_path / "x.onnx")


@pytest.mark.parametrize(("name", "head"), [("vit_tiny", "cls"), ("test_resnet", "token")])
def test_a_torch_program_scores_any_batch_as_the_ranker_does(
    name: str, head: str, tmp_path: Path
) -> None:
    ranker = _ranker(name, head=head)
    save_ranker(ranker, tmp_path, {})
    export_ranker(tmp_path, tmp_path / "ranker.pt2", format="torch")
    says = {"ltrp.json": ""}
    program = torch.export.load(tmp_path / "ranker.pt2", extra_files=says).module()
    with torch.no_grad():
        for batch in (1, 3):
            torch.testing.assert_close(program(_images(batch)), ranker(_images(batch)))
    assert json.loads(says["ltrp.json"])["ranker"] == ranker.config


def test_a_file_that_ranks_differently_is_not_written(folder, tmp_path, monkeypatch) -> None:
    read = exporting._read_torch
    monkeypatch.setattr(exporting, "_read_torch", lambda path: lambda x: -read(path)(x))
    with pytest.raises(RequestError, match=r"ranker\.pt2 was not written: it ranks patches diff"):
        export_ranker(folder, tmp_path / "ranker.pt2", format="torch")
    assert list(tmp_path.iterdir()) == []


def test_close_calls_may_change_places_and_are_counted(folder, tmp_path, monkeypatch) -> None:
    ranker = load_ranker(folder)
    with torch.no_grad():
        ranker.get_submodule("head").weight.mul_(1e-6)  # type: ignore[operator]
    save_ranker(ranker, tmp_path, {})
    read = exporting._read_torch
    monkeypatch.setattr(exporting, "_read_torch", lambda path: lambda x: -read(path)(x))
    report = export_ranker(tmp_path, tmp_path / "ranker.pt2", format="torch")
    pairs = GRID * GRID * (GRID * GRID - 1) // 2
    assert 0 < report.close_calls <= report.images * pairs
    assert f"{report.close_calls} pairs closer" in report.summary()


def test_wrong_requests_are_refused_before_anything_is_traced(folder, tmp_path) -> None:
    with pytest.raises(RequestError, match="unknown format 'onyx'; did you mean onnx"):
        export_ranker(folder, tmp_path / "x", format="onyx")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"folder .*nowhere of --out is missing"):
        export_ranker(folder, tmp_path / "nowhere" / "x.pt2", format="torch")
    with pytest.raises(CheckpointError, match="no ranker in"):
        export_ranker(tmp_path, tmp_path / "x.pt2", format="torch")


def test_the_command_writes_beside_the_ranker_and_prints_the_difference(folder) -> None:
    done = CliRunner().invoke(export, [str(folder), "--format", "torch"], standalone_mode=False)
    assert done.exception is None
    assert f"{folder / 'ranker.pt2'} (torch): same ranking of" in done.output
    assert "largest difference of a score" in done.output
    (folder / "ranker.pt2").unlink()


class TestHub:
    @pytest.fixture
    def hub(self, tmp_path) -> Iterator[Hub]:
        with serve_hub(tmp_path / "cache") as hub:
            yield hub

    def _push(self, *arguments: object) -> str:
        words = [str(argument) for argument in arguments]
        done = CliRunner().invoke(push_to_hub, words, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.output

    def test_what_is_pushed_loads_from_the_hub_and_scores_the_same(self, folder, hub) -> None:
        printed = self._push(folder, "me/ranker")
        assert f"{hub.url}/me/ranker/commit/" in printed
        assert "load_ranker('hf-hub:me/ranker')" in printed
        loaded, ranker = load_ranker("hf-hub:me/ranker"), load_ranker(folder)
        with torch.no_grad():
            assert torch.equal(loaded(_images(1)), ranker(_images(1)))

    def test_only_the_four_files_leave_the_folder(self, folder, hub, tmp_path) -> None:
        place = tmp_path / "ranker"
        save_ranker(load_ranker(folder), place, {})
        (place / "metrics.parquet").write_bytes(b"numbers")
        (place / "checkpoints").mkdir()
        for name in ("run.json", "checkpoint.pt", "checkpoints/last.pt", "secret.txt"):
            (place / name).write_text("private")
        self._push(place, "me/ranker")
        assert sorted(hub.repositories["me/ranker", "main"]) == [
            "README.md",
            "config.json",
            "metrics.parquet",
            "ranker.safetensors",
        ]

    def test_a_card_that_is_there_is_left_alone_and_a_missing_one_is_written(
        self, folder, hub, tmp_path
    ) -> None:
        place = tmp_path / "ranker"
        save_ranker(load_ranker(folder), place, {})
        self._push(place, "me/ranker")
        card = hub.repositories["me/ranker", "main"]["README.md"].decode()
        assert 'load_ranker("hf-hub:me/ranker")' in card
        (place / "README.md").write_text("my own words")
        self._push(place, "me/ranker")
        assert hub.repositories["me/ranker", "main"]["README.md"] == b"my own words"

    def test_private_and_revision_reach_the_hub(self, folder, hub) -> None:
        printed = self._push(folder, "me/ranker", "--private", "--revision", "trial")
        (created,) = hub.created
        assert created.get("private") is True or created.get("visibility") == "private"
        assert not hub.repositories["me/ranker", "main"]
        assert "hf-hub:me/ranker@trial" in printed
        assert load_ranker("hf-hub:me/ranker@trial").grid == GRID

    def test_a_damaged_ranker_stays_here(self, folder, hub, tmp_path) -> None:
        place = tmp_path / "ranker"
        save_ranker(load_ranker(folder), place, {})
        (place / "ranker.safetensors").write_bytes(b"half")
        with pytest.raises(CheckpointError, match="damaged"):
            self._push(place, "me/ranker")
        assert not hub.repositories

    def test_what_the_hub_lacks_is_named_in_one_line(self, hub) -> None:
        with pytest.raises(CheckpointError, match="cannot download 'hf-hub:me/nothing'") as caught:
            load_ranker("hf-hub:me/nothing")
        assert "\n" not in str(caught.value)
        hub.repositories["me/other", "main"] = {"config.json": b"{}", "model.safetensors": b""}
        with pytest.raises(CheckpointError, match=r"'hf-hub:me/other': ranker\.safetensors is "):
            load_ranker("hf-hub:me/other")


def test_without_a_token_nothing_is_sent_and_the_user_is_told_where_to_get_one(
    folder, tmp_path
) -> None:
    with (
        serve_hub(tmp_path, token=None) as hub,
        pytest.raises(RequestError, match=r"no token for the hub.*hf auth login.*HF_TOKEN"),
    ):
        exporting.push_to_hub(folder, "me/ranker")
    assert not hub.created


def test_a_token_that_may_not_write_is_one_line(folder, tmp_path) -> None:
    with (
        serve_hub(tmp_path, token=TOKEN + "_expired"),
        pytest.raises(RequestError, match="could not push to 'me/ranker'") as caught,
    ):
        exporting.push_to_hub(folder, "me/ranker")
    assert "\n" not in str(caught.value)
