"""The number formats that a frozen model's matrix products are computed in."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Literal, get_args

import torch

from ltrp_core.errors import RequestError, unknown_name

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


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Computes products of `device` in `precision` within the context; sums stay float32.

    `bf16` and `fp16`: torch.autocast, so that normalization, softmax and the residual stream keep
    float32. `tf32`: float32 products rounded to 10 bits, of CUDA only.

    Raises:
        RequestError: as `check_precision`.
    """
    check_precision(precision, device)
    if precision in _AUTOCAST:
        with torch.autocast(device.type, _AUTOCAST[precision]):
            yield
    elif device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    else:
        yield
