"""Weights to start a ranker from: an MAE encoder, a timm checkpoint, or an earlier ranker.

Ours, not in the paper, which trains rankers from scratch. Every tensor of a source is loaded, named
in the report as left over, or refused: nothing is matched in silence. What may be missing is the
head; what may be left over is a decoder or a classifier. Anything else that the source has and the
ranker lacks (registers, layer scale, a second prefix token) would compute something else, and is an
error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import RequestError
from ltrp_core.rankers.grid import fit_to_grid
from ltrp_core.rankers.init_sources import FoundWeights, Kind, Source, read_source
from ltrp_core.rankers.models import TRANSFORMERS, Ranker, TransformerRanker
from ltrp_core.weight_checks import check_finite, listed

_LEFT_OVER = re.compile(r"(decoder_|mask_token$|head\.|head_dist\.|pre_logits\.|classifier\.|fc\.)")
"""What a source may hold that a ranker has no use for: decoders and classifiers."""
_HEAD = "head."
_HEAD_KEYS = (_HEAD, "backbone.embedding.")
"""The head, and the layers that Mobile-Former's `cls` head alone has in front of it."""
_BACKBONE = "backbone.model."
_NORM_EPS = 1e-6
"""Of a vit_* ranker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitReport:
    """What became of every tensor of the ranker and of the source; keys are the ranker's own."""

    source: str
    kind: Kind
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """Keys of the ranker that keep their random start: none, or the head's."""
    unexpected: tuple[str, ...]
    """Keys of the source that no part of the ranker has: a decoder's or a classifier's."""
    interpolated: Mapping[str, str] = field(default_factory=dict)
    """Key -> shapes and method."""
    notes: tuple[str, ...] = ()
    sha256: str = ""
    """Of the weights file, where the source is one file on the disk."""

    def summary(self) -> str:
        """Returns the report in one line."""
        parts = [f"{len(self.loaded)} tensors loaded from {self.source} ({self.kind})"]
        parts += [f"{key} {how}" for key, how in self.interpolated.items()]
        parts += [f"fresh: {listed(self.missing)}"] if self.missing else []
        parts += [f"left over: {listed(self.unexpected)}"] if self.unexpected else []
        return "; ".join([*parts, *self.notes])


def initialize_ranker(ranker: Ranker, source: Source) -> InitReport:
    """Loads what `source` holds into `ranker`, in place; returns what became of every tensor.

    Positions that a source has learned replace the fixed table of a vit_* ranker; they stay a
    buffer, so they are saved and used but not trained. Another grid: positions are interpolated
    (`interpolate_positions`); another patch size: the embedding is resampled by timm's
    `resample_patch_embed`. A timm model that wants pixels scaled otherwise than ImageNet's mean and
    standard deviation gets an embedding that does the scaling, exactly, where patches do not
    overlap; elsewhere a note says so.

    Args:
        ranker: fresh from `create_ranker`.
        source: one of
            - what `load_mae` takes, a `MaskedAutoencoder`, or a file of its encoder alone;
            - `timm:` and a name (`timm:vit_small_patch16_224.augreg_in21k`), downloaded by timm;
            - a safetensors or torch file, or a state dict, with timm's names;
            - what `load_ranker` takes (`ranker_tiny`, a folder, `hf-hub:` and a name), or a
              `Ranker`: its head is taken too where the shapes agree.

    Raises:
        CheckpointError: the source is missing, unsafe, damaged or not finite.
        RequestError: it is of another width or depth, or of another model; the ranker is unchanged.
    """
    found = read_source(source)
    _check_sizes(found, ranker)
    state, unexpected = _named(found, ranker)
    interpolated = _fit(found, state, ranker)
    notes = [*found.notes, *_rescale_input(state, found, ranker)]
    missing = _check_keys(found, state, ranker)
    check_finite(found.source, state)
    ranker.load_state_dict({**ranker.state_dict(), **state})
    return InitReport(
        source=found.source,
        kind=found.kind,
        loaded=tuple(state),
        missing=missing,
        unexpected=unexpected,
        interpolated=interpolated,
        notes=(*notes, *_differences(found, ranker)),
        sha256=found.sha256,
    )


