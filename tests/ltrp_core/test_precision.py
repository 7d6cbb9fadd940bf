"""Scores in bf16: the same order to a rounding, still a function of image and partition alone."""

import itertools

import pytest
import torch

from ltrp_core.distances import DISTANCES, ssim
from ltrp_core.errors import RequestError
from ltrp_core.mae import load_mae
from ltrp_core.partitions import sample_visible
from ltrp_core.precision import (
    PRECISIONS,
    check_precision,
    computing_in,
    fastest_faithful,
    float32_kept,
    is_emulated,
    needs_gpu,
)
from ltrp_core.rankers import load_ranker
from ltrp_core.rankers.ranking import rank_images
from ltrp_core.ranking_metrics import kendall_tau_b
from ltrp_core.scoring import PHASES, REGIONS, leave_one_out_scores
from ltrp_core.selector import LTRPSelector


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


@pytest.mark.parametrize(
    ("phase", "metric", "region"), itertools.product(PHASES, DISTANCES, REGIONS)
)
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


FLAGS = (
    "backends.cuda.matmul",
    "backends.cudnn.conv",
    "backends.mkldnn.matmul",
    "backends.mkldnn.conv",
)


def flag(name, value=None):
    place = torch
    for part in name.split("."):
        place = getattr(place, part)
    if value is not None:
        place.fp32_precision = value
    return place.fp32_precision


def flags():
    """All that a program can read, in both of torch's sets; one that raises reads None."""

    def read(get):
        try:
            return get()
        except RuntimeError:
            return None

    newer = {name: flag(name) for name in ("backends", "backends.cudnn", *FLAGS)}
    older = (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32)
    return newer, [read(get) for get in older]


@pytest.fixture
def untouched_flags():
    """Puts back torch's defaults."""
    yield
    flag("backends", "none")
    flag("backends.cudnn", "none")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for name, value in zip(FLAGS, ("none", "tf32", "none", "none"), strict=True):
        flag(name, value)


@pytest.mark.usefixtures("untouched_flags")
@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize(
    "program",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: flag("backends", "tf32"),
        lambda: flag("backends.cudnn", "tf32"),
        lambda: flag("backends.cudnn.conv", "ieee"),
        lambda: flag("backends.cuda.matmul", "tf32"),
    ],
)
def test_float32_is_float32_in_products_and_convolutions_and_all_flags_come_back(program):
    program()
    before = flags()
    with computing_in("float32", torch.device("cpu")):
        assert [flag(name) for name in FLAGS] == ["ieee"] * 4
        with float32_kept("tf32"):
            assert [flag(name) for name in FLAGS] == ["tf32", "tf32", "ieee", "ieee"]
        assert [flag(name) for name in FLAGS] == ["ieee"] * 4
    assert flags() == before
    inherited = [flag("backends", value) and flags() for value in ("ieee", "none")]
    flag("backends", before[0]["backends"])
    with pytest.raises(ZeroDivisionError), computing_in("bf16", torch.device("cpu")):
        raise ZeroDivisionError
    assert flags() == before
    assert inherited == [flag("backends", value) and flags() for value in ("ieee", "none")], (
        "a flag that was never set still inherits"
    )


@pytest.mark.usefixtures("untouched_flags")
def test_no_score_or_kept_patch_depends_on_what_the_program_allows(work):
    mae, images, visible = work
    selector = LTRPSelector(load_ranker("ranker_tiny"))
    ways = [{"metric": "ssim"}, {}]
    exact = [leave_one_out_scores(mae, images[:1], visible[:1], **way) for way in ways]
    kept = rank_images(selector.ranker, images[:1])
    torch.set_float32_matmul_precision("medium")
    for way, expected in zip(ways, exact, strict=True):
        assert torch.equal(leave_one_out_scores(mae, images[:1], visible[:1], **way), expected)
    assert torch.equal(rank_images(selector.ranker, images[:1]), kept)


def test_the_ssim_is_of_full_float32_whatever_surrounds_it(monkeypatch):
    own, seen = torch.nn.functional.conv2d, []

    def watched(*args):
        seen.append(torch.backends.cudnn.allow_tf32)
        return own(*args)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    images = torch.zeros(1, 3, 16, 16)
    ssim(images, images[:, None])
    assert set(seen) == {False}


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


def test_bf16_is_emulated_where_the_processor_has_no_instructions_for_it():
    cpu = torch.device("cpu")
    assert is_emulated("bf16", cpu) != torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not is_emulated("float32", cpu)
    assert not is_emulated("bf16", torch.device("cuda"))
