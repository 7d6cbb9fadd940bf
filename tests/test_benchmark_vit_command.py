"""`benchmark-vit`: the paper's count of operations, the honest one beside it, and times."""

import pyarrow.parquet as pq
import pytest
import timm
import torch
from command_line import one_line_error, run

from ltrp_core.operations import (
    multiply_adds,
    ranker_multiply_adds,
    transformer_multiply_adds,
)
from ltrp_core.rankers import create_ranker

PAPER = {
    "vit_base_patch16_224": (17.6, 13.1, 14),
    "vit_large_patch16_224": (61.6, 46.0, 14),
    "vit_huge_patch14_224": (167.4, 124.8, 16),
}
"""Tab. 2: all patches, and three quarters of them."""


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_count_is_met_within_one_percent(name):
    whole, kept, grid = PAPER[name]
    with torch.device("meta"):
        vit = timm.create_model(name).eval()
    length = grid * grid
    assert transformer_multiply_adds(vit, length) / 1e9 == pytest.approx(whole, rel=0.01)
    assert transformer_multiply_adds(vit, 3 * length // 4) / 1e9 == pytest.approx(kept, rel=0.01)


def test_a_product_is_counted_as_its_multiply_adds_on_any_kernel():
    layer = torch.nn.Linear(30, 50)
    assert multiply_adds(lambda: layer(torch.randn(7, 30))) == 7 * 30 * 50
    ranker = create_ranker("vit_tiny", grid=6, patch_size=8).eval()
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert ranker_multiply_adds(ranker) == multiply_adds(lambda: ranker(image))


def test_counting_needs_no_time_and_the_ranker_stands_beside_the_classifier(tmp_path):
    rankers = ("--ranker", "vit_tiny", "--ranker", "vit_small")
    out = run("benchmark-vit", "--model", "timm:vit_tiny_patch16_224", *rankers,
              "--keep-ratio", 0.5, "--count-only", "--out", tmp_path)  # fmt: skip
    rows = pq.read_table(tmp_path / "benchmark_vit.parquet").to_pylist()
    assert [(row["ranker"], row["kept"]) for row in rows] == [
        ("", 196), ("vit_tiny", 98), ("vit_small", 98)]  # fmt: skip
    alone, tiny, small = rows
    assert alone["saved"] == 1.0
    assert tiny["classifier_gmac"] == small["classifier_gmac"] < 0.55 * alone["classifier_gmac"]
    for row in (tiny, small):
        total = row["classifier_gmac"] + row["ranker_gmac"]
        assert row["saved"] == pytest.approx(alone["classifier_gmac"] / total)
    assert tiny["saved"] < 1.0, "a ranker as large as the classifier saves nothing"
    assert "images/s" not in out[0]
    assert (tmp_path / "benchmark_vit.txt").read_text() in out[0]
    assert not list(tmp_path.glob("*.svg"))


def test_both_sides_are_timed_at_their_own_batch(tmp_path):
    run("benchmark-vit", "--model", "timm:vit_tiny_patch16_224", "--ranker", "vit_tiny",
        "--keep-ratio", 0.25, "--rounds", 1, "--max-batch", 2, "--threads", 1,
        "--out", tmp_path)  # fmt: skip
    alone, row = pq.read_table(tmp_path / "benchmark_vit.parquet").to_pylist()
    assert alone["speedup"] == 1.0
    assert {alone["batch"], row["batch"]} <= {1, 2}
    assert row["images_per_second"] > 0.0
    assert (tmp_path / "benchmark_vit-light.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "timm:vit_bse_patch16_224"), "did you mean"),
        (("--model", "timm:resnet18"), "cannot be given some patches only"),
        (("--ranker", "vit_tny"), "vit_tny"),
        (("--keep-ratio", "1.5"), "--keep-ratio is 1.5, out of range"),
        (("--model", "timm:vit_base_patch32_224", "--ranker", "ranker_tiny"), "has patches of 16"),
    ],
)
def test_what_cannot_be_counted_is_said_in_one_line(options, message, tmp_path):
    found = one_line_error("benchmark-vit", *options, "--count-only", "--out", tmp_path / "x")
    assert message in found
    assert not (tmp_path / "x").exists()