# ---- matching ----------------------------------------------------------------------------------


def _prefix(found: FoundWeights, ranker: Ranker) -> str:
    """Returns what a key of the source lacks in front to be the ranker's."""
    return "" if found.kind == "ranker" or isinstance(ranker, TransformerRanker) else _BACKBONE


def _check_sizes(found: FoundWeights, ranker: Ranker) -> None:
    prefix = "" if isinstance(ranker, TransformerRanker) else _BACKBONE
    theirs = _sizes(found.state, prefix if found.kind == "ranker" else "")
    ours = _sizes(ranker.state_dict(), prefix)
    name = ranker.config["name"]
    if theirs and ours and theirs != ours:
        fitting = [n for n, size in TRANSFORMERS.items() if (size.width, size.depth) == theirs]
        advice = f"ranker {fitting[0]!r} fits" if fitting else "choose another source or ranker"
        raise RequestError(
            f"{found.source} has width {theirs[0]} and depth {theirs[1]}, ranker {name!r} has "
            f"width {ours[0]} and depth {ours[1]}; {advice}"
        )
    size = TRANSFORMERS.get(name)
    if size and found.heads not in (None, size.heads):
        raise RequestError(
            f"{found.source} has {found.heads} attention heads, ranker {name!r} has {size.heads}; "
            "choose another source or ranker"
        )


def _sizes(state: Mapping[str, Tensor], prefix: str) -> tuple[int, int] | None:
    """Returns (width, depth) of a vision transformer's state, or None if it is none."""
    embedding = state.get(f"{prefix}patch_embed.proj.weight")
    pattern = re.compile(rf"{re.escape(prefix)}blocks\.(\d+)\.")
    blocks = {match[1] for match in map(pattern.match, state) if match}
    if embedding is None or not blocks:
        return None
    return embedding.shape[0], len(blocks)


