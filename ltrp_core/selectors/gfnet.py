"""GFNet: a glance, then a few windows that a policy looks at (Wang et al., NeurIPS 2020).

A ResNet-50 sees the whole image small; a recurrent policy says from its map where the next window
is, a second ResNet-50 sees that, and so on. Score of a patch: how much of it the windows saw,
summed over the steps; equal ones by nearness to the last window's middle. So the order says where
the network looked, not what it found. The code that the LTRP authors compared with keeps the rows
of one 8 x 8 window, at most 64 patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltrp_core.errors import CheckpointError
from ltrp_core.mae.files import read_pickled
from ltrp_core.selectors.base import PATCH_SIZE, SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    IMAGENET,
    Layout,
    NetworkScores,
    Opened,
    put_into,
    renamed,
    untrained,
    weights_path,
)
from ltrp_core.weight_sources import UNTRAINED

_STATES = {"model_prime_state_dict": "glance", "model_state_dict": "focus", "policy": "policy"}
"""Keys of a checkpoint and the parts of our module; its `fc` is a classifier, and not needed."""
_WINDOW, _STEPS = 96, 5
_NEARER = 1e-4
"""What a patch's width of distance is worth: less than 1/256, the least that a window can add."""


class Policy(nn.Module):
    """Where to look next; its parts are called as upstream's."""

    def __init__(self, state: int, width: int = 1024) -> None:
        """Makes the layers for states (1, state)."""
        super().__init__()
        self.state_encoder = nn.Sequential(
            nn.Linear(state, 2048), nn.ReLU(), nn.Linear(2048, width), nn.ReLU()
        )
        self.gru = nn.GRU(width, width)
        self.actor = nn.Sequential(nn.Linear(width, 2), nn.Sigmoid())
        self.critic = nn.Sequential(nn.Linear(width, 1))

    def forward(self, state: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns row and column, 0 to 1, and the memory."""
        out, memory = self.gru(self.state_encoder(state)[None], memory)
        return self.actor(out[0])[0], memory


class GlanceAndFocus(nn.Module):
    """Both networks and the policy."""

    def __init__(self, window: int, steps: int, model: str = "resnet50", width: int = 1024) -> None:
        """Makes the parts.

        Args:
            window: side of what is looked at, and of the whole image made small, in px.
            steps: glance and windows.
            model: of timm.
            width: of the policy.
        """
        super().__init__()
        self.window, self.steps = window, steps
        glance: Any = timm.create_model(model)
        self.glance, self.focus = glance, timm.create_model(model)
        channels: int = glance.num_features
        self.policy = Policy(channels * (-(-window // 32)) ** 2, width)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the upper left corner of each window in px, int64 (steps - 1, 2)."""
        small = (self.window, self.window)
        seen = F.interpolate(image, small, mode="bicubic", align_corners=True)
        parts: Any = self
        state = parts.glance.forward_features(seen).flatten(1)
        memory = None
        corners = []
        for _ in range(1, self.steps):
            place, memory = self.policy(state, memory)
            corner = (place * (image.shape[-1] - self.window)).floor().long()
            corners.append(corner)
            row, column = corner.tolist()
            window = image[..., row : row + self.window, column : column + self.window]
            state = parts.focus.forward_features(window).flatten(1)
        return torch.stack(corners)


def seen_shares(corners: Tensor, window: int, grid: int, patch: int) -> Tensor:
    """Returns how much of each patch each window covers, (steps, L), 0 to 1.

    Args:
        corners: (steps, 2), rows and columns in px.
        window: side in px.
        grid: g.
        patch: p in px.
    """
    start = torch.arange(grid, device=corners.device) * patch
    begin = torch.maximum(start, corners[..., None])
    end = torch.minimum(start + patch, corners[..., None] + window)
    covered = (end - begin).clamp_min(0).float() / patch
    return (covered[:, 0, :, None] * covered[:, 1, None]).flatten(1)


class GFNetSelector(NetworkScores):
    """Patches by how much of them the windows saw."""

    def score(self, image: Tensor) -> Tensor:
        """Returns the sum over windows, then what is near the last one first."""
        model: Any = self.network.module
        corners = model(image)
        seen = seen_shares(corners, model.window, self.grid, self.patch_size).sum(dim=0)
        middle = (corners[-1] + model.window / 2) / self.patch_size - 0.5
        line = torch.arange(self.grid, device=image.device)
        far = torch.hypot(line[:, None] - middle[0], line - middle[1]).flatten()
        return (seen - _NEARER * far)[None]


def make(options: SelectorOptions) -> GFNetSelector:
    """Returns GFNet.

    Raises:
        CheckpointError: the weights cannot be used.
        RequestError: sizes that do not fit each other.
    """
    side = options.image_size or 224
    if options.weights == UNTRAINED:
        with untrained(options.seed):
            module = GlanceAndFocus(_WINDOW, _STEPS)
    else:
        module = _from_file(weights_path(options.weights))
    return GFNetSelector(Opened(module, IMAGENET, side, options.patch_size or PATCH_SIZE), options)


def _from_file(path: Path) -> GlanceAndFocus:
    content = read_pickled(path)
    name, window, steps = (content.get(key) for key in ("model_name", "patch_size", "flops"))
    if name != "resnet50" or not isinstance(window, int) or not isinstance(steps, Sequence):
        raise CheckpointError(
            f"{path} is no checkpoint of GFNet with ResNet-50 (model_name, patch_size, flops, "
            f"{', '.join(_STATES)}); pass one of those"
        )
    module = GlanceAndFocus(window, len(steps))
    for key, part in _STATES.items():
        state = content.get(key)
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{path} has no {key}; pass a whole checkpoint of GFNet")
        put_into(getattr(module, part), f"gfnet's {part}", path, renamed(state, Layout()))
    return module


GFNET = SelectorSpec(
    make=make,
    help="where GFNet looked, first and longest",
    weights_file=weights_path,
    paper="Wang et al., NeurIPS 2020",
    uses_labels=True,
    takes="GFNet's checkpoint of ResNet-50 at 96 or 128 px",
    keeps_homogeneous=False,
)
