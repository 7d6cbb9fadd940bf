import dataclasses
import itertools

import pytest
import torch
from small_maes import SMALL, make

from ltrp_core.distances import DISTANCES
from ltrp_core.errors import RequestError
from ltrp_core.mae import create_mae
from ltrp_core.partitions import sample_visible
from ltrp_core.scoring import PHASES, REGIONS, leave_one_out, leave_one_out_scores
from oracles import scoring as oracle

ALL_WAYS = list(itertools.product(PHASES, DISTANCES, REGIONS))


@pytest.mark.parametrize(("phase", "metric", "region"), ALL_WAYS)
@pytest.mark.parametrize("decoder_depth", [1, 2, 3])
def test_scores_agree_with_one_reconstruction_a_patch(phase, metric, region, decoder_depth):
    config = dataclasses.replace(SMALL, decoder_depth=decoder_depth)
    mae, images, visible = make(config)
    scores = leave_one_out_scores(
        mae, images, visible, phase=phase, metric=metric, region=region, chunk=2
    )
    expected = oracle.leave_one_out(mae, images, visible, phase, metric, region)
    torch.testing.assert_close(scores.double(), torch.from_numpy(expected), rtol=3e-5, atol=0)


@pytest.fixture(scope="module")
def base():
    """MAE-B with random weights, one image, n = 19."""
    torch.manual_seed(1)
    mae = create_mae("mae_base").eval()
    images = torch.randn(1, 3, 224, 224)
    visible = torch.from_numpy(sample_visible("k", 0, 1, 196, 0.9, 0))
    return mae, images, visible


@pytest.mark.parametrize(("phase", "metric"), itertools.product(PHASES, DISTANCES))
def test_mae_base_scores_agree_with_the_oracle_to_1e_4(base, phase, metric):
    mae, images, visible = base
    few = visible[:, ::5]  # the oracle runs in float64: a few patches are enough for it
    scores = leave_one_out_scores(mae, images, few, phase=phase, metric=metric)
    expected = torch.from_numpy(oracle.leave_one_out(mae, images, few, phase, metric))
    assert (scores.double() / expected - 1).abs().max() < 1e-4


def test_an_absent_token_equals_the_released_codes_attention_mask():
    mae, images, visible = make(batch=1)
    with torch.no_grad():
        mae = mae.double()
        latent = mae.encode(images.double(), visible)[0]
        for removed in range(visible.shape[1]):
            absent = oracle.reconstruction_without_token(mae, latent, visible[0], removed)
            masked = oracle.reconstruction_with_attention_mask(mae, latent, visible[0], removed)
            torch.testing.assert_close(absent, masked, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(("phase", "metric", "region"), ALL_WAYS)
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(phase, metric, region):
    mae, images, visible = make(batch=8)
    options = {"phase": phase, "metric": metric, "region": region}
    together = leave_one_out_scores(mae, images, visible, **options)
    alone = torch.cat(
        [
            leave_one_out_scores(mae, images[i : i + 1], visible[i : i + 1], **options)
            for i in range(8)
        ]
    )
    assert torch.equal(together, alone)
    chunked = leave_one_out_scores(mae, images, visible, chunk=8, **options)
    torch.testing.assert_close(chunked, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("phase", ["decoder", "encoder"])
@pytest.mark.parametrize("passes", [1, 2, 1000])
def test_how_many_passes_go_together_changes_no_score(phase, passes, chunk, monkeypatch):
    mae, images, visible = make(batch=3)
    expected = leave_one_out_scores(mae, images, visible, phase=phase)
    rows = passes * (mae.config.num_patches + 1)
    monkeypatch.setattr(leave_one_out, "_ROWS_AT_A_TIME", rows)
    found = leave_one_out_scores(mae, images, visible, phase=phase, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_several_partitions_equal_several_calls():
    mae, images, visible = make(batch=2)
    other = make(batch=2, seed=3)[2]
    both = leave_one_out_scores(mae, images, torch.stack([visible, other], dim=1))
    assert both.shape == (2, 2, 5)
    assert torch.equal(both[:, 0], leave_one_out_scores(mae, images, visible))
    assert torch.equal(both[:, 1], leave_one_out_scores(mae, images, other))


def test_the_order_of_the_visible_patches_only_orders_the_scores():
    mae, images, visible = make()
    order = torch.tensor([3, 1, 4, 0, 2])
    scores = leave_one_out_scores(mae, images, visible)
    reordered = leave_one_out_scores(mae, images, visible[:, order])
    torch.testing.assert_close(reordered, scores[:, order], rtol=1e-5, atol=0)


def test_one_visible_patch_can_be_scored_in_both_phases():
    mae, images, visible = make(n=1)
    for phase in PHASES:
        scores = leave_one_out_scores(mae, images, visible, phase=phase)
        assert scores.shape == (3, 1)
        assert (scores > 0).all()


def test_a_patch_whose_removal_changes_nothing_scores_lowest():
    """With decoder attention off, no other position can feel a removal: l1 is 0, -PSNR finite."""
    mae, images, visible = make()
    for block in mae.decoder_blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    assert (leave_one_out_scores(mae, images, visible) == 0).all()
    assert (leave_one_out_scores(mae, images, visible, metric="ssim") == 0).all()
    assert (leave_one_out_scores(mae, images, visible, metric="psnr") == -200).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 5, dtype=torch.int64), "distinct"),
        (torch.arange(5).repeat(3, 1) + 34, "0..35"),
        (torch.arange(5).repeat(3, 1).float(), "int64"),
        (torch.arange(5).repeat(2, 1), "B = 3"),
        (torch.arange(36).repeat(3, 1), "n < L"),
    ],
)
def test_indices_that_are_no_partition_are_refused(bad, message):
    mae, images, _ = make()
    with pytest.raises(RequestError, match=message):
        leave_one_out_scores(mae, images, bad)


def test_unknown_names_come_with_the_nearest_ones():
    mae, images, visible = make()
    with pytest.raises(RequestError, match="did you mean decoder"):
        leave_one_out_scores(mae, images, visible, phase="decode")
    with pytest.raises(RequestError, match="unknown metric 'lpips'"):
        leave_one_out_scores(mae, images, visible, metric="lpips")
