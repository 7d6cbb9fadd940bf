"""DPC-KNN: density peaks clustering with k nearest neighbors, per image (Sec. 3.4, Tab. 1e).

The answer is a set of indices, and an index flips when one comparison flips. So every comparison
here is exact, and the result is the same bits on every run, device and batch composition:

- Points are rounded, per image, to integers of 15 bits times a power-of-two step. Their products
  have 30 bits, and sums of them stay below 2^53, so float64 holds the Gram matrix, the squared
  distances and the sums of the nearest ones exactly, in whatever order a device adds them up.
  Float32 with the same formula loses all digits between nearly flat patches; here equal patches
  are at distance 0. No mean needs to be subtracted first.
- Densities exp(-m) are compared through m, an integer up to a factor common to the image.
- Centers are ordered by log(rho * delta) = log(delta) - m, with a logarithm made of IEEE additions,
  products and divisions only (libraries' own `log` and `exp` differ by an ulp between devices).
  It cannot underflow, so rho * delta orders far outliers as well.

The rounding moves a value by at most half a step. Pixels normalized with the ImageNet mean and
standard deviation are all below 4: half a step is 2^-14, 0.36 % of one 8-bit level, or less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ltrp_core.errors import RequestError

_BITS = 15
_MAX_TERMS = 2 ** (53 - 2 * (_BITS + 1))
"""A squared difference is at most (2 * 2^15)^2 steps², so this many of them sum below 2^53."""
_LARGEST, _SMALLEST = 2.0**100, 2.0**-100
"""Sizes between which step² neither overflows nor vanishes; smaller images count as constant 0."""
_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Elements of (B, L, L) at a time: in cache on a CPU, a quarter of a GiB per matrix on a GPU."""
_BLOCK = 256
"""Rows of the Gram matrix at a time: with four blocks 3/8 of the products need not be made."""


class Clusters(NamedTuple):
    """What `find_clusters` returns."""

    assignment: Tensor
    """int64 (B, L): the index into `centers` of each patch's cluster."""
    centers: Tensor
    """int64 (B, clusters): distinct patch indices, rho * delta descending, then index ascending."""
    squared_distance: Tensor
    """float64 (B, L): d² from each patch to its own center, d = ||x - c|| / sqrt(C)."""


def dpc_knn(points: Tensor, clusters: int, neighbors: int = 5) -> tuple[Tensor, Tensor]:
    """Returns the cluster (B, L) of every patch and the centers (B, clusters): Sec. 3.4.

    Method: `d_ij = ||x_i - x_j|| / sqrt(C)`; `rho_i = exp(-mean of the 5 smallest d_i.²)`, i itself
    included; `delta_i = min d_ij over the denser j`, or the image's largest distance if none is
    denser; centers = the largest `rho * delta`; each patch joins its nearest center (the earlier
    one of equals), each center itself. Differs from the released code: equal densities are ordered
    by index (the lower is denser) instead of by random noise, and distances are exact.

    Args:
        points: (B, L, C) of a floating type, finite; for patches, their raw normalized pixels.
        clusters: how many, 1 to L.
        neighbors: how many of the smallest distances make the density, 1 to L.

    Returns:
        assignment: int64 (B, L), 0 to clusters - 1: positions in `centers`; no cluster is empty.
        centers: int64 (B, clusters), distinct patch indices, rho * delta descending, then index.

    Raises:
        RequestError: wrong shape or type, non-finite points, clusters or neighbors out of range.

    >>> points = torch.tensor([[[0.0], [0.1], [9.0], [9.1], [0.2]]])
    >>> assignment, centers = dpc_knn(points, clusters=2, neighbors=2)
    >>> assignment.tolist(), centers.tolist()
    ([[0, 0, 1, 1, 0]], [[0, 2]])
    """
    found = find_clusters(points, clusters, neighbors)
    return found.assignment, found.centers


def find_clusters(points: Tensor, clusters: int, neighbors: int = 5) -> Clusters:
    """Returns what `dpc_knn` does, and the squared distance of every patch to its center."""
    return find_clusters_at(points, [clusters], neighbors)[0]


