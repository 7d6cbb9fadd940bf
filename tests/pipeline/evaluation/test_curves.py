"""Curves over the keep ratio (Fig. 5): one line a selection, each of them told from the others."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.end_labels import EndLabel, label_ends
from pipeline.evaluation.figures import write_figures
from pipeline.evaluation.styles import drawn_sources, styles_of
from pipeline.plots import plot_evaluation
from stages.evaluation.rows import MEASURES, EvaluationRow, Interval
from stages.evaluation.sources import REFERENCES, in_order, top_only, without_prior

TWELVE = [
    "ranker", "border", "border-features", "patch-variance (selected)", "center (selected)",
    "saliency", "class attention", "a token pruner", "ToMe", "DynamicViT", "MAE's loss", "noise",
]  # fmt: skip
RATIOS = (0.1, 0.25, 0.5, 0.75)


def made_rows(labels, ratios=RATIOS, not_stored=()):
    """Rows of all sources; the figures of neighbors in the tables differ by little."""
    rows = []
    for ratio, (place, source) in itertools.product(ratios, enumerate(in_order(labels))):
        if source in not_stored or source in map(without_prior, labels):
            continue
        value = 0.95 if source == "oracle" else 0.5 - 0.2 * ratio - 0.003 * place
        figures = {name: Interval(value, value - 0.02, value + 0.02) for name in MEASURES}
        rows.append(
            EvaluationRow(
                categories="all", source=source, keep_ratio=ratio, kept=round(196 * ratio),
                num_images=9, figures=figures,
            )
        )  # fmt: skip
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, none of them written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def test_of_several_selections_each_has_one_line_and_of_one_all() -> None:
    one = [row.source for row in made_rows(["ranker"])]
    assert drawn_sources(one) == list(dict.fromkeys(one))
    three = [row.source for row in made_rows(TWELVE[:3], not_stored=["border"])]
    assert drawn_sources(three) == [
        "ranker", top_only("border"), "border-features", *REFERENCES, "oracle",
    ]  # fmt: skip
    assert drawn_sources(r.source for r in made_rows(TWELVE)) == [*TWELVE, *REFERENCES]


@pytest.mark.parametrize("count", [1, 2, 6, 12, 15])
def test_every_selection_is_drawn_its_own_way(count) -> None:
    labels = [*TWELVE, "x", "y", "z"][:count]
    styles = styles_of(row.source for row in made_rows(labels))
    for theme in ("light", "dark"):
        looks = {(getattr(styles[label], theme), styles[label].dash) for label in labels}
        assert len(looks) == count
    assert len({styles[label].marker for label in labels}) == min(count, 12)
    references = {styles[name].light for name in REFERENCES}
    assert (len(references) == 1) == (count > 4), "gray beside many"


@pytest.mark.parametrize("of_the_page", [True, False])
@pytest.mark.parametrize("count", [5, 12, 15])
def test_names_stand_at_the_ends_of_many_lines_and_overlap_nowhere(
    drawn, tmp_path, count, of_the_page
) -> None:
    labels = [*TWELVE, "x", "y", "a name that is rather long for a plot"][:count]
    if of_the_page:
        plot_evaluation(made_rows(labels), tmp_path)
    else:
        write_figures(tmp_path, made_rows(labels))
    for figure in drawn:
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert len(axes.lines) == count + len(REFERENCES)
            assert len(axes.collections) == count, "a band of intervals each"
            if len(axes.lines) <= 10 and not of_the_page:
                assert len(figure.legends[0].get_texts()) == len(axes.lines)
                continue
            assert {text.get_text() for text in axes.texts} == {*labels, *REFERENCES}
            boxes = [text.get_window_extent() for text in axes.texts]
            # The box of an annotation has its leader line in it: compare the heights of letters.
            middles = sorted((text.xyann[1] * axes.bbox.height) for text in axes.texts)
            letters = axes.texts[0].get_fontsize() / 72 * figure.dpi
            gaps = [high - low for low, high in itertools.pairwise(middles)]
            assert min(gaps) > 0.9 * letters
            assert min(middles) >= -1
            assert max(middles) <= axes.bbox.height + 1
            assert max(box.x1 for box in boxes) <= figure.bbox.x1 + 1
            assert max(box.y1 for box in boxes) <= figure.bbox.y1 + 1


def test_the_names_of_levels_at_the_edges_stay_beside_the_axes() -> None:
    axes = Figure().add_axes((0, 0, 1, 1))
    heights = [0.0, 1.0, *(0.5 + 0.001 * place for place in range(16))]
    label_ends(axes, [EndLabel(f"{y:.3f}", (1, y), "black") for y in heights])
    found = sorted((text.xyann[1], text.get_text()) for text in axes.texts)
    assert [name for _, name in found] == [f"{y:.3f}" for y in sorted(heights)]
    assert np.diff([place for place, _ in found]).min() == pytest.approx(1 / 17)
    assert (found[0][0], found[-1][0]) == (0, 1)


def test_many_lines_have_the_axis_to_themselves(drawn, tmp_path) -> None:
    write_figures(tmp_path, made_rows(TWELVE))
    low, high = drawn[0].axes[0].get_ylim()
    values = [y for line in drawn[0].axes[0].lines for y in line.get_ydata()]
    assert (max(values) - min(values)) > 0.5 * (high - low)
