"""The report opens from the disk in a browser, shows what it says, and harms no folder."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from ltrp_core.errors import RequestError
from pipeline.report_page import EvaluationRow, GalleryImage, ReportData, RunCard, write_report
from stages.evaluate_patches import SOURCES

GRID, SIDE = 14, 224
LENGTH = GRID * GRID
RATIOS = (0.25, 0.5, 0.75)
HOSTILE = '<script>window.harmed=1</script>"><img src=x onerror=window.harmed=1>/0001'
THEMES = ("light", "dark")


def patch_variance(photo: np.ndarray) -> np.ndarray:
    side = len(photo) // GRID
    patches = photo.reshape(GRID, side, GRID, side, 3).transpose(0, 2, 1, 3, 4)
    return patches.reshape(LENGTH, -1).astype(np.float32).var(axis=1)


def gallery_image(key: str, array: np.ndarray, box: tuple[int, int, int, int]) -> GalleryImage:
    """A photograph with maps of the right kind: variance as the teacher, a blurred ranker."""
    short = min(array.shape[:2])
    photo = np.asarray(Image.fromarray(array[:short, :short]).resize((SIDE, SIDE)))
    small = Image.fromarray(photo).resize((GRID, GRID), Image.Resampling.BOX)
    rough = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    teacher = patch_variance(photo)
    ranker = np.log1p(teacher).astype(np.float16).astype(np.float32)
    ranker += 1.5 * np.hanning(GRID + 2)[1:-1].repeat(GRID).astype(np.float32)
    order = np.argsort(-ranker, kind="stable")
    kept = {}
    for ratio in RATIOS:
        k = round(ratio * LENGTH)
        h = round(0.2 * k)
        kept[ratio] = np.concatenate([order[: k - h], order[::-1][:h]])
    visible = np.sort(np.random.default_rng(3).permutation(LENGTH)[:19])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    top, left, height, width = box
    ellipse = ((rows - top - height / 2) / height) ** 2 + (
        (columns - left - width / 2) / width
    ) ** 2
    return GalleryImage(
        key=key,
        photo=photo,
        visible=visible,
        reconstruction=rough,
        left_out=int(visible[7]),
        reconstruction_without=np.roll(rough, 6, axis=0),
        teacher=teacher,
        ranker=ranker,
        kept=kept,
        foreground=ellipse < 0.25,
    )


def evaluation_rows() -> list[EvaluationRow]:
    rows = []
    for ratio in RATIOS:
        for rank, source in enumerate((*SOURCES[:-1], "oracle")):
            precision = (
                0.99 - 0.3 * ratio if source == "oracle" else 0.62 - 0.2 * ratio - 0.03 * rank
            )
            recall = precision * ratio / 0.8
            f1 = 2 * precision * recall / (precision + recall)
            rows.append(
                EvaluationRow(
                    source=source,
                    keep_ratio=ratio,
                    kept=round(ratio * LENGTH),
                    num_images=24,
                    precision=precision,
                    precision_low=precision - 0.05,
                    precision_high=precision + 0.05,
                    recall=recall,
                    f1=f1,
                    iou=f1 / (2 - f1),
                    pooled_precision=precision,
                    pooled_recall=recall,
                    pooled_f1=f1,
                    pooled_iou=f1 / (2 - f1),
                )
            )
    return rows


def curves(epochs: int = 12) -> dict[str, list[dict[str, float]]]:
    steps = np.arange(1, epochs + 1)
    return {
        "pretrain-mae": [
            {"epoch": float(e), "loss": 0.9 / e**0.4, "lr": 1e-3 / e} for e in range(1, 41)
        ],
        "train-ranker": [
            {"epoch": float(e), "loss": 40 - 8 * (1 - 1 / e), "tau": t, "rho": 1.3 * t}
            | {"ndcg5": 0.7 + t / 3, "top1": 0.2 + t / 4}
            for e, t in zip(steps, 0.55 * (1 - np.exp(-steps / 4)), strict=True)
        ],
    }


@pytest.fixture(scope="module")
def report_data() -> ReportData:
    gallery = [
        gallery_image("astronaut", photographs.astronaut(), (10, 60, 210, 90)),
        gallery_image(HOSTILE, photographs.chelsea(), (30, 40, 150, 170)),
    ]
    gallery.append(
        dataclasses.replace(
            gallery_image("folder/coffee", photographs.coffee(), (0, 0, 1, 1)),
            teacher=None,
            foreground=None,
        )
    )
    options = {"mask_ratio": 0.9, "sampler": "iid", "keep_ratio": [0.25, 0.5], "note": HOSTILE}
    return ReportData(
        title="Which patches matter <script>window.harmed=1</script>",
        runs=[
            RunCard(stage="score", options=options, facts={"images": 12345, "images/s": 7.25}),
            RunCard(stage="select", options={"tta": None, "exact": True}, facts={"units": 3}),
        ],
        rows=evaluation_rows(),
        curves=curves(),
        gallery=gallery,
        ranking={"tau": 0.512, "rho": 0.67, "ndcg5": 0.88, "top1": 0.33},
        grid=GRID,
    )


@pytest.fixture(scope="module")
def pictures_only(report_data: ReportData) -> ReportData:
    return dataclasses.replace(report_data, rows=[], curves={})


@pytest.fixture(scope="module")
def index(report_data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_data, tmp_path_factory.mktemp("page") / "report")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["background-networking", "component-update", "sync"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)],
        )
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, index: Path) -> Callable[..., Any]:
    """Opens the report; leaving fails on console errors, script errors and foreign requests."""

    @contextmanager
    def opened(*, path: Path = index, width: int = 1200, theme: str = "light") -> Iterator[Any]:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("request", lambda request: problems.extend(foreign(request.url)))
        page.goto(path.as_uri(), wait_until="load")
        yield page
        context.close()
        assert problems == []

    return opened


def foreign(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [f"requested: {url[:100]}"]


def shown_counts(page: Any) -> list[int]:
    return page.eval_on_selector_all("[data-card]", "cards => cards.map(c => +c.dataset.shown)")


def drawn(page: Any, selector: str) -> list[list[int]]:
    """Returns the patches whose squares the path of each card draws, ascending."""
    paths = page.eval_on_selector_all(selector, "all => all.map(p => p.getAttribute('d') || '')")
    found = [re.findall(r"M([\d.]+) ([\d.]+)h", path) for path in paths]
    return [sorted(int(float(y)) * GRID + int(float(x)) for x, y in squares) for squares in found]


def undimmed(page: Any) -> list[list[int]]:
    return [sorted(set(range(LENGTH)) - set(dimmed)) for dimmed in drawn(page, ".veil")]


def test_the_page_first_shows_the_best_quarter_of_every_image(open_page, report_data) -> None:
    with open_page() as page:
        assert shown_counts(page) == [49, 49, 49]
        best = [sorted(np.argsort(-i.ranker, kind="stable")[:49]) for i in report_data.gallery]
        assert undimmed(page) == best
        assert page.text_content("#count") == "49 of 196 patches, 25 %"


@pytest.mark.parametrize(
    ("keys", "count"),
    [(["ArrowRight"] * 3, 52), (["ArrowLeft"], 48), (["Home"], 1), (["End"], LENGTH)],
)
def test_the_slider_shows_exactly_k_patches_by_keyboard(open_page, keys, count) -> None:
    with open_page() as page:
        page.focus("#keep")
        for key in keys:
            page.keyboard.press(key)
        assert shown_counts(page) == [count] * 3
        assert [len(patches) for patches in undimmed(page)] == [count] * 3
        assert page.text_content("#count").startswith(f"{count} of {LENGTH} patches")
        assert page.get_attribute("#keep", "aria-valuetext").startswith(f"{count} of")


def test_dimmed_patches_are_faint_and_kept_ones_as_they_are(open_page, report_data) -> None:
    with open_page() as page:
        page.uncheck("#outlines")
        shot = page.locator(".kept .stack").first.screenshot()
    picture = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB").resize((SIDE, SIDE)))
    contrast, original = patch_variance(picture), patch_variance(report_data.gallery[0].photo)
    order = np.argsort(-report_data.gallery[0].ranker, kind="stable")
    ratio = np.sqrt(contrast / np.maximum(original, 1))
    assert np.median(ratio[order[:49]]) > 0.6
    assert np.median(ratio[order[60:150]]) < 0.2


@pytest.mark.parametrize("number", range(len(RATIOS)))
def test_a_button_shows_exactly_a_stored_selection(open_page, report_data, number) -> None:
    k = round(RATIOS[number] * LENGTH)
    with open_page() as page:
        page.focus("#keep")
        for _ in range(number + 1):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        kept = [image.kept[RATIOS[number]] for image in report_data.gallery]
        h = round(0.2 * k)
        assert undimmed(page) == [sorted(patches) for patches in kept]
        assert drawn(page, ".homogeneous.frame") == [sorted(patches[k - h :]) for patches in kept]
        assert drawn(page, ".best.frame") == [sorted(patches[: k - h]) for patches in kept]
        assert shown_counts(page) == [k] * 3
        pressed = page.locator("button[aria-pressed=true]")
        assert (pressed.count(), pressed.text_content()) == (1, f"{100 * RATIOS[number]:g} %")
        page.keyboard.press("Enter")
        assert page.locator("button[aria-pressed=true]").count() == 0
        assert drawn(page, ".best.frame") == [[], [], []]


def test_the_outlines_can_be_switched_off(open_page) -> None:
    with open_page() as page:
        outlines = page.locator(".kept .outline")
        assert outlines.count() == 2
        assert outlines.first.is_visible()
        page.uncheck("#outlines")
        assert not outlines.first.is_visible()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_and_is_drawn(open_page, width, theme) -> None:
    with open_page(width=width, theme=theme) as page:
        page.eval_on_selector_all("details", "all => all.forEach(d => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        broken = "all => all.filter(i => !(i.complete && i.naturalWidth)).map(i => i.outerHTML)"
        assert page.eval_on_selector_all("img", broken) == []
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
    pixels = np.asarray(shot).astype(float)
    assert pixels.std() > 20
    ground = np.median(pixels[:, :4])
    assert (ground > 200) if theme == "light" else (ground < 60)


def test_a_key_that_is_a_script_stays_text(open_page) -> None:
    with open_page() as page:
        assert page.evaluate("window.harmed") is None
        assert page.locator(".card h3").nth(1).text_content() == HOSTILE
        assert "<script>" in page.title()


def test_every_picture_has_a_text_and_every_control_a_name(open_page) -> None:
    with open_page() as page:
        assert page.locator("figure img:not([alt])").count() == 0
        assert page.locator("figure.plot img[alt='']").count() == 0
        assert page.get_by_role("slider", name="Keep the best").count() == 1
        assert page.get_by_role("checkbox", name="Outlines").count() == 1


def test_the_best_source_without_labels_is_bold_and_never_the_oracle(open_page) -> None:
    with open_page() as page:
        bold = page.eval_on_selector_all(
            "tbody tr:has(strong)", "all => all.map(r => r.querySelector('th').textContent)"
        )
        assert bold == ["ranker"] * len(RATIOS)
        assert page.locator("tbody strong").count() == 4 * len(RATIOS)
        assert page.locator("tr.oracle").count() == len(RATIOS)


def test_a_report_of_nothing_but_a_title_opens(open_page, tmp_path) -> None:
    empty = ReportData(
        title="Empty", runs=[], rows=[], curves={}, gallery=[], ranking={}, grid=GRID
    )
    with open_page(path=write_report(empty, tmp_path / "report")) as page:
        assert page.text_content("h1") == "Empty"


def test_a_training_run_that_diverged_is_plotted_and_says_so(pictures_only, tmp_path) -> None:
    rows = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": float("nan")}]
    diverged = dataclasses.replace(pictures_only, curves={"train-ranker": rows})
    text = write_report(diverged, tmp_path / "report").read_text("utf-8")
    assert "1 value is not finite" in text


def test_the_same_data_make_the_same_folder(report_data, index, tmp_path) -> None:
    again = write_report(report_data, tmp_path / "report").parent
    files = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(index.parent) for p in index.parent.rglob("*.*") if p.is_file()
    )
    assert [f for f in files if (again / f).read_bytes() != (index.parent / f).read_bytes()] == []


def test_file_names_are_counted_and_not_taken_from_keys(index) -> None:
    names = [path.name for path in (index.parent / "images").iterdir()]
    assert len(names) == 3 * 4 + 2 + 2
    assert all(re.fullmatch(r"000[012]-[a-z]+\.(jpg|png|svg)", name) for name in names)


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
        ({"ranker": np.zeros(LENGTH - 1)}, "196 finite scores"),
        ({"teacher": np.full(LENGTH, np.nan)}, "196 finite scores"),
        ({"left_out": LENGTH}, "from 0 to 195"),
        ({"reconstruction": np.zeros((8, 8, 3), np.uint8)}, "reconstruction must be uint8"),
        ({"foreground": np.zeros((8, 8), bool)}, "foreground must be"),
        ({"kept": {0.25: np.arange(49)}}, "one selection"),
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


def test_scores_stored_in_half_precision_do_not_hide_the_best_patches(
    pictures_only, tmp_path
) -> None:
    coarse = [dataclasses.replace(i, ranker=np.round(i.ranker)) for i in pictures_only.gallery]
    data = dataclasses.replace(pictures_only, gallery=coarse)
    text = write_report(data, tmp_path / "report").read_text("utf-8")
    stored = json.loads(re.findall(r'id="shown">(.*?)</script>', text, re.S)[0])["stored"]
    assert [(s["k"], s["k"] - s["best"]) for s in stored] == [(49, 10), (98, 20), (147, 29)]