def _named(found: FoundWeights, ranker: Ranker) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the source's tensors under the ranker's names, and the keys that are left over.

    Raises:
        RequestError: keys are left over that are no decoder's and no classifier's.
    """
    target, prefix = ranker.state_dict(), _prefix(found, ranker)
    state: dict[str, Tensor] = {}
    left_over, foreign = [], []
    for key, value in found.state.items():
        ours = prefix + key
        is_head = ours.startswith(_HEAD)
        if ours in target and not (is_head and not _takes_head(found, value, target[ours])):
            wanted = target[ours]
            state[ours] = value.detach().to("cpu", wanted.dtype)
        elif is_head or _LEFT_OVER.match(key) or ours.startswith(_HEAD_KEYS):
            left_over.append(key)
        else:
            foreign.append(key)
    if foreign:
        raise RequestError(
            f"{found.source} is not the model of ranker {ranker.config['name']!r}, which has no "
            f"{listed(foreign)}; choose a source of the same architecture"
        )
    return state, tuple(left_over)


def _takes_head(found: FoundWeights, theirs: Tensor, ours: Tensor) -> bool:
    """Returns whether a head is taken: of a ranker, equal, or `cls` on both sides on any grid."""
    is_cls = len(theirs) > 1 and len(ours) > 1
    fits = theirs.shape == ours.shape or (is_cls and theirs.shape[1:] == ours.shape[1:])
    return found.kind == "ranker" and fits


def _fit(found: FoundWeights, state: dict[str, Tensor], ranker: Ranker) -> dict[str, str]:
    """Carries what depends on grid and patch size over, in place; returns key -> how."""
    target, how = ranker.state_dict(), {}
    for key in [key for key in state if key.endswith("patch_embed.proj.weight")]:
        old, new = state[key], target[key]
        if old.shape != new.shape and old.shape[:2] == new.shape[:2] and old.ndim == new.ndim == 4:
            size = [int(side) for side in new.shape[2:]]
            state[key] = resample_patch_embed(old, size).to(old.dtype)
            how[key] = f"{_shape(old)} -> {_shape(new)}, resampled by the pseudo-inverse"
    table = state.get("pos_embed")
    if isinstance(ranker, TransformerRanker) and table is not None and table.ndim == 3:
        rows = table.shape[1]
        if math.isqrt(rows) ** 2 == rows:
            # Models that give their class token no position: a row of zeros is the same.
            state["pos_embed"] = F.pad(table, (0, 0, 1, 0))
            how["pos_embed"] = "a row of zeros for the class token"
    wrong = [
        f"{key} is {tuple(value.shape)} instead of {tuple(target[key].shape)}"
        for key, value in state.items()
        if value.shape != target[key].shape
        and not (key.endswith("pos_embed") and value.shape[2:] == target[key].shape[2:])
        and not key.startswith(_HEAD)
    ]
    if wrong:
        raise RequestError(
            f"{found.source} does not fit ranker {ranker.config['name']!r} with a grid of "
            f"{ranker.grid} and patches of {ranker.patch_size} px: {listed(wrong)}; choose a "
            "source of the same architecture and sizes"
        )
    fitted, carried = fit_to_grid(state, ranker)
    state.update(fitted)
    for key, words in carried.items():
        how[key] = f"{how[key]}; {words}" if key in how else words
    return how


def _check_keys(
    found: FoundWeights, state: Mapping[str, Tensor], ranker: Ranker
) -> tuple[str, ...]:
    """Returns the keys that stay fresh: the head's.

    Raises:
        RequestError: others are missing too.
    """
    missing = [key for key in ranker.state_dict() if key not in state]
    needed = [key for key in missing if not key.startswith(_HEAD_KEYS)]
    if needed:
        raise RequestError(
            f"{found.source} lacks {listed(needed)} of ranker {ranker.config['name']!r}; choose a "
            "source of the same architecture"
        )
    return tuple(missing)


# ---- pixels ------------------------------------------------------------------------------------


def _rescale_input(state: dict[str, Tensor], found: FoundWeights, ranker: Ranker) -> list[str]:
    """Makes the embedding take pixels scaled as ImageNet's; returns what to note.

    With x the ranker's pixels, the source's are `x * a + b` per channel: W(x * a + b) is an
    embedding with weights `W * a` and a bias larger by the sum of `W * b`. Only where no pixel is
    padding, which is 0 before the change and after it.
    """
    if found.mean == IMAGENET_MEAN and found.std == IMAGENET_STD:
        return []
    scaling = f"mean {found.mean} and deviation {found.std}"
    prefix = _prefix(found, ranker)
    weight_key, bias_key = (f"{prefix}patch_embed.proj.{end}" for end in ("weight", "bias"))
    if weight_key not in state or bias_key not in state or not _tiles(ranker, prefix):
        return [f"it was trained on pixels scaled by {scaling}, and gets ImageNet's"]
    theirs, ours = (
        torch.tensor(pair, dtype=torch.float64).view(2, 1, 3, 1, 1)
        for pair in ((found.mean, found.std), (IMAGENET_MEAN, IMAGENET_STD))
    )
    weight = state[weight_key].double()
    shift = (weight * ((ours[0] - theirs[0]) / theirs[1])).sum(dim=(1, 2, 3))
    state[bias_key] = (state[bias_key].double() + shift).to(state[bias_key].dtype)
    state[weight_key] = (weight * (ours[1] / theirs[1])).to(state[weight_key].dtype)
    return [f"patch_embed.proj rescaled: trained on pixels scaled by {scaling}"]


def _tiles(ranker: Ranker, prefix: str) -> bool:
    """Returns whether the embedding's windows are the patches: no overlap, no padding."""
    projection: Any = ranker.get_submodule(f"{prefix}patch_embed.proj")
    tiles: bool = (
        isinstance(projection, torch.nn.Conv2d)
        and projection.stride == projection.kernel_size
        and set(projection.padding) == {0}
    )
    return tiles


def _differences(found: FoundWeights, ranker: Ranker) -> list[str]:
    if found.norm_eps in (None, _NORM_EPS) or not isinstance(ranker, TransformerRanker):
        return []
    return [f"its norms have eps {found.norm_eps:g}, the ranker's {_NORM_EPS:g}"]


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape)
