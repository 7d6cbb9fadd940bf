"""The table against counts on whole boolean masks."""

import numpy as np
import pytest

from ltrp_core.bootstrap import paired_bootstrap
from ltrp_core.errors import RequestError
from pipeline.console.progress import JsonLineProgress
from pipeline.evaluation.tables import format_differences
from stages.evaluate_patches import EvaluateConfig, run
from stages.evaluation.rows import IMAGE_COLUMNS, MEASURES
from stages.evaluation.sources import in_order, name_selections, without_prior
from stages.protocols import CATEGORIES, Foreground
from stages.types import SelectRun

GRID, SIDE = 4, 8
QUIET = JsonLineProgress(every_s=1e9)
RATIOS = (0.25, 0.5)


class Selections:
    """Three images of 32 x 32 px, seen whole; random scores. In one unit, or one per unit."""

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
            "border_contrast": np.roll(scores, 5, axis=1),
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
        selections={"ranker": selections or Selections()},
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
    np.testing.assert_allclose(tuple(row[name] for name in MEASURES), expected, rtol=1e-12)
    assert row.num_images == 2
    assert row["precision_low"] <= row["precision"] <= row["precision_high"]


def test_no_choice_of_patches_has_more_recall_than_the_oracle(table):
    for (source, ratio), row in table[0].items():
        assert row["recall"] <= table[0]["oracle", ratio]["recall"] + 1e-12, source


