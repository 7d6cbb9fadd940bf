"""A page of a dozen selections: all side by side at the slider's k, on any screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_data as made
from page_in_browser import CONTRAST, drawn, launched, opened
from report_data import LENGTH, RATIOS, TWELVE, WITHOUT_SCORES, kept_count

from pipeline.report import ReportData, write_report
from stages.evaluation.sources import REFERENCES

HALF, THIRD = kept_count(0.5), 65
"""A k that most are stored at, and one that none is"""


@pytest.fixture(scope="module")
def many() -> ReportData:
    return made.beside_others(made.report_data())


@pytest.fixture(scope="module")
def index(many, tmp_path_factory) -> Path:
    return write_report(many, tmp_path_factory.mktemp("page") / "report")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launched()


@pytest.fixture
def page(browser, index, request) -> Iterator[Any]:
    width, theme = getattr(request, "param", (1200, "light"))
    with opened(browser, index, width=width, theme=theme) as page:
        yield page


def kept_in_tiles(page: Any) -> list[list[int]]:
    """Returns the patches that are not covered, of every tile of every card in their order."""
    return [sorted(set(range(LENGTH)) - set(hidden)) for hidden in drawn(page, ".cover")]


def texts(page: Any) -> list[str]:
    """Returns what is said of every tile's choice; of one without any what stands in its place."""
    script = """all => all.map(tile => tile.querySelector('.how').textContent
        || (tile.querySelector('.unscored').checkVisibility() ? tile.innerText : 'nothing'))"""
    return [" ".join(text.split()) for text in page.eval_on_selector_all("[data-tile]", script)]


def test_every_selection_is_shown_as_it_is_stored(page, many) -> None:
    page.fill("#keep", str(HALF))
    assert kept_in_tiles(page) == [
        sorted(image.selections[label][0.5].patches.tolist())
        for image in many.gallery
        for label in TWELVE
    ]
    assert texts(page) == ["as selected"] * 12 * 3


def test_between_the_stored_ratios_those_with_scores_keep_their_best(page, many) -> None:
    page.focus("#keep")
    page.fill("#keep", str(THIRD - 1))
    page.keyboard.press("ArrowRight")
    expected, said = [], []
    for image in many.gallery:
        for label in TWELVE:
            order = image.orders.get(label, np.zeros(0, int))
            expected.append(sorted(order[:THIRD].tolist()))
            missing = f"not stored at this ratio kept by {label}"
            said.append(missing if label in WITHOUT_SCORES else "k best")
    assert kept_in_tiles(page) == expected
    assert texts(page) == said


def test_a_ratio_that_some_are_stored_at_shows_those_and_says_so_of_the_others(page) -> None:
    page.fill("#keep", str(kept_count(0.75)))
    said = dict(zip(TWELVE, texts(page)[:12], strict=True))
    assert [label for label, text in said.items() if text == "as selected"] == ["ranker", "ToMe"]
    assert said["EViT"].startswith("not stored at this ratio")
    assert said["border"] == "k best"


def test_an_image_without_a_teacher_does_not_hide_the_tiles(page) -> None:
    names = [option.strip() for option in page.locator("#source option").all_text_contents()]
    assert names[0] == "Ranker"
    page.select_option("#source", label="Teacher")
    assert page.locator("[data-card].no-map").count() == 1
    assert all(text == "as selected" for text, label in zip(texts(page), TWELVE * 3, strict=True)
               if label != "EViT")  # fmt: skip


def test_the_menu_and_the_buttons_choose_what_the_large_picture_shows(page, many) -> None:
    page.select_option("#source", label="ToMe")
    page.fill("#keep", str(THIRD))
    assert (
        page.text_content("#how")
        == "ToMe has no scores: it keeps patches at the marked ratios only."
    )
    page.get_by_role("button", name="75 %").click()
    kept = [sorted(i.selections["ToMe"][0.75].patches.tolist()) for i in many.gallery]
    assert [sorted(set(range(LENGTH)) - set(hidden)) for hidden in drawn(page, ".veil")] == kept
    page.select_option("#source", label="EViT")
    page.get_by_role("button", name="25 %").click()
    assert page.input_value("#source") == "0", "the first that is stored there"


@pytest.mark.parametrize(
    "page", [(1200, "light"), (800, "dark"), (360, "light"), (320, "dark")], indirect=True
)
def test_nothing_is_wider_than_the_screen(page) -> None:
    page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = """all => all.filter(e => {
        const own = e.getBoundingClientRect(), card = e.closest('.card').getBoundingClientRect();
        return own.left < card.left || own.right > card.right || own.width < 60;
    }).length"""
    assert page.locator(".side figure").count() == 3 * (12 + 10)
    assert page.eval_on_selector_all(".side figure", outside) == 0
    rows = "all => new Set(all.map(e => e.getBoundingClientRect().top)).size"
    assert page.eval_on_selector_all("[data-card='0'] [data-tile]", rows) >= 2
    bar = page.locator(".toolbar").bounding_box()
    assert bar["height"] < 250


@pytest.mark.parametrize("page", [(1200, "light"), (1200, "dark")], indirect=True)
def test_every_text_stands_out_from_its_ground(page) -> None:
    page.fill("#keep", str(THIRD))
    page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true })")
    assert page.evaluate(CONTRAST) == []


def test_labels_stay_text_and_pictures_have_names(page) -> None:
    first = page.locator("[data-card]").first
    names = first.locator("[data-tile] b").all_text_contents()
    assert names == TWELVE
    assert page.get_by_role("img", name="Kept by ToMe of astronaut").count() == 1
    assert page.get_by_role("combobox", name="In the order of").count() == 1


def test_a_page_of_24_images_and_12_selections_is_light(many, tmp_path) -> None:
    data = dataclasses.replace(many, gallery=many.gallery[:2] * 12, curves=[], attention=[])
    folder = write_report(data, tmp_path / "report").parent
    files = made.files_below(folder)
    assert sum((folder / name).stat().st_size for name in files) < 6_000_000
    assert len([name for name in files if name.match("*-photo.jpg")]) == 24


def test_one_selection_has_no_tiles_beside_the_large_picture(tmp_path) -> None:
    data = dataclasses.replace(made.report_data(), curves=[], attention=[], caches=[])
    text = write_report(data, tmp_path / "report").read_text("utf-8")
    assert 'data-tile="' not in text
    assert '<select id="source"' not in text


def test_differences_from_a_chosen_source_are_one_table(many, tmp_path) -> None:
    sources = [*TWELVE[1:], *REFERENCES]
    (row, *_) = made.difference_rows()
    chosen = [
        dataclasses.replace(row, source=source, reference="ranker", keep_ratio=ratio)
        for ratio in RATIOS
        for source in sources
    ]
    data = dataclasses.replace(many, gallery=[], differences=chosen, curves=[], attention=[])
    text = write_report(data, tmp_path / "report").read_text("utf-8")
    assert text.count("image by image</summary>") == 1
    _, table = text.split("<summary>Each minus ranker, image by image</summary>")
    table = table.split("</table>")[0]
    assert table.count('<th scope="row">') == len(sources) * len(RATIOS)
