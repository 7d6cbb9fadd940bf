"""The table against counts on whole boolean masks."""

import numpy as np
import pytest

from ltrp_core.errors import RequestError
from pipeline.progress import JsonLineProgress
from stages.evaluate_patches import EvaluateConfig, run
from stages.protocols import Foreground

GRID, SIDE = 4, 8
QUIET = JsonLineProgress(every_s=1e9)
RATIOS = (0.25, 0.5)


class Selections:
    """Three images of 32 x 32 px, seen whole; random scores."""

    run = {"keep_ratio": list(RATIOS), "image_size": 32, "patch_size": 8}  # noqa: RUF012
    units = ("u",)

    def read(self, unit):
        rng = np.random.default_rng(0)
        scores = rng.permuted(np.tile(np.arange(16.0), (3, 1)), axis=1).astype(np.float16)
        order = (-scores).argsort(axis=1)
        return {
            "key": np.array(["a", "b", "c"], dtype=object),
            "size": np.full((3, 2), 32, np.int32),
            "crop": np.tile(np.array([0, 0, 32, 32], np.float32), (3, 1, 1)),
            "flip": np.zeros((3, 1), dtype=bool),
            "ranker_score": scores,
            "patch_variance": scores[:, ::-1],
            "kept_0.25": order[:, :4].astype(np.uint8),
            "kept_0.5": order[:, :8].astype(np.uint8),
        }


class Masks:
    """Random foreground for a and b; c is not annotated."""

    def foreground(self, key, height, width, categories="all"):
        if key == "c":
            return None
        rng = np.random.default_rng(ord(key))
        ignored = np.zeros((32, 32), dtype=bool)
        ignored[:5, :20] = True
        return Foreground(rng.random((32, 32)) < 0.3, ignored)


def measures(kept, found):
    """Precision, recall, F1, IoU by the definitions, on masks of the whole image."""
    region = np.zeros((32, 32), dtype=bool)
    for patch in kept:
        row, column = divmod(int(patch), GRID)
        region[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = True
    counted = ~found.is_ignored
    region, foreground = region & counted, found.is_foreground & counted
    both, either = (region & foreground).sum(), (region | foreground).sum()
    precision, recall = both / region.sum(), both / foreground.sum()
    return precision, recall, 2 * both / (region.sum() + foreground.sum()), both / either


@pytest.fixture
def table():
    found, summary = run(
        EvaluateConfig(), selections=Selections(), annotations=Masks(), teacher=None, progress=QUIET
    )
    return {(row.source, row.keep_ratio): row for row in found.rows}, summary


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("source", ["ranker", "ranker, top-k only"])
def test_the_rankers_rows_equal_the_definitions(table, source, ratio):
    kept = Selections().read("u")[f"kept_{ratio}"]
    expected = np.mean(
        [measures(kept[i], Masks().foreground(key, 32, 32)) for i, key in enumerate("ab")], axis=0
    )
    row = table[0][source, ratio]
    np.testing.assert_allclose((row.precision, row.recall, row.f1, row.iou), expected, rtol=1e-12)
    assert row.num_images == 2
    assert row.precision_low <= row.precision <= row.precision_high


def test_no_choice_of_patches_has_more_recall_than_the_oracle(table):
    for (source, ratio), row in table[0].items():
        assert row.recall <= table[0]["oracle", ratio].recall + 1e-12, source


def test_random_has_the_precision_of_the_foregrounds_share(table):
    shares = []
    for key in "ab":
        found = Masks().foreground(key, 32, 32)
        counted = ~found.is_ignored
        shares.append((found.is_foreground & counted).sum() / counted.sum())
    assert table[0]["random", 0.5].precision == pytest.approx(np.mean(shares), abs=0.02)


def test_images_that_are_not_annotated_are_mentioned(table):
    assert table[1].notes == ["left out 1 selected image(s) without annotation"]
    assert table[1].n_ok == 2


def test_annotations_of_other_images_are_refused():
    class Nothing:
        def foreground(self, key, height, width, categories="all"):
            return None

    with pytest.raises(RequestError, match="have nothing in common"):
        run(
            EvaluateConfig(),
            selections=Selections(),
            annotations=Nothing(),
            teacher=None,
            progress=QUIET,
        )
