"""The report opens from the disk in a browser, shows what it says, and harms no folder."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_data as made
from page_in_browser import CONTRAST, drawn, launched, opened
from PIL import Image
from report_data import GRID, HOSTILE, LENGTH, RATIOS, SIDE, homogeneous_count, kept_count

from ltrp_core.errors import RequestError
from ltrp_core.selection import num_kept
from pipeline.report import ReportData, RunCard, TrainingCurve, write_report
from stages.report import Kept

SELECTED = "As selected: 39 best, 10 homogeneous."


@pytest.fixture(scope="module")
def report_data() -> ReportData:
    return made.report_data()


@pytest.fixture(scope="module")
def pictures_only(report_data: ReportData) -> ReportData:
    return dataclasses.replace(
        report_data, rows=[], differences=[], curves=[], caches=[], attention=[]
    )


@pytest.fixture(scope="module")
def index(report_data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_data, tmp_path_factory.mktemp("page") / "report")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launched()


@pytest.fixture
def open_page(browser: Any, index: Path) -> Callable[..., Any]:
    """Opens the report; leaving fails on console errors, script errors and foreign requests."""

    def of_path(*, path: Path = index, width: int = 1200, theme: str = "light") -> Any:
        return opened(browser, path, width=width, theme=theme)

    return of_path


def shown_counts(page: Any) -> list[int]:
    return page.eval_on_selector_all("[data-card]", "cards => cards.map(c => +c.dataset.shown)")


def undimmed(page: Any) -> list[list[int]]:
    return [sorted(set(range(LENGTH)) - set(dimmed)) for dimmed in drawn(page, ".veil")]


def best(report_data: ReportData, source: str, k: int) -> list[list[int]]:
    """The k best of each image; of an image without a map none."""
    return [
        sorted(i.orders.get(source, np.zeros(0, int))[:k].tolist()) for i in report_data.gallery
    ]


def stored(report_data: ReportData, ratio: float) -> list[list[int]]:
    return [
        sorted(image.selections["ranker"][ratio].patches.tolist()) for image in report_data.gallery
    ]


def test_the_page_first_shows_the_stored_quarter_of_every_image(open_page, report_data) -> None:
    with open_page() as page:
        assert shown_counts(page) == [49, 49, 49]
        assert undimmed(page) == stored(report_data, 0.25)
        assert page.text_content("#count") == "49 of 196 patches, 25 %"
        assert page.text_content("#how") == SELECTED


@pytest.mark.parametrize(
    ("keys", "count"),
    [(["ArrowRight"] * 3, 52), (["ArrowLeft"], 48), (["Home"], 1), (["End"], LENGTH)],
)
def test_the_slider_shows_exactly_the_k_best_by_keyboard(
    open_page, report_data, keys, count
) -> None:
    with open_page() as page:
        page.focus("#keep")
        for key in keys:
            page.keyboard.press(key)
        assert shown_counts(page) == [count] * 3
        assert undimmed(page) == best(report_data, "ranker", count)
        assert drawn(page, ".homogeneous.frame") == [[], [], []]
        assert page.text_content("#count").startswith(f"{count} of {LENGTH} patches")
        assert page.get_attribute("#keep", "aria-valuetext").startswith(f"{count} of")


def test_at_every_keep_ratio_as_many_are_shown_as_select_keeps(open_page, report_data) -> None:
    with open_page() as page:
        for ratio in (0.1, 0.25, 0.33, 0.5, 0.75, 0.9, 1.0):
            k = num_kept(ratio, LENGTH)
            page.fill("#keep", str(k))
            kept = stored(report_data, ratio) if ratio in RATIOS else best(report_data, "ranker", k)
            assert undimmed(page) == kept
            assert shown_counts(page) == [len(patches) for patches in kept] == [k] * 3


def test_arrow_keys_switch_the_source_of_the_order(open_page, report_data) -> None:
    with open_page() as page:
        page.focus("[name=source]:checked")
        for source in ("teacher", "border contrast", "patch variance", "random"):
            page.keyboard.press("ArrowRight")
            assert undimmed(page) == best(report_data, source, 49)
            assert page.locator("button[aria-pressed=true]").count() == 0
            assert page.locator(".no-map").count() == (1 if source == "teacher" else 0)
        page.keyboard.press("ArrowRight")
        assert undimmed(page) == stored(report_data, 0.25)


def test_dimmed_patches_are_faint_and_kept_ones_as_they_are(open_page, report_data) -> None:
    with open_page() as page:
        page.uncheck("#outlines")
        page.fill("#keep", "50")
        shot = page.locator(".kept .stack").first.screenshot()
    picture = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB").resize((SIDE, SIDE)))
    photo = report_data.gallery[0].photo
    contrast, original = made.patch_variance(picture), made.patch_variance(photo)
    order = report_data.gallery[0].orders["ranker"]
    ratio = np.sqrt(contrast / np.maximum(original, 1))
    assert np.median(ratio[order[:49]]) > 0.6
    assert np.median(ratio[order[60:150]]) < 0.2


@pytest.mark.parametrize("number", range(len(RATIOS)))
def test_a_button_shows_exactly_a_stored_selection(open_page, report_data, number) -> None:
    ratio = RATIOS[number]
    k, h = kept_count(ratio), homogeneous_count(ratio)
    with open_page() as page:
        page.fill("#keep", "3")
        page.focus("[name=source]:checked")
        page.keyboard.press("ArrowRight")
        for _ in range(number + 1):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        kept = [image.selections["ranker"][ratio].patches for image in report_data.gallery]
        assert undimmed(page) == [sorted(patches) for patches in kept]
        assert drawn(page, ".homogeneous.frame") == [sorted(patches[k - h :]) for patches in kept]
        assert drawn(page, ".best.frame") == [sorted(patches[: k - h]) for patches in kept]
        assert shown_counts(page) == [k] * 3
        pressed = page.locator("button[aria-pressed=true]")
        assert (pressed.count(), pressed.text_content()) == (1, f"{100 * ratio:g} %")
        assert page.input_value("#keep") == str(k)


def test_the_outlines_can_be_switched_off(open_page) -> None:
    with open_page() as page:
        outlines = page.locator(".kept .outline")
        assert outlines.count() == 2
        assert outlines.first.is_visible()
        page.uncheck("#outlines")
        assert not outlines.first.is_visible()


@pytest.mark.parametrize(
    ("width", "theme"), [(1200, "light"), (800, "dark"), (360, "light"), (360, "dark")]
)
def test_the_page_fits_and_is_drawn(open_page, width, theme) -> None:
    with open_page(width=width, theme=theme) as page:
        page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.eval_on_selector_all("img", "all => all.forEach(i => { i.loading = 'eager' })")
        page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
        broken = "all => all.filter(i => !(i.complete && i.naturalWidth)).map(i => i.outerHTML)"
        assert page.eval_on_selector_all("img", broken) == []
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
    pixels = np.asarray(shot).astype(float)
    assert pixels.std() > 20
    ground = np.median(pixels[:, :4])
    assert (ground > 200) if theme == "light" else (ground < 60)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(open_page, theme) -> None:
    with open_page(theme=theme) as page:
        page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true })")
        assert page.evaluate(CONTRAST) == []


def test_a_key_that_is_a_script_stays_text(open_page) -> None:
    with open_page() as page:
        assert page.evaluate("window.harmed") is None
        assert page.locator(".card h3").nth(1).text_content() == HOSTILE
        assert "<script>" in page.title()


def test_every_picture_has_a_text_and_every_control_a_name(open_page) -> None:
    with open_page() as page:
        assert page.locator("figure img:not([alt])").count() == 0
        assert page.locator("figure.plot img[alt='']").count() == 0
        assert page.locator(".plot img[alt='']").count() == 0
        assert page.get_by_role("slider", name="Keep").count() == 1
        assert page.get_by_role("group", name="In the order of").count() == 1
        names = page.get_by_role("group", name="In the order of").get_by_role("radio")
        assert names.count() == 5
        assert page.get_by_role("checkbox", name="Outlines").count() == 1


def test_the_best_source_without_labels_is_bold_and_never_the_oracle(open_page) -> None:
    with open_page() as page:
        bold = page.eval_on_selector_all(
            "#evaluation > .scroll tr:has(strong)",
            "all => all.map(r => r.querySelector('th').textContent)",
        )
        assert bold == ["ranker"] * len(RATIOS)
        assert page.locator("#evaluation > .scroll strong").count() == 4 * len(RATIOS)
        assert page.locator("tr.oracle").count() == len(RATIOS)


def test_differences_are_bold_where_the_interval_leaves_0_out(open_page) -> None:
    with open_page() as page:
        bold = page.eval_on_selector_all(
            "#evaluation details tr:has(strong)",
            "all => all.map(r => r.querySelector('th').textContent)",
        )
        assert bold == ["patch variance", "center", "random"] * len(RATIOS)


def test_a_report_of_nothing_but_a_title_opens(open_page, tmp_path) -> None:
    empty = ReportData(title="Empty", grid=GRID)
    with open_page(path=write_report(empty, tmp_path / "report")) as page:
        assert page.text_content("h1") == "Empty"


def test_a_training_run_that_diverged_is_plotted_and_says_so(pictures_only, tmp_path) -> None:
    rows = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": float("nan")}]
    diverged = dataclasses.replace(
        pictures_only, curves=[TrainingCurve(stage="train-ranker", rows=rows)]
    )
    text = write_report(diverged, tmp_path / "report").read_text("utf-8")
    assert "1 value is not finite" in text


def test_the_same_data_make_the_same_folder(report_data, index, tmp_path) -> None:
    again = write_report(report_data, tmp_path / "report").parent
    files = made.files_below(again)
    assert files == made.files_below(index.parent)
    assert [f for f in files if (again / f).read_bytes() != (index.parent / f).read_bytes()] == []


def test_file_names_are_counted_and_not_taken_from_keys(index) -> None:
    names = [path.name for path in (index.parent / "images").iterdir()]
    assert len(names) == 3 * 7 + 2 + 2
    assert all(re.fullmatch(r"000[012]-[a-z]+(-\d)?\.(jpg|png|svg)", name) for name in names)


def test_an_earlier_report_is_replaced_whole(pictures_only, tmp_path) -> None:
    folder = tmp_path / "report"
    write_report(pictures_only, folder)
    write_report(dataclasses.replace(pictures_only, gallery=pictures_only.gallery[:1]), folder)
    assert {path.name[:4] for path in (folder / "images").iterdir()} == {"0000"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_failure_leaves_the_earlier_report_and_no_litter(pictures_only, tmp_path) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("cannot be printed")

    folder = tmp_path / "report"
    before = write_report(pictures_only, folder).read_bytes()
    run = RunCard(stage="score", options={"mae": Unprintable()}, facts={})
    with pytest.raises(RuntimeError, match="cannot be printed"):
        write_report(dataclasses.replace(pictures_only, runs=[run], gallery=[]), folder)
    assert (folder / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_of_something_else_is_refused_and_left_alone(pictures_only, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="holds no report"):
        write_report(pictures_only, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_report_with_a_foreign_file_in_it_is_refused(pictures_only, tmp_path) -> None:
    folder = tmp_path / "report"
    write_report(pictures_only, folder)
    (folder / "notes.txt").write_text("what I saw")
    with pytest.raises(RequestError, match=r"'notes.txt' beside a report"):
        write_report(pictures_only, folder)
    assert (folder / "notes.txt").exists()


def test_a_file_in_the_folders_place_is_refused(pictures_only, tmp_path) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(RequestError, match="is a file"):
        write_report(pictures_only, tmp_path / "report")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"ranker": np.zeros(LENGTH - 1)}}, "196 finite scores"),
        ({"scores": {"teacher": np.full(LENGTH, np.nan)}}, "196 finite scores"),
        ({"orders": {"ranker": np.zeros(LENGTH, int)}}, "all 196 patches"),
        ({"difference": np.zeros((8, 8), np.float32)}, "difference must be"),
        ({"left_out": LENGTH}, "from 0 to 195"),
        ({"reconstruction": np.zeros((8, 8, 3), np.uint8)}, "reconstruction must be uint8"),
        ({"foreground": np.zeros((8, 8), bool)}, "foreground must be"),
        ({"selections": {"ranker": {0.25: Kept(np.arange(48), 0)}}}, "one selection"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(
    report_data, tmp_path, change, message
) -> None:
    wrong = dataclasses.replace(report_data.gallery[1], **change)
    data = dataclasses.replace(report_data, gallery=[report_data.gallery[0], wrong])
    with pytest.raises(RequestError, match=message):
        write_report(data, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_data_hold_no_markup(index) -> None:
    block = re.search(r'id="shown">(.*?)</script>', index.read_text("utf-8"), re.S)
    assert block is not None
    assert set(json.loads(block[1])) == {"grid", "stored", "cards"}


def test_a_report_of_24_images_is_light(report_data, tmp_path) -> None:
    data = dataclasses.replace(report_data, gallery=report_data.gallery[:2] * 12)
    folder = write_report(data, tmp_path / "report").parent
    assert sum((folder / name).stat().st_size for name in made.files_below(folder)) < 5_000_000


def test_a_cache_says_what_went_wrong_and_how_fast_it_was(open_page) -> None:
    with open_page() as page:
        text = page.text_content("#caches")
        for words in ("11,988", "41.25", "truncated", "37 of 900 bytes", "93.8 %", "images-0007"):
            assert words in text
        assert page.locator("#caches code").first.text_content() == HOSTILE


def test_the_curves_have_the_repeatability_of_the_teacher_beside_them(open_page) -> None:
    with open_page() as page:
        texts = page.eval_on_selector_all("#training img", "all => all.map(i => i.alt)")
        assert any("teacher's own tau-b 0.63" in text for text in texts)
        assert "teacher's own 0.630" in page.text_content("#training .tiles")


def test_groups_of_categories_have_a_table_each(open_page, report_data, tmp_path) -> None:
    rows = made.evaluation_rows("learned") + made.evaluation_rows("unseen")
    data = dataclasses.replace(report_data, rows=rows)
    with open_page(path=write_report(data, tmp_path / "report")) as page:
        assert page.locator("#evaluation > .scroll table").count() == 2
        assert page.locator("#evaluation .plot").count() == 8