@torch.no_grad()
def find_clusters_at(points: Tensor, counts: Sequence[int], neighbors: int = 5) -> list[Clusters]:
    """Returns `find_clusters` for each of several numbers of clusters, (B, L, C) points.

    Distances, densities and the order of the centers do not depend on that number: found once, they
    make every further number cheap.
    """
    for clusters in counts:
        _check(points, clusters, neighbors)
    per_image = points.shape[1] ** 2
    chunk = max(1, _CHUNK_ELEMENTS.get(points.device.type, 2**20) // per_image)
    parts = [_find_clusters(part, counts, neighbors) for part in torch.split(points, chunk)]
    return [
        Clusters(*(torch.cat(field) for field in zip(*of_count, strict=True)))
        for of_count in zip(*parts, strict=True)
    ]


def _find_clusters(points: Tensor, counts: Sequence[int], neighbors: int) -> list[Clusters]:
    steps, step = _quantize(points)
    distance2 = _squared_distances(steps)  # in steps², exact integers
    nearest2 = distance2.topk(neighbors, dim=2, largest=False, sorted=False).values.sum(dim=2)
    # Unlike everything before, this is rounded: one product and one quotient, equal for equal sums.
    mean2 = nearest2 * step.square() / (neighbors * points.shape[2])
    # The unit of delta is left out: it shifts all logarithms of an image alike.
    log_gamma = 0.5 * _log(_delta2(distance2, nearest2)) - mean2
    order = log_gamma.argsort(dim=1, descending=True, stable=True)
    found = []
    for clusters in counts:
        assignment, to_center2 = _assign(distance2, order[:, :clusters])
        squared = to_center2 * step.square() / points.shape[2]
        found.append(Clusters(assignment, order[:, :clusters], squared))
    return found


def _assign(distance2: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cluster (B, L) of each patch, and its squared distance to that center."""
    images = torch.arange(len(centers), device=centers.device).unsqueeze(1)
    assignment = distance2[images, centers].argmin(dim=1)  # argmin: the first of equals
    own = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    assignment.scatter_(1, centers, own)
    return assignment, distance2.gather(2, centers.gather(1, assignment).unsqueeze(2)).squeeze(2)


def _quantize(points: Tensor) -> tuple[Tensor, Tensor]:
    """Returns integers of at most 2^15 in float64 (B, L, C), and their step (B, 1), a power of 2.

    Powers of two come from `frexp` and exact divisions: `exp2` may be an ulp off on a device.
    """
    exact = points.to(torch.float64)
    largest = torch.maximum(exact.amax(dim=(1, 2)), -exact.amin(dim=(1, 2))).clamp_min(_SMALLEST)
    step = largest / torch.frexp(largest).mantissa * 2.0**-_BITS
    return (exact / step.view(-1, 1, 1)).round_(), step.unsqueeze(1)


def _squared_distances(steps: Tensor) -> Tensor:
    """Returns ||a - b||² (B, L, L) of integer points (B, L, C): exact, see the file's docstring."""
    norm2 = steps.square().sum(dim=2)
    distance2 = norm2.unsqueeze(2) + norm2.unsqueeze(1)
    for start in range(0, steps.shape[1], _BLOCK):
        end = start + _BLOCK
        # From the diagonal on; as every number is exact, the rest is the mirror image to the bit.
        rows = distance2[:, start:end, start:]
        rows.baddbmm_(steps[:, start:end], steps[:, start:].transpose(1, 2), alpha=-2.0)
        distance2[:, end:, start:end] = distance2[:, start:end, end:].transpose(1, 2)
    return distance2


def _delta2(distance2: Tensor, nearest2: Tensor) -> Tensor:
    """Returns the squared distance (B, L) to the nearest denser patch, the largest if none is.

    Denser: a smaller `nearest2` (B, L), then a lower index.
    """
    by_density = nearest2.argsort(dim=1, stable=True)
    rank = by_density.argsort(dim=1)
    is_not_denser = rank.unsqueeze(1) >= rank.unsqueeze(2)
    delta2 = distance2.masked_fill(is_not_denser, math.inf).amin(dim=2)
    return torch.where(rank == 0, distance2.amax(dim=(1, 2)).unsqueeze(1), delta2)


def _log(x: Tensor) -> Tensor:
    """Returns log(x) of x >= 0 in float64, the same bits on every device that follows IEEE 754.

    x = f * 2^e with f within sqrt(2) of 1, and log f = 2 artanh((f - 1) / (f + 1)), whose series
    has reached 1 ulp after 11 terms. Each operation is its own kernel, so nothing is fused.
    """
    mantissa, exponent = torch.frexp(x)
    is_low = mantissa < math.sqrt(0.5)
    f = torch.where(is_low, 2.0 * mantissa, mantissa)
    t = (f - 1.0) / (f + 1.0)
    t2 = t * t
    series = torch.zeros_like(x)
    for n in range(23, 0, -2):
        series = series * t2
        series = series + 1.0 / n
    log = 2.0 * t * series
    log = log + (exponent - is_low.to(exponent.dtype)).to(x.dtype) * math.log(2.0)
    return torch.where(x > 0.0, log, -math.inf)


def _check(points: Tensor, clusters: int, neighbors: int) -> None:
    """Raises RequestError unless the arguments of `dpc_knn` fit each other."""
    if points.ndim != 3 or not points.is_floating_point() or 0 in points.shape[1:]:
        raise RequestError(
            "points must be (B, L, C) of a floating type with L, C >= 1; got "
            f"{points.dtype} {tuple(points.shape)}. Pass patches as (images, patches, values)."
        )
    length, channels = points.shape[1:]
    for name, count in (("clusters", clusters), ("neighbors", neighbors)):
        if not 1 <= count <= length:
            raise RequestError(
                f"{name} must be from 1 to L = {length}; got {count}. "
                f"Ask for at most as many {name} as there are patches."
            )
    if neighbors * channels > _MAX_TERMS:
        raise RequestError(
            f"neighbors * C must be at most {_MAX_TERMS} for exact sums; got {neighbors} * "
            f"{channels}. Use fewer neighbors or shorter points."
        )
    if len(points) == 0:
        return
    lowest, highest = points.detach().aminmax()  # without a copy; both nan if any point is
    if not (bool(lowest > -_LARGEST) and bool(highest < _LARGEST)):
        raise RequestError(
            f"points must be finite and below {_LARGEST:.0e} in size; found others. "
            "Look for damaged images or diverged features."
        )
