"""Mosaics for the question of what a method drops: their geometry, their top photograph, files."""

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from command_line import run
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

from ltrp_core.classifiers.normalization import Normalization
from pipeline.evaluation.tables import read_rows
from studies.mosaics import GROUPS, SIDE, Cell, cells, fill_cell, find_top, make, runs


@pytest.mark.parametrize("many", [2, 3, 4])
def test_cells_fill_the_mosaic_and_none_is_in_its_middle(many):
    sizes = set()
    for seed in range(20):
        covered = np.zeros((SIDE, SIDE), int)
        found = cells(many, np.random.default_rng(seed))
        for cell in found:
            covered[cell.inside] += 1
            middle = cell.top + cell.height / 2, cell.left + cell.width / 2
            assert np.hypot(*(place - SIDE / 2 for place in middle)) > SIDE / 8
            sizes.add(cell.height * cell.width)
        assert len(found) == many
        assert (covered == 1).all()
    assert max(sizes) > 1.5 * min(sizes)


@pytest.mark.parametrize("size", [(300, 200), (120, 260), (160, 160)])
def test_an_object_is_where_the_middle_of_its_photograph_is(size):
    """A photograph that is white in the ellipse: the mask is where the mosaic is white."""
    photograph = Image.new("RGB", size)
    width, height = size
    box = (0.15 * width, 0.15 * height, 0.85 * width, 0.85 * height)
    ImageDraw.Draw(photograph).ellipse(box, fill="white")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        cell = cells(3, rng)[seed % 3]
        pixels, is_object = fill_cell(photograph, cell, rng)
        assert pixels.shape == (cell.height, cell.width, 3)
        is_white = np.zeros((SIDE, SIDE), bool)
        is_white[cell.inside] = pixels[:, :, 0] > 127
        assert (is_white & is_object).sum() > 0.93 * (is_white | is_object).sum()


def test_a_photograph_is_neither_stretched_nor_padded():
    photograph = Image.new("RGB", (200, 200), "gray")
    ImageDraw.Draw(photograph).rectangle((90, 90, 109, 109), fill="white")
    for seed in range(10):
        pixels, _ = fill_cell(photograph, Cell(0, 0, 80, 160), np.random.default_rng(seed))
        rows, columns = np.nonzero(pixels[:, :, 0] > 190)
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 2
        assert pixels.min() > 100
        # Not in the middle of its cell, but near it.
        assert 80 * 0.2 < rows.mean() < 80 * 0.8
        assert 160 * 0.2 < columns.mean() < 160 * 0.8


def test_runs_are_read_as_the_mask_that_they_are_of():
    for seed in range(4):
        mask = np.random.default_rng(seed).random((7, 5)) < 0.5
        encoded = coco_mask.frPyObjects({"size": [7, 5], "counts": runs(mask)}, 7, 5)
        assert (coco_mask.decode(encoded).astype(bool) == mask).all()


def classifier(decide):
    """A classifier by a function of the mean color (3,) of the whole image."""
    return SimpleNamespace(
        normalization=Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        logits=lambda images: torch.stack([decide(one.mean(dim=(1, 2))) for one in images]),
    )


def test_top_is_the_photograph_that_alone_is_of_the_class_of_the_whole():
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    left, right = Cell(0, 0, SIDE, 80), Cell(0, 80, SIDE, SIDE - 80)
    pixels[left.inside] = (200, 0, 0)
    pixels[right.inside] = (0, 100, 0)
    # Red is more, though it fills less.
    assert find_top(pixels, [left, right], classifier(lambda color: color)) == (0, 0, True)
    assert find_top(pixels, [right, left], classifier(lambda color: color)) == (1, 0, True)


def test_where_no_photograph_alone_is_of_that_class_the_greatest_logit_decides():
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    left, right = Cell(0, 0, SIDE, 80), Cell(0, 80, SIDE, SIDE - 80)
    pixels[left.inside] = (200, 0, 0)
    pixels[right.inside] = (0, 100, 0)

    def both_colors(color):
        """Class 2 needs red and green; one of them alone is of class 0 or 1."""
        return torch.stack([color[0], color[1], 100 * color[:2].min() + color[1] / 10])

    assert find_top(pixels, [left, right], classifier(both_colors)) == (1, 2, False)


