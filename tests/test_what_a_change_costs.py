"""Five changes as patches, each applied to a copy of the packages, tried there, and counted.

A change is one new file or function and one row of a table. CONTRIBUTING.md shows two of the
patches whole, and says where each table is.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PATCHES = ROOT / "tests" / "patches"
TABLES = {
    "loss": "ltrp_core/losses/__init__.py",
    "distance": "ltrp_core/distances.py",
    "selector": "ltrp_core/selectors/__init__.py",
    "annotation_form": "pipeline/annotations/opening.py",
    "number_changing_option": "stages/select_patches.py",
}
"""Where the row of each change is."""


@pytest.fixture
def changed(request, tmp_path):
    """A copy of the packages with a patch applied."""
    git = shutil.which("git")
    assert git is not None, "git applies the patches"
    copy = tmp_path / "copy"
    for package in ("ltrp_core", "stages", "pipeline"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    patch = PATCHES / f"{request.param}.patch"
    # Not as part of a repository that may lie above.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run([git, "apply", str(patch)], cwd=copy, env=environment, check=True)
    return copy


def run(copy: Path, program: str, *arguments: object, folder: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder or copy.parent,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(copy: Path, *arguments: object, folder: Path | None = None) -> str:
    return run(copy, "from pipeline.cli import main; main()", *arguments, folder=folder)


def write_shard(path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for name in ("a", "b"):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(content, "PNG")
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(content.getvalue())
            tar.addfile(info, io.BytesIO(content.getvalue()))


@pytest.mark.parametrize("name", TABLES)
def test_a_change_touches_one_file_beside_its_table(name):
    text = (PATCHES / f"{name}.patch").read_text()
    files = set(re.findall(r"^\+\+\+ b/(\S+)$", text, re.M))
    assert TABLES[name] in files
    assert len(files - {TABLES[name]}) <= 1
    removed = re.findall(r"^-(?!--)", text, re.M)
    assert removed == [], "nothing that stands is changed"


@pytest.mark.parametrize("changed", ["loss"], indirect=True)
def test_a_loss_is_an_option_and_trains(changed):
    assert "hinge" in command(changed, "train-ranker", "--help")
    found = run(changed, """
import torch
from stages.train_ranker import TrainRankerConfig, check_config
from stages.types import ScoreRun
from ltrp_core.losses import LOSSES
run = ScoreRun(image_size=32, patch_size=16, views=1, partitions=1, sampler="iid")
check_config(TrainRankerConfig(ranker="vit_tiny", loss="hinge"), run)
print(float(LOSSES["hinge"](torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]]))))
""")  # fmt: skip
    assert float(found) == 4.0


@pytest.mark.parametrize("changed", ["distance"], indirect=True)
def test_a_distance_is_an_option_and_scores(changed):
    assert "[l1|l2|psnr|ssim|surprise]" in command(changed, "score", "--help").replace("\n", "")
    found = run(changed, """
import json, torch
from ltrp_core.mae import load_mae
from ltrp_core.scoring import leave_one_out_scores
mae = load_mae("mae_tiny").eval()
images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
visible = torch.arange(3, 20)[None]
found = [leave_one_out_scores(mae, images, visible, metric=m)[0] for m in ("l1", "l2")]
print(json.dumps([scores.tolist() for scores in found]))
""")  # fmt: skip
    l1, l2 = json.loads(found)
    assert all(a < b for a, b in zip(l1, l2, strict=True)), "the mean is below the root mean square"


@pytest.mark.parametrize("changed", ["selector"], indirect=True)
def test_a_selector_selects_and_has_its_own_column_of_the_evaluation(changed, tmp_path):
    write_shard(tmp_path / "a.tar")
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        mask = np.zeros((64, 64), np.uint8)
        mask[10:40, 10:40] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    sizes = ("--image-size", 64, "--patch-size", 8, "--crop", "resize", "--workers", 0)
    for name in ("edges", "center"):
        command(changed, "select", "--shards", "a.tar", "--selector", name, *sizes, "--out", name)
    table = command(
        changed, "evaluate", "patches", "--selections", "edges", "--selections", "center",
        "--annotations", "masks", "--bootstrap-draws", 10, "--out", "evaluation",
    )  # fmt: skip
    sources = {line.split("  ")[1].strip() for line in table.splitlines() if line[:2] == "0."}
    assert {"edges", "edges, top-k only", "center (selected)", "random", "oracle"} <= sources
    assert "edges minus each reference" in table


@pytest.mark.parametrize("changed", ["annotation_form"], indirect=True)
def test_an_annotation_form_is_chosen_by_its_name(changed, tmp_path):
    assert "points" in command(changed, "evaluate", "patches", "--help")
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "a.txt").write_text("30 30\n5 50\n")
    found = run(changed, """
import sys
from pathlib import Path
from pipeline.annotations import open_annotations
source = open_annotations(Path(sys.argv[1]), format="points")
print(int(source.foreground("a", 64, 64).is_foreground.sum()), source.fingerprint[:6])
""", tmp_path / "points")  # fmt: skip
    assert found.split() == [str(17 * 17 + 14 * 17), "points"]


@pytest.mark.parametrize("changed", ["number_changing_option"], indirect=True)
def test_an_option_that_changes_numbers_orphans_nothing(changed, tmp_path):
    write_shard(tmp_path / "a.tar")
    arguments = ("select", "--shards", "a.tar", "--selector", "center", "--workers", 0)
    command(ROOT, *arguments, "--out", "s", folder=tmp_path)
    run_file = (tmp_path / "s" / "run.json").read_bytes()
    command(changed, *arguments, "--out", "s")
    command(changed, *arguments, "--out", "s", "--brighten", 0)
    assert (tmp_path / "s" / "run.json").read_bytes() == run_file
    command(changed, *arguments, "--out", "brighter", "--brighten", 0.5)
    run_of = json.loads((tmp_path / "brighter" / "run.json").read_text())
    assert run_of["identity"]["brighten"] == 0.5
