"""What run.json says is checked before anything is computed from it."""

import pytest

from ltrp_core.errors import RequestError
from stages.types import ScoreRun, SelectRun

SCORE = {"image_size": 224, "patch_size": 16, "views": 4, "partitions": 11, "sampler": "iid"}
SELECT = {"image_size": 48, "patch_size": 8, "keep_ratio": [0.25, 1]}


def test_a_run_is_typed() -> None:
    run = ScoreRun.of({**SCORE, "mask_ratio": 0.75, "of_no_use": object()})
    assert (run.grid, run.length, run.records, run.mask_ratio) == (14, 196, 44, 0.75)
    assert SelectRun.of(SELECT).keep_ratio == (0.25, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": "4"}, "views = '4'"),
        ({"views": True}, "views = 'True'"),
        ({"views": 1.5}, "views = '1.5'"),
        ({"patch_size": 0}, "do not divide"),
        ({"patch_size": 15}, "do not divide"),
        ({"image_size": -16}, "do not divide"),
        ({"sampler": None}, "sampler = 'None'"),
        ({"scored": "both"}, "scored = 'both'"),
    ],
)
def test_a_value_of_another_kind_is_named(change, message) -> None:
    with pytest.raises(RequestError, match=f"the cache has .*{message}"):
        ScoreRun.of({**SCORE, **change})


def test_priors_of_another_kind_are_named() -> None:
    for wrong in ("border=1", [1]):
        with pytest.raises(RequestError, match="has prior = "):
            SelectRun.of({**SELECT, "prior": wrong})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RequestError, match=r"cache/x has no 'keep_ratio' in its run.json"):
        SelectRun.of({"image_size": 48, "patch_size": 8}, "cache/x")


@pytest.mark.parametrize(
    ("run", "label", "score"),
    [
        ({}, "ranker", "ranker_score"),
        ({"source": "teacher"}, "teacher", "teacher_score"),
        ({"source": "baseline", "baseline": "center"}, "center", "baseline_score"),
        ({"selector": "patch-variance"}, "patch variance", "score"),
        ({"selector": "ranker", "prior": ["border=1"]}, "ranker + border", "score"),
        (
            {"selector": "border", "prior": ["center=0.5", "patch-variance=2"]},
            "border contrast + 0.5 center + 2 patch-variance",
            "score",
        ),
    ],
)
def test_selections_of_either_schema_say_what_selected(run, label, score) -> None:
    found = SelectRun.of({**SELECT, **run})
    assert (found.label, found.score_name) == (label, score)
