"""What commit 3d29321 wrote, the last one with selections of schema 3, is read and gone on with.

`schema_3.tar.gz` holds two shards of drawn images and two selections of the first one, by border
contrast and by the center. Border contrast was a selector then, and no reference.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.console.progress import JsonLineProgress
from pipeline.evaluation.patches import run_evaluate_patches
from pipeline.inputs import find_shards
from pipeline.store import open_cache
from pipeline.store.errors import RunMismatchError
from pipeline.store.verify import problems
from pipeline.units.run import run_select
from pipeline.units.runner import UnitOptions
from pipeline.workers import InProcessPool
from stages.evaluate_patches import EvaluateConfig
from stages.select_patches import SelectConfig

ARCHIVE = Path(__file__).with_name("schema_3.tar.gz")
QUIET = JsonLineProgress(every_s=1e9)
SELECTIONS = {"by_border": ("border", {}), "by_center": ("center", {"store": "webdataset"})}


@pytest.fixture
def made(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def select(name, out, settings, **options):
    config = SelectConfig(selector=name, **options)
    shards = find_shards(["one.tar", "two.tar"])
    return run_select(config, shards, out, InProcessPool(), QUIET, UnitOptions(**settings))


def evaluate(*selections):
    rows, summary = run_evaluate_patches(
        EvaluateConfig(bootstrap_draws=10), selections=selections, annotations=Path("masks"),
        teacher=None, foreground="masks", out=Path("evaluation"), progress=QUIET,
    )  # fmt: skip
    return {row.source: row for row in rows if row.keep_ratio == 0.5}, " ".join(summary.notes)


def write_masks(cache):
    Path("masks").mkdir()
    for unit in cache.units:
        arrays = cache.read(unit)
        for key, (height, width) in zip(arrays["key"].tolist(), arrays["size"], strict=True):
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, width // 3 : width // 2] = 255
            Image.fromarray(mask).save(f"masks/{key}.png")


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_are_gone_on_with_in_their_own_schema(made, name):
    selector, settings = SELECTIONS[name]
    (old,) = (open_cache(name).read(unit) for unit in open_cache(name).units)
    assert "border_contrast" not in old
    summary = select(selector, name, settings)
    assert (summary.skipped, summary.done) == (1, 1)
    cache = open_cache(name)
    assert cache.run["schema"] == 3
    assert list(problems(cache, deep=True)) == []
    assert all("border_contrast" not in cache.read(unit) for unit in cache.units)

    select(selector, "new", settings)
    new = open_cache("new")
    assert new.run["schema"] == 4
    arrays = new.read(new.units[0])
    for array, values in old.items():
        np.testing.assert_array_equal(arrays[array], values)
    if selector == "border":
        np.testing.assert_array_equal(arrays["border_contrast"], arrays["score"])


def test_a_prior_is_refused_by_an_old_folder(made):
    with pytest.raises(RunMismatchError, match=r"prior: 'absent' there, \['border=1'\] asked"):
        select("center", "by_center", SELECTIONS["by_center"][1], prior=("border=1",))


def test_they_are_evaluated_without_what_they_lack_and_the_summary_says_so(made):
    write_masks(open_cache("by_center"))
    rows, notes = evaluate("by_center")
    assert set(rows) == {
        "center (selected)", "center (selected), top-k only", "patch variance", "center", "random",
        "oracle",
    }  # fmt: skip
    assert "no border contrast beside the selections" in notes


def test_a_newer_selection_of_the_same_images_gives_the_reference_to_both(made):
    select("center", "by_center", SELECTIONS["by_center"][1])
    select("border", "new", {})
    write_masks(open_cache("new"))
    rows, notes = evaluate("by_center", "new")
    assert "no border contrast" not in notes
    alone = rows["border contrast (selected), top-k only"]
    assert rows["border contrast"].figures == alone.figures