def test_random_has_the_precision_of_the_foregrounds_share(table):
    shares = []
    for key in "ab":
        found = Masks().foreground(key, 32, 32)
        counted = ~found.is_ignored
        shares.append((found.is_foreground & counted).sum() / counted.sum())
    assert table[0]["random", 0.5]["precision"] == pytest.approx(np.mean(shares), abs=0.02)


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
        "border contrast": arrays["border_contrast"],
        "center": np.tile([-np.hypot(i // 4 - 1.5, i % 4 - 1.5) for i in range(16)], (2, 1)),
    }
    for source, scores in maps.items():
        for ratio, k in ((0.1, 2), (0.25, 4), (0.9, 14)):
            each = [
                measures(best(scores[i], k), Masks().foreground(key, 32, 32))
                for i, key in enumerate("ab")
            ]
            row = rows[source, ratio]
            values = tuple(row[name] for name in MEASURES)
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
    assert [row.source for row in found.rows[:7]] == [
        s for s in in_order(["ranker"]) if s not in ("teacher", without_prior("ranker"))
    ]
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
            assert row[name] == pytest.approx(value, rel=1e-12)
            assert row[f"{name}_low"] <= value + 1e-12
            assert row[f"{name}_high"] >= value - 1e-12
    assert len(IMAGE_COLUMNS) == 7


def test_differences_are_paired_by_image():
    found, _ = evaluate()
    rows = {(row.source, row.keep_ratio): row for row in found.rows}
    pairs = {(row.source, row.reference) for row in found.differences}
    assert pairs == {
        (source, reference)
        for source in ("ranker", "ranker, top-k only")
        for reference in ("border contrast", "patch variance", "center", "random")
    }
    for row in found.differences:
        for name in MEASURES:
            a, b = (rows[s, row.keep_ratio][name] for s in (row.source, row.reference))
            assert row[name] == pytest.approx(a - b, abs=1e-12)
            # Of two images, some resample holds one twice, some the other.
            each = [
                found.images["all", s, row.keep_ratio][:, MEASURES.index(name)]
                for s in (row.source, row.reference)
            ]
            ends = sorted(each[0] - each[1])
            assert row[f"{name}_low"] == pytest.approx(ends[0], abs=1e-12)
            assert row[f"{name}_high"] == pytest.approx(ends[1], abs=1e-12)


def test_every_group_of_categories_has_its_own_foreground():
    found, _ = evaluate(categories=("unseen", "all"))
    assert [row.categories for row in found.rows] == ["all"] * 14 + ["unseen"] * 14
    alone, _ = evaluate(categories=("unseen",))
    assert found.rows[14:] == alone.rows


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

    run = {  # noqa: RUF012
        "stage": "score", "sampler": "cover", "mask_ratio": 0.5, "views": 1, "partitions": 2,
        "crop": "eval", "image_size": 32, "patch_size": 8,
    }  # fmt: skip
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
        selections={"ranker": Selections()},
        annotations=Masks(),
        teacher=teacher,
        progress=QUIET,
    )[0]


def test_the_teacher_keeps_its_own_best_patches():
    found = evaluate_beside(Teacher())
    (row,) = (r for r in found.rows if r.source == "teacher" and r.keep_ratio == 0.25)
    each = [measures([12, 13, 14, 15], Masks().foreground(key, 32, 32)) for key in "ab"]
    values = tuple(row[name] for name in MEASURES)
    np.testing.assert_allclose(values, np.mean(each, axis=0), rtol=1e-12)
    assert {r.reference for r in found.differences} >= {"teacher", "random"}


def test_a_teacher_without_a_map_of_an_image_is_refused():
    with pytest.raises(RequestError, match="no scores of 'b'"):
        evaluate_beside(Teacher(keys="ac"))


def test_selections_that_hold_no_scores_stand_beside_what_needs_none():
    class OnlyKept(Selections):
        def read(self, unit):
            names = ("ranker_score", "patch_variance", "border_contrast")
            return {k: v for k, v in super().read(unit).items() if k not in names}

    found, _ = evaluate(OnlyKept())
    assert {row.source for row in found.rows} == {"ranker", "center", "random", "oracle"}


class WithPrior(Selections):
    """The ranker's scores with the ranks of a prior: kept by another map than its own."""

    run = {**Selections.run, "selector": "ranker", "prior": ["border=1"]}  # noqa: RUF012

    def read(self, unit):
        arrays = super().read(unit)
        arrays["plain_score"] = arrays.pop("ranker_score")
        arrays["score"] = arrays["plain_score"][:, ::-1] / 16
        order = (-arrays["score"]).argsort(axis=1)
        return arrays | {"kept_0.25": order[:, :4], "kept_0.5": order[:, :8]}


def test_where_priors_were_added_the_selectors_own_scores_stand_beside():
    found, _ = evaluate(WithPrior(), keep_ratio=(0.1, 0.25))
    plain, _ = evaluate(keep_ratio=(0.1, 0.25))
    rows = {(row.source, row.keep_ratio): row for row in found.rows}
    expected = {(row.source, row.keep_ratio): row for row in plain.rows}
    own = "ranker, top-k without prior"
    for ratio in (0.1, 0.25):
        assert rows[own, ratio].figures == expected["ranker, top-k only", ratio].figures
        assert rows["ranker, top-k only", ratio].figures != rows[own, ratio].figures
    differences = {(d.source, d.reference, d.keep_ratio): d for d in found.differences}
    for ratio in (0.1, 0.25):
        both = (rows[source, ratio]["precision"] for source in ("ranker, top-k only", own))
        gain = differences["ranker, top-k only", own, ratio]["precision"]
        assert gain == pytest.approx(next(both) - next(both), abs=1e-12)
    table = format_differences(found.differences)
    assert table.count("ranker, top-k without prior (top-k only)") == 2


def test_what_a_selection_does_not_hold_is_said():
    class Older(Selections):
        def read(self, unit):
            return {k: v for k, v in super().read(unit).items() if k != "border_contrast"}

    found, summary = evaluate(Older())
    assert "border contrast" not in {row.source for row in found.rows}
    (note,) = (note for note in summary.notes if "border contrast" in note)
    assert "select again" in note
    both, summary = evaluate_both(Older(), Other())
    assert not any("border contrast" in note for note in summary.notes)
    whole, _ = evaluate()
    assert [row for row in both.rows if row.source == "border contrast"] == (
        [row for row in whole.rows if row.source == "border contrast"]
    )


class Other(Selections):
    """Other patches of the same images, by a selector of another name; in other units."""

    run = {**Selections.run, "selector": "patch-variance"}  # noqa: RUF012

    def __init__(self, units=("u",), order=("c", "a", "b"), without=()):
        super().__init__(units)
        self.order, self.without = order, without

    def read(self, unit, names=None):
        arrays = super().read(unit)
        arrays["score"] = arrays.pop("ranker_score")[:, ::-1].copy()
        order = (-arrays["score"]).argsort(axis=1)
        arrays |= {"kept_0.25": order[:, :4], "kept_0.5": order[:, :8]}
        rows = [
            arrays["key"].tolist().index(key)
            for key in self.order
            if key in arrays["key"].tolist() and key not in self.without
        ]
        return {name: values[rows] for name, values in arrays.items()}


def evaluate_both(first, second, **options):
    return run(
        EvaluateConfig(**options), selections={"ranker": first, "patch variance 2": second},
        annotations=Masks(), teacher=None, progress=QUIET,
    )  # fmt: skip


@pytest.mark.parametrize("units", [("u",), ("b", "a", "c")])
def test_two_selections_stand_beside_each_other_however_they_are_sharded(units):
    both, _ = evaluate_both(Selections(), Other(units))
    alone, _ = evaluate()
    other, _ = run(
        EvaluateConfig(), selections={"patch variance 2": Other()}, annotations=Masks(),
        teacher=None, progress=QUIET,
    )  # fmt: skip
    ours = [row for row in both.rows if not row.source.startswith("patch variance 2")]
    assert ours == alone.rows
    theirs = {(r.source, r.keep_ratio): r for r in other.rows}
    for row in both.rows:
        if row.source.startswith("patch variance 2"):
            assert row == theirs[row.source, row.keep_ratio]
    pairs = {(row.source, row.reference) for row in both.differences}
    assert ("ranker", "patch variance 2") in pairs
    assert ("patch variance 2", "random") in pairs
    assert ("patch variance 2", "ranker") not in pairs


@pytest.mark.parametrize(
    "against", ["ranker", "patch variance 2", "patch variance", "ranker, top-k only", "oracle"]
)
def test_every_source_is_compared_with_the_chosen_one_image_by_image(against):
    found, _ = evaluate_both(Selections(), Other(), against=against, keep_ratio=(0.1, *RATIOS))
    assert found.rows == evaluate_both(Selections(), Other(), keep_ratio=(0.1, *RATIOS))[0].rows
    pairs = {(row.source, row.keep_ratio) for row in found.differences}
    ratios = {ratio for _, source, ratio in found.images if source == against}
    assert pairs == {
        (source, ratio)
        for _, source, ratio in found.images
        if source not in (against, "oracle") and ratio in ratios
    }
    for row in found.differences:
        assert row.reference == against
        ours, theirs = (
            found.images["all", source, row.keep_ratio] for source in (row.source, against)
        )
        for column, name in enumerate(MEASURES):
            each = ours[:, column] - theirs[:, column]
            assert row[name] == pytest.approx(each.mean(), abs=1e-12)
            low, high = paired_bootstrap(ours[:, column], theirs[:, column], seed=0)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))
    (title,) = {line for line in format_differences(found.differences).splitlines() if ":" in line
                and "bootstrap" not in line}  # fmt: skip
    assert title == f"all categories: each minus {against}, image by image"


