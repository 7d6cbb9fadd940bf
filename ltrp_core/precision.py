"""The number formats that a frozen model's matrix products are computed in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.linear import multiplies

Precision = Literal["float32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_HAS = ("float32", "bf16")


def fastest_faithful(device_types: Collection[str]) -> Precision:
    """Returns the fastest precision that all of some kinds of devices compute in, and that keeps
    the order of the patches: Kendall's tau-b of 0.99 or more to float32 (docs/speed.md).

    Args:
        device_types: torch's, such as `cpu` and `cuda`.
    """
    return "fp16" if set(device_types) == {"cuda"} else "float32"


def needs_gpu(precision: str) -> bool:
    """Returns whether CPUs do not compute in a precision."""
    return precision not in _CPU_HAS


def check_precision(precision: str, device: torch.device) -> None:
    """Checks that a device computes in a precision.

    Raises:
        RequestError: it does not, or no precision is called so.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if device.type == "cpu" and needs_gpu(precision):
        raise RequestError(
            f"--precision {precision} needs a GPU, and the device is a CPU; pass one of: "
            f"{', '.join(_CPU_HAS)}"
        )


def is_emulated(precision: str, device: torch.device) -> bool:
    """Returns whether a device has no instructions for products in a precision.

    A training step in bf16 takes some 20 times as long as in float32 on a CPU without AVX-512 BF16.
    """
    return precision == "bf16" and device.type == "cpu" and not multiplies(torch.bfloat16)


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Computes products of `device` in `precision` within the context; sums stay float32.

    `bf16` and `fp16`: torch.autocast, so that normalization, softmax and the residual stream keep
    float32. `tf32`: float32 products and convolutions rounded to 10 bits, of CUDA only. What is in
    float32 is that in full, whatever the program allowed before (`float32_kept`).

    Raises:
        RequestError: as `check_precision`.
    """
    check_precision(precision, device)
    with float32_kept("tf32" if precision == "tf32" else "ieee"):
        if precision in _AUTOCAST:
            with torch.autocast(device.type, _AUTOCAST[precision]):
                yield
        else:
            yield


@contextlib.contextmanager
def float32_kept(as_format: Literal["ieee", "tf32"] = "ieee") -> Iterator[None]:
    """Computes float32 products and convolutions as such within the context, of GPUs and CPUs.

    torch lets convolutions of CUDA round to 10 bits unless it is told otherwise, and programs allow
    more by either of torch's two sets of flags. They are those of the process: other threads that
    enter wait until this one has left. All flags are as they were afterwards, in both sets.

    Args:
        as_format: `tf32` lets CUDA round to 10 bits.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with _ONE_THREAD:
        before = _flags()
        _set_flags(as_format, legacy=before.legacy is not None)
        try:
            yield
        finally:
            _restore_flags(before)


_ONE_THREAD = threading.RLock()
"""Two threads that each put back what they found would leave what the other had set."""


class _Flags(NamedTuple):
    legacy: tuple[str, bool] | None
    """Of products, and TF32 in cuDNN; None: the program set the newer flags, so torch raises"""
    own: dict[str, str]
    """Newer flags that are not what they inherit, by name; empty before torch 2.9"""


def _newer_flags() -> dict[str, Any]:
    """Returns the places of the newer flags, those that others inherit from first."""
    places: dict[str, Any] = {}
    for name in _NEWER:
        place: Any = torch.backends
        for part in name.split(".")[1:]:
            place = getattr(place, part, None)
        if hasattr(place, "fp32_precision"):
            places[name] = place
    return places


# `backends.mkldnn` is left out: what is written to it goes to `backends`.
_NEWER = (
    "backends",
    "backends.cudnn",
    "backends.cuda.matmul",
    "backends.cudnn.conv",
    "backends.cudnn.rnn",
    "backends.mkldnn.matmul",
    "backends.mkldnn.conv",
    "backends.mkldnn.rnn",
)
_PARENTS = _NEWER[:2]
_PRODUCTS = ("backends.cuda.matmul", "backends.cudnn.conv")
_CPU_PRODUCTS = ("backends.mkldnn.matmul", "backends.mkldnn.conv")


def _flags() -> _Flags:
    try:
        legacy = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        legacy = None
    own, places = {}, _newer_flags()
    for name, place in places.items():
        own[name] = place.fp32_precision
        if name in _PARENTS:
            # A flag that was never set shows its parent's value: without that, its own.
            place.fp32_precision = "none"
    for name in _PARENTS:
        if name in places:
            places[name].fp32_precision = own[name]
    return _Flags(legacy, own)


def _set_flags(as_format: str, *, legacy: bool) -> None:
    if legacy:
        # Both sets agree then, for what reads the older one within the context.
        torch.set_float32_matmul_precision("high" if as_format == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = as_format == "tf32"
    places = _newer_flags()
    for names, value in ((_PRODUCTS, as_format), (_CPU_PRODUCTS, "ieee")):
        for name in names:
            if name in places:
                places[name].fp32_precision = value


def _restore_flags(before: _Flags) -> None:
    if before.legacy is not None:
        torch.set_float32_matmul_precision(before.legacy[0])
        torch.backends.cudnn.allow_tf32 = before.legacy[1]
    places = _newer_flags()
    for name, value in before.own.items():
        places[name].fp32_precision = value
