"""What losses and ranking metrics ask of a batch of lists."""

from __future__ import annotations

from torch import Tensor

from ltrp_core.errors import RequestError


def check_lists(scores: Tensor, targets: Tensor) -> None:
    """Checks that both are lists (B, n) of one shape on one device, not empty.

    Raises:
        RequestError: they are not; the message names both.
    """
    if scores.ndim != 2 or scores.numel() == 0 or targets.shape != scores.shape:
        raise RequestError(
            f"scores and targets must both be (B, n), not empty; got {tuple(scores.shape)} and "
            f"{tuple(targets.shape)}. Pass one row per list."
        )
    if targets.device != scores.device:
        raise RequestError(
            f"scores and targets must be on one device; got {scores.device} and "
            f"{targets.device}. Move one to the other."
        )