def test_a_selection_that_is_compared_with_the_chosen_one_has_one_line_a_ratio():
    found, _ = evaluate_both(
        Selections(), Other(), against="patch variance", keep_ratio=(0.1, *RATIOS)
    )
    lines = [line.split("  ") for line in format_differences(found.differences).splitlines()]
    named = [(line[0], line[1].strip()) for line in lines if line[0].startswith("0.")]
    assert [source for ratio, source in named if ratio == "0.25"] == [
        "ranker", "patch variance 2", "border contrast", "center", "random",
    ]  # fmt: skip
    assert [source for ratio, source in named if ratio == "0.1"][:2] == [
        "ranker, top-k only", "patch variance 2, top-k only",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"against": "rankr"}, r"'rankr'; did you mean ranker"),
        ({"against": "patch varianc"}, r"did you mean patch variance or patch variance 2\?"),
        ({"against": "teacher"}, "pass its cache as --teacher"),
        ({"against": "ranker", "keep_ratio": (0.1,)}, "none of the keep ratios 0.1; take"),
    ],
)
def test_what_nothing_can_be_compared_with_is_refused(options, says):
    with pytest.raises(RequestError, match=says):
        evaluate_both(Selections(), Other(), **options)


@pytest.mark.parametrize("units", [("u", "empty"), ("b", "a", "c")])
def test_a_unit_without_a_usable_image_adds_nothing(units):
    class WithEmpty(Selections):
        def read(self, unit):
            if unit != "empty":
                return super().read(unit)
            return {name: values[:0] for name, values in super().read("a").items()}

    class OtherWithEmpty(Other):
        def read(self, unit, names=None):
            arrays = super().read("a" if unit == "empty" else unit)
            return {
                name: values[: 0 if unit == "empty" else None] for name, values in arrays.items()
            }

    found, summary = evaluate_both(WithEmpty(("u", "empty")), OtherWithEmpty(units))
    assert found.rows == evaluate_both(Selections(), Other())[0].rows
    assert len(summary.notes) == 1, "the one on annotations"


