"""Which device `--device` names, and when its memory is full."""

from __future__ import annotations

from collections.abc import Collection

import torch

from ltrp_core.errors import RequestError

_HOST_IS_FULL = ("can't allocate memory", "could not create a primitive", "bad_alloc")
"""What torch's allocator, oneDNN and C++ say then; torch raises it as a plain RuntimeError."""


def resolve_device(name: str) -> torch.device:
    """Returns the device behind `name`; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        RequestError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RequestError(
            f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}; pass auto or cpu"
        ) from error
    return device


def device_types(name: str, slots: Collection[str]) -> set[str]:
    """Returns the kinds of devices that workers use: torch's `cpu`, `cuda`, ...

    Args:
        name: of `--device`.
        slots: what the workers are given where it is `auto`: `cpu`, `cuda`, or `auto` = whatever
            this process has.

    Raises:
        RequestError: torch knows no such device.
    """
    if name == "auto":
        return {resolve_device(slot).type if slot == "auto" else slot for slot in slots}
    try:
        return {torch.device(name).type}
    except RuntimeError as error:
        raise RequestError(f"--device {name!r}: {str(error).splitlines()[0]}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory was not enough, of a GPU or of the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _HOST_IS_FULL)
