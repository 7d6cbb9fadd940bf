"""The report of real stages' output: all of it is found, and what does not fit is refused."""

import json
import re

import pytest
import timm
import torch
from report_sources import small_report_inputs
from scored_caches import QUIET
from timm.models.vision_transformer import VisionTransformer

from ltrp_core.classifiers.normalization import NORMALIZATIONS
from ltrp_core.errors import RequestError
from ltrp_core.rankers import create_ranker, save_ranker
from ltrp_core.selectors import SELECTORS, Selector, SelectorSpec
from ltrp_core.selectors.network import Opened
from pipeline.report import read_cache_figures
from pipeline.report.gather import ReportInputs, run_report
from pipeline.store import open_cache
from pipeline.units.run import run_select
from pipeline.workers import InProcessPool
from stages.report import ReportConfig
from stages.select_patches import SelectConfig


@pytest.fixture(scope="module")
def made(photographs, small_mae, tmp_path_factory):
    return small_report_inputs(tmp_path_factory.mktemp("made"), photographs, small_mae)


def report_of(made, mae, out, **changes):
    asked = {
        "selections": [made.selections],
        "shards": made.shards,
        "mae": str(mae),
        "teacher": made.teacher,
        "evaluation": None,
        "annotations": None,
        "training": [made.ranker],
        **changes,
    }
    config = asked.pop("config", ReportConfig(images=6, mask_ratio=0.75))
    return run_report(config, ReportInputs(**asked), out, QUIET)


def test_the_page_has_every_section_and_exactly_what_select_stored(made, small_mae, tmp_path):
    summary = report_of(made, small_mae, tmp_path / "report")
    assert (summary.n_ok, summary.notes) == (6, [])
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["pictures", "training", "attention", "caches", "runs"]
    shown = json.loads(re.findall(r'id="shown">(.*?)</script>', text, re.S)[0])
    assert shown["stored"] == [[[9, 7], [18, 14], [27, 22]], [], [], [], []]
    stored = {}
    selections = open_cache(made.selections)
    for unit in selections.units:
        arrays = selections.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            stored[key] = [arrays[f"kept_{r}"][row].tolist() for r in ("0.25", "0.5", "0.75")]
    kept = [card["stored"][0] for card in shown["cards"]]
    assert kept == [stored[key] for key in sorted(stored)[:6]]
    for card in shown["cards"]:
        assert len(card["orders"]) == 5
        for (_, best), chosen in zip(shown["stored"][0], card["stored"][0], strict=True):
            assert card["orders"][0][:best] == chosen[:best]
    assert "teacher&#39;s own tau-b 0.5" in text


class LastPatches(Selector):
    """Only chooses, and has no scores."""

    def select(self, images, keys, keeps):
        return [torch.arange(self.grid**2 - k, self.grid**2).expand(len(keys), -1) for k in keeps]


def test_selections_of_any_kind_stand_side_by_side(made, small_mae, tmp_path, monkeypatch):
    spec = SelectorSpec(make=lambda options: LastPatches(48, 8), help="")
    monkeypatch.setitem(SELECTORS, "last", spec)
    for name, ratios in (("last", (0.5,)), ("center", (0.25, 0.5)), ("border", (0.3,))):
        config = SelectConfig(selector=name, keep_ratio=ratios, image_size=48, patch_size=8)
        run_select(config, made.shards, tmp_path / name, InProcessPool(), QUIET)
    folders = [made.selections, *(tmp_path / name for name in ("last", "center", "border"))]
    report_of(made, small_mae, tmp_path / "report", selections=folders)
    text = (tmp_path / "report" / "index.html").read_text("utf-8")
    tiles = re.findall(r"kept by <b>(.*?)</b>", text)
    assert tiles == ["ranker", "last", "center (selected)", "border contrast (selected)"] * 6
    shown = json.loads(re.findall(r'id="shown">(.*?)</script>', text, re.S)[0])
    assert [[k for k, _ in own] for own in shown["stored"][:4]] == [
        [9, 18, 27],
        [18],
        [9, 18],
        [11],
    ]
    for card in shown["cards"]:
        assert card["orders"][1] is None
        assert sorted(card["stored"][1][0]) == list(range(18, 36))
        assert all(len(card["orders"][place]) == 36 for place in (0, 2, 3))