@pytest.fixture
def photographs(tmp_path):
    """A tar of photographs of five classes, two each, and of what is no class."""
    folders = ["ant", "bell", "cup", "drum", "Faces", "Faces_easy", "BACKGROUND_Google"]
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        for number, folder in enumerate(folders):
            for name in ("image_0001", "image_0002"):
                content = io.BytesIO()
                rng = np.random.default_rng(number)
                Image.fromarray(rng.integers(0, 255, (90, 70, 3), np.uint8)).save(content, "png")
                info = tarfile.TarInfo(f"caltech101/{folder}/{name}.png")
                info.size = len(content.getvalue())
                content.seek(0)
                tar.addfile(info, content)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "photographs.tar"


def made(photographs, out, *more):
    words = [photographs, "--out", out, "--model", "timm:test_resnet"]
    words += ["--weights", photographs.parent / "weights.safetensors", *more]
    return CliRunner().invoke(make, [str(word) for word in words])


def test_mosaics_are_a_function_of_photographs_options_and_seed(photographs, tmp_path):
    for name, more in {"a": [], "b": [], "few": ["--count", 2], "c": ["--seed", 1]}.items():
        found = made(photographs, tmp_path / name, *(["--count", 6, *more]))
        assert found.exit_code == 0, found.output
    contents = {
        name: [(tmp_path / name / file).read_bytes() for file in ("mosaics.tar", "other.json")]
        for name in ("a", "b", "c")
    }
    assert contents["a"] == contents["b"]
    assert contents["a"][0] != contents["c"][0]
    members = {}
    for name in ("a", "few"):
        with tarfile.open(tmp_path / name / "mosaics.tar") as tar:
            members[name] = {one.name: tar.extractfile(one).read() for one in tar}
    assert len(members["few"]) == 4
    assert members["few"].items() <= members["a"].items()


def test_each_mosaic_has_one_top_photograph_and_others_of_other_classes(photographs, tmp_path):
    assert made(photographs, tmp_path / "made", "--count", 12).exit_code == 0
    documents = {g: json.loads((tmp_path / "made" / f"{g}.json").read_text()) for g in GROUPS}
    names = {one["name"] for one in documents["all"]["categories"]}
    assert names <= {"ant", "bell", "cup", "drum", "Faces"}
    for number in range(12):
        of = {
            group: [one for one in document["annotations"] if one["image_id"] == number]
            for group, document in documents.items()
        }
        assert len(of["top"]) == 1
        assert len(of["top"]) + len(of["other"]) == len(of["all"]) in (2, 3, 4)
        assert len({one["category_id"] for one in of["all"]}) == len(of["all"])
        # Boxes are the cells: they fill the mosaic.
        assert sum(one["bbox"][2] * one["bbox"][3] for one in of["all"]) == SIDE**2


def test_an_evaluation_reads_them(photographs, tmp_path):
    folder = tmp_path / "made"
    assert made(photographs, folder, "--count", 3).exit_code == 0
    run("select", "--shards", folder / "mosaics.tar", "--selector", "center", "--keep-ratio", 0.5,
        "--homogeneous", 0, "--crop", "none", "--workers", 0, "--out", tmp_path / "at")  # fmt: skip
    found = {}
    for group in GROUPS:
        run("evaluate", "patches", "--selections", tmp_path / "at", "--foreground", "boxes",
            "--annotations", folder / f"{group}.json", "--out", tmp_path / group)  # fmt: skip
        found[group] = {row.source: row["recall"] for row in read_rows(tmp_path / group)}
    # Cells fill the mosaic, so half of it is half of all of them.
    assert found["all"]["random"] == pytest.approx(0.5)
    assert found["all"]["center (selected)"] == pytest.approx(0.5)
    assert found["top"]["oracle"] >= found["top"]["random"]


def test_too_few_classes_are_told(photographs, tmp_path):
    found = made(photographs, tmp_path / "made", "--under", "elsewhere/")
    assert found.exit_code == 1
    assert "0 classes of photographs under 'elsewhere/'" in found.output
