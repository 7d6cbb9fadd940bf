"""The table against counts on whole boolean masks."""

import numpy as np
import pytest

from ltrp_core.errors import RequestError
from pipeline.console.progress import JsonLineProgress
from stages.evaluate_patches import IMAGE_COLUMNS, MEASURES, SOURCES, EvaluateConfig, run
from stages.protocols import CATEGORIES, Foreground

GRID, SIDE = 4, 8
QUIET = JsonLineProgress(every_s=1e9)
RATIOS = (0.25, 0.5)


class Selections:
    """Three images of 32 x 32 px, seen whole; random scores. In one unit, or one a unit."""

    run = {"keep_ratio": list(RATIOS), "image_size": 32, "patch_size": 8}  # noqa: RUF012

    def __init__(self, units=("u",)):
        self.units = units

    def read(self, unit):
        rng = np.random.default_rng(0)
        scores = rng.permuted(np.tile(np.arange(16.0), (3, 1)), axis=1).astype(np.float16)
        order = (-scores).argsort(axis=1)
        arrays = {
            "key": np.array(["a", "b", "c"], dtype=object),
            "size": np.full((3, 2), 32, np.int32),
            "crop": np.tile(np.array([0, 0, 32, 32], np.float32), (3, 1, 1)),
            "flip": np.zeros((3, 1), dtype=bool),
            "ranker_score": scores,
            "patch_variance": scores[:, ::-1],
            "kept_0.25": order[:, :4].astype(np.uint8),
            "kept_0.5": order[:, :8].astype(np.uint8),
        }
        if unit == "u":
            return arrays
        row = arrays["key"].tolist().index(unit)
        return {name: values[row : row + 1] for name, values in arrays.items()}


class Masks:
    """Random foreground for a and b, another one for each group; c is not annotated."""

    names = ("A", "B", "x", "y")

    def __init__(self):
        self.asked = []

    def foreground(self, key, height, width, categories="all"):
        if key == "c":
            return None
        self.asked.append((key, categories))
        rng = np.random.default_rng(ord(key) + 1000 * CATEGORIES.index(categories))
        ignored = np.zeros((32, 32), dtype=bool)
        ignored[:5, :20] = True
        return Foreground(rng.random((32, 32)) < 0.3, ignored, key.upper())


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


def evaluate(selections=None, annotations=None, cached=None, **options):
    return run(
        EvaluateConfig(**options),
        selections=selections or Selections(),
        annotations=annotations or Masks(),
        teacher=None,
        progress=QUIET,
        cached=cached,
    )


@pytest.fixture
def table():
    found, summary = evaluate()
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
    assert table[1].notes == [
        "left out 1 selected image(s) without annotation, e.g. 'c'; "
        "2 annotation(s) are of no selected image, e.g. 'x', 'y'"
    ]
    assert table[1].n_ok == 2


def test_annotations_of_other_images_are_refused():
    class Nothing:
        names = ("y", "x")

        def foreground(self, key, height, width, categories="all"):
            return None

    with pytest.raises(
        RequestError,
        match=r"have nothing in common \(a key is 'a'; annotated are 2 images, e.g. 'x', 'y'",
    ):
        evaluate(annotations=Nothing())