def test_a_key_that_a_further_selection_has_twice_is_refused():
    class Doubled(Other):
        def read(self, unit, names=None):
            return super().read("a")

    with pytest.raises(RequestError, match="'patch variance 2' has the key 'a' twice"):
        evaluate_both(Selections(), Doubled(("one", "two")))


def test_an_image_that_a_further_selection_lacks_is_named():
    with pytest.raises(RequestError, match=r"'patch variance 2' does not have the image 'b'"):
        evaluate_both(Selections(), Other(without="b"))


def test_images_of_a_further_selection_alone_are_counted_in_a_note():
    _, summary = evaluate_both(Selections(("a", "b")), Other())
    assert any("1 image(s) of selection 'patch variance 2' are not in" in n for n in summary.notes)


def test_other_views_of_the_same_images_are_not_compared():
    class Shifted(Other):
        def read(self, unit, names=None):
            arrays = super().read(unit)
            arrays["crop"] = arrays["crop"] + np.float32(1)
            return arrays

    with pytest.raises(RequestError, match="'a' has another crop in selection"):
        evaluate_both(Selections(), Shifted())

    class Smaller(Other):
        run = {**Other.run, "patch_size": 4}  # noqa: RUF012

    with pytest.raises(RequestError, match="is of 32 px, patches of 4 px"):
        evaluate_both(Selections(), Smaller())


def test_labels_are_the_selectors_names_or_as_given():
    ranker = SelectRun.of(Selections.run)
    center = SelectRun.of({**Selections.run, "selector": "center"})
    assert name_selections([ranker, center], ["a", "b"]) == ["ranker", "center (selected)"]
    assert name_selections([ranker, ranker], ["a", "b"]) == ["ranker (a)", "ranker (b)"]
    assert name_selections([ranker, ranker], ["a", "a"], ["x", "y"]) == ["x", "y"]
    for labels, message in (
        (["x"], "1 time.s. for 2"),
        (["x", "x"], "two selections are called 'x'"),
        (["x", "oracle"], "is a reference's name"),
        (["x", "border contrast"], "is a reference's name"),
        (["x", "y, top-k without prior"], "is a reference's name"),
        (["x", ""], "is a reference's name"),
    ):
        with pytest.raises(RequestError, match=message):
            name_selections([ranker, ranker], ["a", "b"], labels)
    with pytest.raises(RequestError, match=r"two selections are called 'ranker .a.'"):
        name_selections([ranker, ranker], ["a", "a"])
