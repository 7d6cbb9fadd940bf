"""What another package adds at run time is used by commands and stages alike."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from command_line import one_line_error, run
from PIL import Image

from ltrp_core.distances import DISTANCES, DistanceSpec
from ltrp_core.losses import LOSSES, LossSpec
from ltrp_core.mae import load_mae
from ltrp_core.scoring import leave_one_out_scores
from pipeline.annotations import FORMS, AnnotationForm, open_annotations
from pipeline.commands.evaluations import patches
from pipeline.commands.run import score, train_ranker
from pipeline.store import open_cache
from stages.protocols import Foreground
from stages.train_ranker import TrainRankerConfig, check_config
from stages.types import ScoreRun

RUN = ScoreRun(image_size=32, patch_size=16, views=1, partitions=1, sampler="iid")


def help_of(command) -> str:
    return CliRunner().invoke(command, ["--help"]).output


def test_a_plain_function_is_a_loss(monkeypatch) -> None:
    def spread(scores, targets, *, reduction="mean", top=None):
        del targets, reduction
        return scores.var(dim=1)

    monkeypatch.setitem(LOSSES, "spread", LossSpec(function=spread, takes_top=True))
    assert "spread" in help_of(train_ranker)
    check_config(TrainRankerConfig(ranker="vit_tiny", loss="spread", loss_top=3), RUN)


def test_a_plain_function_is_a_distance(monkeypatch) -> None:
    monkeypatch.setitem(DISTANCES, "largest", DistanceSpec(lambda d: d.abs().amax(dim=(-2, -1))))
    assert "largest" in help_of(score)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mae, visible = load_mae("mae_tiny").eval(), torch.arange(3, 10)[None]
    largest, mean = (
        leave_one_out_scores(mae, images, visible, metric=m) for m in ("largest", "l1")
    )
    assert bool((largest > mean).all())


def test_a_class_is_an_annotation_form(monkeypatch, tmp_path) -> None:
    class Everything:
        names = ("a",)
        fingerprint = "1"

        def foreground(self, key, height, width, categories="all"):
            whole = np.ones((height, width), bool)
            return Foreground(whole, ~whole, "a")

    form = AnnotationForm(open=lambda path, shape: Everything())
    monkeypatch.setitem(FORMS, "everything", form)
    assert "everything" in help_of(patches)
    source = open_annotations(tmp_path, format="everything")
    assert source.foreground("a", 2, 3).is_foreground.all()


@pytest.mark.parametrize("command", [train_ranker, score])
def test_an_unknown_name_is_refused_with_the_nearest(command) -> None:
    option = "--loss" if command is train_ranker else "--metric"
    name = "listmla" if command is train_ranker else "l11"
    result = CliRunner().invoke(command, [option, name])
    assert result.exit_code == 2
    assert "did you mean" in result.output


PLUGIN = '''
import torch
from ltrp_core.selectors import Selector, SelectorSpec


class Last(Selector):
    """Keeps the last patches: a choice that depends on k, without scores."""

    def select(self, images, keys, keeps):
        length = self.grid**2
        return [torch.arange(length - k, length).repeat(len(keys), 1) for k in keeps]


LAST = SelectorSpec(make=lambda o: Last(o.image_size or 48, o.patch_size or 8), help="the last")
'''


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """A package as pip installs it: a module, and its entry points beside it."""
    folder = tmp_path / "site"
    info = folder / "other_package-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "other_package.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ltrp_pipeline.selectors]\nlast = other_package:LAST\n")
    monkeypatch.syspath_prepend(folder)
    return folder


def test_a_selector_of_an_installed_package_selects_is_measured_and_shown(
    other_package, shards, small_mae, tmp_path
):
    assert "last" in run("select", "--help")[0]
    run("select", "--shards", shards, "--selector", "last", "--workers", 0,
        "--out", tmp_path / "last")  # fmt: skip
    sizes = ("--image-size", 48, "--patch-size", 8, "--workers", 0)
    run("select", "--shards", shards, "--baseline", "center", *sizes, "--out", tmp_path / "center")
    cache = open_cache(tmp_path / "last")
    assert cache.run["selector"] == "last"
    arrays = cache.read(cache.units[0])
    assert "score" not in arrays
    assert arrays["kept_0.25"].tolist() == [list(range(27, 36))] * len(arrays["key"])
    run("verify", tmp_path / "last", "--deep")
    run("inspect", tmp_path / "last", cache.units[0])

    (tmp_path / "masks").mkdir()
    mask = np.zeros((150, 180), np.uint8)
    mask[90:150, 60:140] = 255
    for key in ("cat_0", "coffee_1"):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{key}.png")
    given = ("--selections", tmp_path / "last", "--selections", tmp_path / "center")
    table, err = run("evaluate", "patches", *given, "--annotations", tmp_path / "masks",
                     "--keep-ratio", 0.25, "--keep-ratio", 0.4, "--bootstrap-draws", 10,
                     "--out", tmp_path / "e")  # fmt: skip
    sources = {line.split("  ")[1].strip() for line in table.splitlines() if line[:2] == "0."}
    assert "last" in sources
    assert "last, top-k only" not in sources
    assert "at keep ratio 0.4 there is no 'last': `select` stored 0.25, 0.5, 0.75" in " ".join(
        err.split()
    )
    run("report", *given, "--shards", shards, "--mae", small_mae, "--images", 2,
        "--evaluation", tmp_path / "e", "--out", tmp_path / "report")  # fmt: skip
    page = (tmp_path / "report" / "index.html").read_text()
    shown = json.loads(re.findall(r'id="shown">(.*?)</script>', page, re.S)[0])
    assert shown["stored"][0] == [[9, 9], [18, 18], [27, 27]]
    assert shown["cards"][0]["orders"][0] is None
    assert shown["cards"][0]["stored"][0][0] == list(range(27, 36))
    complaint = one_line_error("evaluate", "ranking", tmp_path / "last", tmp_path / "center")
    assert "has no scores" in complaint