def best(scores, k):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_keep_ratios_that_were_not_selected_come_from_the_score_maps():
    found, summary = evaluate(keep_ratio=(0.1, 0.25, 0.9))
    rows = {(row.source, row.keep_ratio): row for row in found.rows}
    assert {ratio for source, ratio in rows if source == "ranker"} == {0.25}
    assert rows["center", 0.1].kept == 2
    assert (
        "at keep ratio 0.1, 0.9 there is no 'ranker', only 'ranker, top-k only'"
        in (summary.notes[1])
    )
    arrays = Selections().read("u")
    maps = {
        "ranker, top-k only": arrays["ranker_score"],
        "patch variance": arrays["patch_variance"],
        "center": np.tile([-np.hypot(i // 4 - 1.5, i % 4 - 1.5) for i in range(16)], (2, 1)),
    }
    for source, scores in maps.items():
        for ratio, k in ((0.1, 2), (0.25, 4), (0.9, 14)):
            each = [
                measures(best(scores[i], k), Masks().foreground(key, 32, 32))
                for i, key in enumerate("ab")
            ]
            row = rows[source, ratio]
            values = (row.precision, row.recall, row.f1, row.iou)
            np.testing.assert_allclose(values, np.mean(each, axis=0), rtol=1e-12)


def test_how_the_images_are_sharded_changes_nothing():
    options = {"categories": ("all", "unseen"), "keep_ratio": (0.3, 0.5)}
    whole, _ = evaluate(**options)
    for units in (("c", "b", "a"), ("a", "b", "c")):
        split, _ = evaluate(Selections(units), **options)
        assert split.rows == whole.rows
        assert split.differences == whole.differences
        assert split.keys == whole.keys == ["a", "b"]
        assert list(split.images) == list(whole.images)
        for name, values in whole.images.items():
            np.testing.assert_array_equal(split.images[name], values)


def test_rows_are_means_and_pooled_sums_of_the_images():
    found, _ = evaluate()
    assert [row.source for row in found.rows[:6]] == [s for s in SOURCES if s != "teacher"]
    for row in found.rows:
        of_images = found.images["all", row.source, row.keep_ratio]
        both, kept, foreground = of_images[:, 4:].sum(axis=0)
        expected = dict(zip(MEASURES, of_images[:, :4].mean(axis=0))) | {
            "pooled_precision": both / kept,
            "pooled_recall": both / foreground,
            "pooled_f1": 2 * both / (kept + foreground),
            "pooled_iou": both / (kept + foreground - both),
        }
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-12)
            assert getattr(row, f"{name}_low") <= value + 1e-12
            assert getattr(row, f"{name}_high") >= value - 1e-12
    assert len(IMAGE_COLUMNS) == 7


def test_differences_are_paired_by_image():
    found, _ = evaluate()
    rows = {(row.source, row.keep_ratio): row for row in found.rows}
    pairs = {(row.source, row.reference) for row in found.differences}
    assert pairs == {
        (source, reference)
        for source in ("ranker", "ranker, top-k only")
        for reference in ("patch variance", "center", "random")
    }
    for row in found.differences:
        for name in MEASURES:
            a, b = (getattr(rows[s, row.keep_ratio], name) for s in (row.source, row.reference))
            assert getattr(row, name) == pytest.approx(a - b, abs=1e-12)
            # Of two images, some resample holds one twice, some the other.
            each = [
                found.images["all", s, row.keep_ratio][:, MEASURES.index(name)]
                for s in (row.source, row.reference)
            ]
            ends = sorted(each[0] - each[1])
            assert getattr(row, f"{name}_low") == pytest.approx(ends[0], abs=1e-12)
            assert getattr(row, f"{name}_high") == pytest.approx(ends[1], abs=1e-12)


def test_every_group_of_categories_has_its_own_foreground():
    found, _ = evaluate(categories=("unseen", "all"))
    assert [row.categories for row in found.rows] == ["all"] * 12 + ["unseen"] * 12
    alone, _ = evaluate(categories=("unseen",))
    assert found.rows[12:] == alone.rows


class Shelf:
    """Counts kept in memory."""

    def __init__(self):
        self.kept = {}

    def get(self, unit, categories):
        return self.kept.get((unit, categories))

    def put(self, unit, categories, counts):
        self.kept[unit, categories] = counts


def test_a_second_evaluation_asks_for_no_annotation_again():
    shelf = Shelf()
    first, _ = evaluate(cached=shelf, categories=("all", "learned"))
    annotations = Masks()
    second, _ = evaluate(annotations=annotations, cached=shelf, categories=("all", "learned"))
    assert annotations.asked == []
    assert second.rows == first.rows
    evaluate(annotations=annotations, cached=shelf, categories=("unseen",))
    assert annotations.asked == [("a", "unseen"), ("b", "unseen")]


class OneForTwo(Masks):
    """What a and b are annotated with is one file."""

    def foreground(self, key, height, width, categories="all"):
        found = super().foreground(key, height, width, categories)
        return None if found is None else Foreground(found.is_foreground, found.is_ignored, "1.png")


def test_an_annotation_never_counts_for_two_images_not_even_when_counts_are_taken():
    shelf = Shelf()
    for selections in (Selections(), Selections(("a", "b"))) * 2:
        with pytest.raises(RequestError, match=r"annotation of '1\.png' would .* 'a' and 'b'"):
            evaluate(selections, OneForTwo(), shelf)
    evaluate(Selections(("a",)), OneForTwo(), shelf)


class Twice(Selections):
    """The same keys in two units."""

    def read(self, unit):
        return super().read("a")


def test_two_images_of_one_key_are_refused_with_their_units():
    with pytest.raises(RequestError, match="both that are called 'a', in units one and two"):
        evaluate(Twice(("one", "two")), Masks())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"categories": ("unsen",)}, "did you mean unseen"),
        ({"categories": ("all", "all")}, "--categories is given twice"),
        ({"keep_ratio": (0.5, 0.5)}, "--keep-ratio is given twice"),
        ({"keep_ratio": (1.5,)}, "--keep-ratio is 1.5, out of range"),
        ({"keep_ratio": (0.01,)}, "k must be from 1 to 16"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(options, says):
    with pytest.raises(RequestError, match=says):
        evaluate(**options)


def test_annotations_without_foreground_are_refused():
    class Empty(Masks):
        def foreground(self, key, height, width, categories="all"):
            return Foreground(np.zeros((32, 32), dtype=bool), np.zeros((32, 32), dtype=bool))

    with pytest.raises(RequestError, match="foreground of unseen categories inside its crop"):
        evaluate(annotations=Empty(), categories=("unseen",))


class Teacher:
    """Two partitions of 8 patches each, which cover the image; higher index = matters more."""

    run = {"crop": "eval", "image_size": 32, "patch_size": 8}  # noqa: RUF012
    units = ("t",)

    def __init__(self, keys="abc"):
        self.keys = keys

    def read(self, unit, names=None):
        visible = np.arange(16).reshape(2, 8)
        return {
            "key": np.array(list(self.keys), dtype=object),
            "visible": np.tile(visible, (len(self.keys), 1, 1, 1)),
            "score": np.tile(visible.astype(np.float16), (len(self.keys), 1, 1, 1)),
        }


def evaluate_beside(teacher):
    return run(
        EvaluateConfig(),
        selections=Selections(),
        annotations=Masks(),
        teacher=teacher,
        progress=QUIET,
    )[0]


def test_the_teacher_keeps_its_own_best_patches():
    found = evaluate_beside(Teacher())
    (row,) = (r for r in found.rows if r.source == "teacher" and r.keep_ratio == 0.25)
    each = [measures([12, 13, 14, 15], Masks().foreground(key, 32, 32)) for key in "ab"]
    values = (row.precision, row.recall, row.f1, row.iou)
    np.testing.assert_allclose(values, np.mean(each, axis=0), rtol=1e-12)
    assert {r.reference for r in found.differences} >= {"teacher", "random"}


def test_a_teacher_without_a_map_of_an_image_is_refused():
    with pytest.raises(RequestError, match="no map of 'b'"):
        evaluate_beside(Teacher(keys="ac"))


def test_selections_that_hold_no_scores_stand_beside_what_needs_none():
    class OnlyKept(Selections):
        def read(self, unit):
            names = ("ranker_score", "patch_variance")
            return {k: v for k, v in super().read(unit).items() if k not in names}

    found, _ = evaluate(OnlyKept())
    assert {row.source for row in found.rows} == {"ranker", "center", "random", "oracle"}
