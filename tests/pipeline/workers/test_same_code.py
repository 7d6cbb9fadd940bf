"""A worker that has other code or other weights than the driver is refused, both named."""

import pytest

from ltrp_core.errors import CheckpointError, RequestError
from pipeline.workers import crew, open_pool
from pipeline.workers.code_version import code_version
from pipeline.workers.ddp import start as training_ranks
from stages.score import ScoreConfig, UnitScorer
from stages.select_patches import SelectConfig, UnitSelector

OTHER = "0.0.9 (code 00000000)"


def nothing(slot):
    return abs


def no_rank(rank):
    pass


@pytest.mark.ray
def test_other_code_on_a_worker_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setattr(crew, "code_version", lambda: OTHER)
    with open_pool("1") as pool, pytest.raises(RequestError) as refused:
        list(pool.map(nothing, [1]))
    assert f"{OTHER} here and {code_version()} on " in str(refused.value)
    assert "ltrp-pipeline submit" in str(refused.value)


@pytest.mark.ray
def test_other_code_on_a_rank_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setattr(training_ranks, "code_version", lambda: OTHER)
    with pytest.raises(RequestError) as refused:
        training_ranks.train_on_processes(
            no_rank, workers=1, ray_address=None, name="versions", device="cpu"
        )
    assert f"{OTHER} where the run was started and {code_version()} on " in str(refused.value)


def test_other_weights_than_the_driver_s_are_refused_with_both_hashes(small_mae):
    config = ScoreConfig(mae=str(small_mae), device="cpu")
    sha256 = UnitScorer(config).mae.source.sha256
    UnitScorer(config, mae_sha256=sha256)
    with pytest.raises(CheckpointError) as refused:
        UnitScorer(config, mae_sha256="f" * 64)
    assert sha256[:12] in str(refused.value)
    assert "f" * 12 in str(refused.value)


def test_another_ranker_than_the_driver_s_is_refused():
    config = SelectConfig(ranker="ranker_tiny", device="cpu")
    with pytest.raises(
        CheckpointError, match=r"--ranker ranker_tiny has the sha256 .* ffffffffffff "
    ):
        UnitSelector(config, weights_sha256="f" * 64)
