import dataclasses

import numpy as np
import pytest
import torch
from small_maes import SMALL, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ltrp_core.linear
from ltrp_core.errors import RequestError
from ltrp_core.mae import create_mae, mae_config
from ltrp_core.partitions import masked_patches, sample_visible
from ltrp_core.scoring import metric_names, scored_by, surprise_scores
from ltrp_core.scoring.cost import scoring_operations, surprise_operations
from oracles import scoring as oracle


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("decoder_depth", [1, 2, 3])
def test_surprise_is_the_error_of_a_plain_reconstruction(decoder_depth, chunk):
    mae, images, visible = make(dataclasses.replace(SMALL, decoder_depth=decoder_depth))
    scores = surprise_scores(mae, images, visible, chunk=chunk)
    assert scores.dtype == torch.float32
    expected = torch.from_numpy(oracle.surprise(mae, images, visible))
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=0)


def test_scores_stand_in_the_order_of_the_masked_patches():
    mae, images, visible = make(batch=1)
    before = surprise_scores(mae, images, visible)
    masked = masked_patches(visible.numpy(), 36)
    changed = mae.patchify(images)
    changed[0, masked[0, 7]] += 3.0  # unseen, so the reconstruction stays
    after = surprise_scores(mae, mae.unpatchify(changed), visible)
    assert torch.nonzero(~torch.isclose(before, after)).tolist() == [[0, 7]]


def test_mae_base_agrees_with_the_oracle():
    torch.manual_seed(1)
    mae = create_mae("mae_base").eval()
    images = torch.randn(1, 3, 224, 224)
    visible = torch.from_numpy(sample_visible("k", 0, 1, 196, 0.9, 0))
    expected = torch.from_numpy(oracle.surprise(mae, images, visible))
    scores = surprise_scores(mae, images, visible)
    assert (scores.double() / expected - 1).abs().max() < 1e-4


def test_surprise_does_not_depend_on_what_else_is_in_the_batch():
    mae, images, visible = make(batch=8)
    together = surprise_scores(mae, images, visible)
    alone = [surprise_scores(mae, images[i : i + 1], visible[i : i + 1]) for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


def test_several_partitions_equal_several_calls():
    mae, images, visible = make(batch=2)
    other = make(batch=2, seed=3)[2]
    both = surprise_scores(mae, images, torch.stack([visible, other], dim=1))
    assert both.shape == (2, 2, 31)
    assert torch.equal(both[:, 0], surprise_scores(mae, images, visible))
    assert torch.equal(both[:, 1], surprise_scores(mae, images, other))


def test_no_image_gives_no_score():
    mae, images, visible = make()
    assert surprise_scores(mae, images[:0], visible[:0]).shape == (0, 31)


def test_indices_that_are_no_partition_are_refused():
    mae, images, visible = make()
    visible[0, 1] = visible[0, 0]
    with pytest.raises(RequestError, match="distinct"):
        surprise_scores(mae, images, visible)


@pytest.mark.parametrize("n", [1, 5, 12])
def test_the_operations_are_those_that_torch_counts(n, monkeypatch):
    monkeypatch.setattr(ltrp_core.linear, "_ONEDNN", None)
    mae, images, visible = make(batch=1, n=n)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        surprise_scores(mae, images, visible)
    assert surprise_operations(SMALL, n) == counter.get_total_flops()


def test_a_label_of_mae_base_takes_less_than_a_hundredth_of_an_l1_label():
    config = mae_config("mae_base")
    surprise, one_out = surprise_operations(config, 19) / 177, scoring_operations(config, 19) / 19
    assert one_out / surprise == pytest.approx(138, abs=1)


def test_the_complement_is_what_a_loop_finds():
    visible = np.stack([sample_visible(str(i), 0, 3, 196, 0.9, 0) for i in range(4)])
    found = masked_patches(visible.astype(np.uint8), 196)
    assert found.shape == (4, 3, 177)
    for image in range(4):
        for partition in range(3):
            seen = set(visible[image, partition].tolist())
            assert found[image, partition].tolist() == [i for i in range(196) if i not in seen]


@pytest.mark.parametrize("visible", [[[0, 0, 3]], [[0, 1, 36]], [[-1, 1, 3]]])
def test_a_damaged_partition_has_no_complement(visible):
    with pytest.raises(RequestError, match=r"twice|from 0 to L - 1 = 35"):
        masked_patches(np.array(visible), 36)


def test_surprise_is_the_only_metric_of_masked_patches():
    assert [name for name in metric_names() if scored_by(name) == "masked"] == ["surprise"]
