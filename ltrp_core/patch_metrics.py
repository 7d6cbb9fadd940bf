"""Patch-level evaluation: how kept patches agree with the foreground, in pixels (Sec. 4.1, Fig. 5).

The authors released no code for it; these definitions are ours. F = foreground pixels, R = pixels
of the kept patches, ignored pixels (crowd regions) removed from both. Counts are exact integers,
so images can be evaluated in any batches and joined by `concatenate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltrp_core.errors import RequestError

_WEIGHTS_AT_ONCE = 8_000_000
"""Weights of resamples held at a time: 64 MB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchCoverage:
    """What the patches of B images hold, in pixels that are not ignored."""

    foreground_pixels: Tensor
    """int64 (B, L): foreground pixels of each patch."""
    valid_pixels: Tensor
    """int64 (B, L): pixels of each patch that are not ignored, at most p * p."""
    patch_size: int
    """p, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchAgreement:
    """Kept patches R against foreground F, in pixels that are not ignored, image by image.

    Every measure is nan for an image without foreground; precision also where R has no pixel.
    """

    intersection: Tensor
    """|R and F|, int64 (B,)."""
    kept_pixels: Tensor
    """|R|, int64 (B,)."""
    foreground: Tensor
    """|F|, int64 (B,)."""

    @property
    def has_foreground(self) -> Tensor:
        """Images that have foreground, bool (B,)."""
        return self.foreground > 0

    @property
    def precision(self) -> Tensor:
        """|R and F| / |R|, float64 (B,)."""
        return self._share(self.intersection, self.kept_pixels)

    @property
    def recall(self) -> Tensor:
        """|R and F| / |F|, float64 (B,)."""
        return self._share(self.intersection, self.foreground)

    @property
    def f1(self) -> Tensor:
        """2 |R and F| / (|R| + |F|), float64 (B,)."""
        return self._share(2 * self.intersection, self.kept_pixels + self.foreground)

    @property
    def iou(self) -> Tensor:
        """|R and F| / |R or F|, float64 (B,)."""
        union = self.kept_pixels + self.foreground - self.intersection
        return self._share(self.intersection, union)

    def _share(self, part: Tensor, whole: Tensor) -> Tensor:
        # 0 / 0 = nan is meant; double(), as torch divides integers in float32.
        return (part.double() / whole.double()).masked_fill(~self.has_foreground, torch.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchSummary:
    """One figure per measure over many images; nan where no image defines it."""

    precision: float
    recall: float
    f1: float
    iou: float
    num_images: int
    """Images with foreground: the n to print beside the figures."""
    num_with_precision: int
    """Of these, the images whose kept patches are not wholly ignored."""


def coverage(foreground: Tensor, ignored: Tensor | None, patch_size: int) -> PatchCoverage:
    """Returns the foreground and valid pixels of every patch, int64 (B, L), row-major.

    Args:
        foreground: bool (B, H, W), True on the foreground, after the image's own resize and crop.
        ignored: bool (B, H, W), True where a pixel counts as neither foreground nor background,
            even if `foreground` is True there. None: nowhere.
        patch_size: p in pixels; must divide H and W.

    Raises:
        RequestError: wrong shapes or dtypes, or sides that p does not divide.

    >>> boxes = torch.tensor([[[True, True, False, False], [True, False, False, False]]])
    >>> coverage(boxes, None, 2).foreground_pixels.tolist()
    [[3, 0]]
    """
    _check_masks(foreground, ignored, patch_size)
    is_valid = torch.ones_like(foreground) if ignored is None else ~ignored
    return PatchCoverage(
        foreground_pixels=_count(foreground & is_valid, patch_size),
        valid_pixels=_count(is_valid, patch_size),
        patch_size=patch_size,
    )


def agreement(kept: Tensor, coverage: PatchCoverage) -> PatchAgreement:
    """Returns the pixel counts (B,) of the kept patches against the foreground.

    Args:
        kept: int64 (B, k), distinct patch indices in any order, on the device of `coverage`.
        coverage: of the same B images.

    Raises:
        RequestError: wrong shape, dtype or device, indices out of range or repeated.

    >>> boxes = torch.tensor([[[True, True, False, False], [True, False, False, False]]])
    >>> agreement(torch.tensor([[0]]), coverage(boxes, None, 2)).precision.tolist()
    [0.75]
    """
    _check_kept(kept, coverage.valid_pixels)
    return PatchAgreement(
        intersection=coverage.foreground_pixels.gather(1, kept).sum(dim=1),
        kept_pixels=coverage.valid_pixels.gather(1, kept).sum(dim=1),
        foreground=coverage.foreground_pixels.sum(dim=1),
    )


def nested_agreement(
    order: Tensor, coverage: PatchCoverage, keeps: Sequence[int]
) -> list[PatchAgreement]:
    """Returns the agreement of the first k patches of an order, one for every k of `keeps`.

    What `agreement(order[:, :k], coverage)` returns, for many k at the price of one.

    Args:
        order: int64 (B, L), all patches of each image, best first, on the device of `coverage`.
        coverage: of the same B images.
        keeps: the k, each from 1 to L.

    Raises:
        RequestError: `order` is no permutation of the patches, or a k is out of range.

    >>> boxes = torch.tensor([[[True, True, False, False], [True, False, False, False]]])
    >>> both = nested_agreement(torch.tensor([[1, 0]]), coverage(boxes, None, 2), [1, 2])
    >>> [found.recall.tolist() for found in both]
    [[0.0], [1.0]]
    """
    length = coverage.valid_pixels.shape[1]
    if any(not 1 <= keep <= length for keep in keeps):
        raise RequestError(f"every k must be from 1 to L = {length}; got {list(keeps)}.")
    if order.shape != coverage.valid_pixels.shape or order.dtype != torch.int64:
        raise RequestError(
            f"order must be int64 {tuple(coverage.valid_pixels.shape)}, all patches of each image; "
            f"got {order.dtype} {tuple(order.shape)}. Pass top_patches(scores, L)."
        )
    in_range = bool(((order >= 0) & (order < length)).all())
    is_named = torch.zeros_like(order, dtype=torch.bool)
    if not in_range or not bool(is_named.scatter_(1, order, True).all()):
        raise RequestError(
            f"order must hold each index from 0 to {length - 1} once an image. "
            "Pass top_patches(scores, L)."
        )
    last = torch.tensor(keeps, dtype=torch.int64, device=order.device) - 1
    intersection, kept_pixels = (
        pixels.gather(1, order).cumsum(dim=1)[:, last].unbind(dim=1)
        for pixels in (coverage.foreground_pixels, coverage.valid_pixels)
    )
    foreground = coverage.foreground_pixels.sum(dim=1)
    return [
        PatchAgreement(intersection=both, kept_pixels=kept, foreground=foreground)
        for both, kept in zip(intersection, kept_pixels, strict=True)
    ]


def concatenate(agreements: Sequence[PatchAgreement]) -> PatchAgreement:
    """Returns one agreement of all images, in order, for instance of the batches of a data set.

    Raises:
        RequestError: there is none to join.
    """
    if not agreements:
        raise RequestError("agreements to join must be at least one; got none. Evaluate a batch.")
    return PatchAgreement(
        intersection=torch.cat([a.intersection for a in agreements]),
        kept_pixels=torch.cat([a.kept_pixels for a in agreements]),
        foreground=torch.cat([a.foreground for a in agreements]),
    )


def pooled(agreement: PatchAgreement) -> PatchSummary:
    """Returns the ratios of the counts summed over the images with foreground.

    Large objects weigh more than in `mean`.
    """
    keep = agreement.has_foreground
    total = PatchAgreement(
        intersection=agreement.intersection[keep].sum(dim=0, keepdim=True),
        kept_pixels=agreement.kept_pixels[keep].sum(dim=0, keepdim=True),
        foreground=agreement.foreground[keep].sum(dim=0, keepdim=True),
    )
    return _summary(total, agreement)


def mean(agreement: PatchAgreement) -> PatchSummary:
    """Returns the means over the images with foreground of the measures of each.

    An image whose kept patches are wholly ignored has no precision and is left out of that mean
    alone; `num_with_precision` tells.
    """
    return _summary(agreement, agreement)


def _count(is_counted: Tensor, patch_size: int) -> Tensor:
    """Returns the True pixels of every patch, int64 (B, L)."""
    batch, height, width = is_counted.shape
    rows, columns = height // patch_size, width // patch_size
    blocks = is_counted.reshape(batch, rows, patch_size, columns, patch_size)
    return blocks.sum(dim=(2, 4)).flatten(1)


def _summary(measured: PatchAgreement, images: PatchAgreement) -> PatchSummary:
    """Returns the means of `measured`, nan left out, with the image counts of `images`."""
    is_counted = images.has_foreground
    return PatchSummary(
        precision=float(measured.precision.nanmean()),
        recall=float(measured.recall.nanmean()),
        f1=float(measured.f1.nanmean()),
        iou=float(measured.iou.nanmean()),
        num_images=int(is_counted.sum()),
        num_with_precision=int((is_counted & (images.kept_pixels > 0)).sum()),
    )


def _check_masks(foreground: Tensor, ignored: Tensor | None, patch_size: int) -> None:
    """Raises RequestError unless the masks can be cut into patches."""
    for name, mask in (("foreground", foreground), ("ignored", ignored)):
        if mask is None:
            continue
        if mask.ndim != 3 or mask.dtype != torch.bool or mask.shape != foreground.shape:
            raise RequestError(
                f"{name} must be bool (B, H, W), all masks of one shape; got {mask.dtype} "
                f"{tuple(mask.shape)}. Compare with the category to get a bool mask."
            )
        if mask.device != foreground.device:
            raise RequestError(
                f"masks must be on one device; got {foreground.device} and {mask.device}. "
                "Move one to the other."
            )
    height, width = foreground.shape[1:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise RequestError(
            f"masks of {height} x {width} px do not divide into patches of {patch_size} px; "
            "give them the resize and crop of the image."
        )


def _check_kept(kept: Tensor, pixels: Tensor) -> None:
    """Raises RequestError unless `kept` names distinct patches of the images of `pixels` (B, L)."""
    batch, length = pixels.shape
    if kept.ndim != 2 or kept.dtype != torch.int64 or kept.shape[0] != batch:
        raise RequestError(
            f"kept must be int64 (B, k) with B = {batch}; got {kept.dtype} {tuple(kept.shape)}. "
            "Pass the indices from select_patches()."
        )
    if kept.device != pixels.device:
        raise RequestError(
            f"kept and coverage must be on one device; got {kept.device} and {pixels.device}. "
            "Move one to the other."
        )
    ordered = kept.sort(dim=1).values
    is_wrong = bool(((ordered < 0) | (ordered >= length)).any())
    if is_wrong or bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        what = f"an index outside 0 to {length - 1}" if is_wrong else "the same index twice"
        raise RequestError(
            f"kept must hold distinct indices from 0 to {length - 1}; found {what}. "
            "Pass the indices from select_patches()."
        )
