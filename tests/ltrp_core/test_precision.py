"""Scores in bf16: the same order to a rounding, still a function of image and partition alone."""

import itertools

import pytest
import torch

from ltrp_core.checkpoints import load_mae
from ltrp_core.errors import RequestError
from ltrp_core.partitions import sample_visible
from ltrp_core.precision import (
    PRECISIONS,
    check_precision,
    computing_in,
    fastest_faithful,
    needs_gpu,
)
from ltrp_core.ranking_metrics import kendall_tau_b
from ltrp_core.scoring import METRICS, PHASES, REGIONS, leave_one_out_scores


@pytest.fixture(scope="module")
def work():
    """The weights of the package, three smooth random images, one partition each."""
    torch.manual_seed(0)
    coarse = torch.randn(3, 3, 8, 8)
    images = torch.nn.functional.interpolate(coarse, 224, mode="bicubic")
    visible = torch.stack(
        [torch.from_numpy(sample_visible(str(i), 0, 1, 196, 0.9, 0)[0]) for i in range(3)]
    )
    return load_mae("mae_tiny"), images, visible


@pytest.mark.parametrize(("phase", "metric", "region"), itertools.product(PHASES, METRICS, REGIONS))
def test_bf16_keeps_the_order_of_the_patches(work, phase, metric, region):
    mae, images, visible = work
    ways = {"phase": phase, "metric": metric, "region": region}
    exact = leave_one_out_scores(mae, images, visible, **ways)
    rounded = leave_one_out_scores(mae, images, visible, precision="bf16", **ways)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert kendall_tau_b(exact.double(), rounded.double()).mean() > 0.95


def test_a_bf16_score_does_not_depend_on_what_else_is_in_the_batch(work):
    mae, images, visible = work
    together = leave_one_out_scores(mae, images, visible, precision="bf16")
    for row in range(len(images)):
        alone = leave_one_out_scores(
            mae, images[row : row + 1], visible[row : row + 1], precision="bf16"
        )
        assert torch.equal(together[row : row + 1], alone)


def test_no_score_depends_on_what_was_scored_before(work):
    """Weights are kept in a layout that goes by the number of visible patches."""
    mae, images, visible = work
    fewer = visible[:1, :12]
    first = leave_one_out_scores(mae, images[:1], visible[:1])
    small = leave_one_out_scores(mae, images[:1], fewer)
    in_bf16 = leave_one_out_scores(mae, images[:1], visible[:1], precision="bf16")
    assert torch.equal(leave_one_out_scores(mae, images[:1], visible[:1]), first)
    assert torch.equal(leave_one_out_scores(mae, images[:1], fewer), small)
    again = leave_one_out_scores(mae, images[:1], visible[:1], precision="bf16")
    assert torch.equal(again, in_bf16)


def test_weights_that_change_in_place_are_not_taken_from_before(work):
    mae, images, visible = load_mae("mae_tiny"), *work[1:]
    before = leave_one_out_scores(mae, images[:1], visible[:1])
    with torch.no_grad():
        for block in mae.decoder_blocks:
            block.mlp.fc1.weight.mul_(0.5)
    after = leave_one_out_scores(mae, images[:1], visible[:1])
    assert not torch.allclose(before, after, rtol=1e-3)
    with torch.no_grad():
        for block in mae.decoder_blocks:
            block.mlp.fc1.weight.mul_(2.0)
    assert torch.equal(leave_one_out_scores(mae, images[:1], visible[:1]), before)


def test_a_precision_that_the_device_lacks_is_refused_by_name():
    cpu = torch.device("cpu")
    with pytest.raises(RequestError, match=r"fp16 needs a GPU.*float32, bf16"):
        check_precision("fp16", cpu)
    with pytest.raises(RequestError, match="did you mean bf16"):
        check_precision("bf61", cpu)


@pytest.mark.parametrize(
    ("devices", "precision"),
    [({"cuda"}, "fp16"), ({"cpu"}, "float32"), ({"cpu", "cuda"}, "float32"), (set(), "float32")],
)
def test_the_fastest_faithful_precision_is_one_that_all_devices_have(devices, precision):
    assert fastest_faithful(devices) == precision
    for device in devices:
        check_precision(precision, torch.device(device))


def test_what_needs_a_gpu_is_what_a_cpu_is_refused():
    assert [name for name in PRECISIONS if needs_gpu(name)] == ["tf32", "fp16"]


def test_the_precision_ends_with_the_context():
    with computing_in("bf16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_every_precision_of_a_gpu_keeps_the_order(work, precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    mae, images, visible = work[0].cuda(), work[1].cuda(), work[2].cuda()
    exact = leave_one_out_scores(mae, images, visible).double()
    rounded = leave_one_out_scores(mae, images, visible, precision=precision).double()
    mae.cpu()
    assert kendall_tau_b(exact.cpu(), rounded.cpu()).mean() > 0.95