def test_a_cache_is_described_by_its_receipts_log_and_errors(made) -> None:
    figures = read_cache_figures(open_cache(made.teacher))
    assert (figures.n_ok, figures.n_bad, figures.num_units) == (12, 1, 3)
    assert [(kind.reason, kind.count) for kind in figures.errors] == [("truncated", 1)]
    assert figures.errors[0].examples[0][0] == "broken_0"
    assert figures.failed == []
    assert figures.images_per_s is not None
    assert figures.seconds["model"] > 0
    assert set(figures.ahead) == {"read", "decode"}
    scores = figures.scores
    assert scores is not None
    assert (scores.name, scores.num_scores) == ("pseudo-score", 12 * 36)
    assert scores.counts.sum() == scores.num_scores
    least, *_, most = scores.quartiles
    assert least < scores.quartiles[2] < most
    assert read_cache_figures(open_cache(made.selections)).scores.name == "ranker score"


def test_heads_of_dino_stand_beside_the_ranker_s_where_the_views_fit(
    made, small_mae, tmp_path, monkeypatch
):
    vit = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0
    )
    path = tmp_path / "dino.pth"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in vit.state_dict().items()}}, path)
    with pytest.raises(RequestError, match="of another shape"):
        report_of(made, small_mae, tmp_path / "report", dino=str(path))
    assert not (tmp_path / "report").exists()
    large = timm.create_model("vit_small_patch16_224", num_classes=0)
    torch.save(large.state_dict(), path)
    summary = report_of(made, small_mae, tmp_path / "report", dino=str(path))
    assert "no attention distances of DINO: DINO takes images of 224 x 224 px" in summary.notes[0]
    opened = Opened(vit, NORMALIZATIONS["imagenet"], 48, 8)
    monkeypatch.setattr("pipeline.report.gather.open_dino", lambda options: opened)
    summary = report_of(made, small_mae, tmp_path / "report", dino=str(path))
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert summary.notes == []
    assert page.count("Mean attention distance in pixels") == 3


def test_a_ranker_that_did_not_select_has_no_attention_on_the_page(made, small_mae, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("run.json", "curve.jsonl"):
        (other / name).write_bytes((made.ranker / name).read_bytes())
    torch.manual_seed(9)
    save_ranker(create_ranker("vit_tiny", grid=6, patch_size=8), other, {})
    summary = report_of(made, small_mae, tmp_path / "report", training=[other])
    assert "is the one that selected" in summary.notes[0]
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert page.count("Mean attention distance in pixels") == 1


def test_images_are_shown_that_are_asked_for_by_key(made, small_mae, tmp_path) -> None:
    config = ReportConfig(key=("coffee_2", "cat_1"), mask_ratio=0.75)
    assert report_of(made, small_mae, tmp_path / "report", config=config).n_ok == 2
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert re.findall(r"<h3 id=.key-.*?>(.*?)</h3>", page) == ["cat_1", "coffee_2"]
    wrong = ReportConfig(key=("coffee_9",), mask_ratio=0.75)
    with pytest.raises(RequestError, match=r"'coffee_9'; keys look like 'astro"):
        report_of(made, small_mae, tmp_path / "report", config=wrong)


def test_shards_without_an_image_that_is_to_be_shown_are_refused(made, small_mae, tmp_path) -> None:
    with pytest.raises(RequestError, match=r"lack 2 of the 6 images to show, e.g. 'cat_0'"):
        report_of(made, small_mae, tmp_path / "report", shards=made.shards[:1])
    assert not (tmp_path / "report").exists()


def test_a_folder_that_is_no_training_is_refused(made, small_mae, tmp_path) -> None:
    with pytest.raises(RequestError, match=r"run.json is missing"):
        report_of(made, small_mae, tmp_path / "report", training=[tmp_path])
    assert not (tmp_path / "report").exists()
