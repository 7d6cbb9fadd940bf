"""How well an autoencoder reconstructs images it was not trained on, in numbers and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import sample_visible
from ltrp_core.patches import patchify
from ltrp_core.views import denormalize, make_view, normalize, render_view
from stages.protocols import Images
from stages.training.ddp import Processes

MOST = 256
"""Held-out images that are measured after each epoch, at most."""
DRAWN = 6
_AT_A_TIME = 32


@dataclass(slots=True)
class HeldOutImages:
    """Evaluation views of images that are not trained on; a view is always masked alike."""

    views: Tensor
    """uint8 (M, 3, S, S)"""
    visible: dict[float, Tensor]
    """mask ratio -> int64 (M, n)"""
    patch_size: int
    ranks: Processes

    @classmethod
    def make(
        cls,
        images: Images,
        rows: NDArray[np.int64],
        mae: MaskedAutoencoder,
        mask_ratios: Sequence[float],
        seed: int,
        ranks: Processes,
    ) -> HeldOutImages:
        """Renders the first of `rows`."""
        views, keys = [], []
        for row in rows[:MOST].tolist():
            image, key = images.image(row), images.keys[row]
            view = make_view("eval", key, 0, image.shape[0], image.shape[1], seed)
            views.append(render_view(image, view, mae.config.image_size))
            keys.append(key)
        length = mae.config.num_patches
        visible = {
            ratio: torch.from_numpy(
                np.concatenate([sample_visible(key, 0, 1, length, ratio, seed) for key in keys])
            )
            for ratio in mask_ratios
        }
        return cls(torch.stack(views), visible, mae.patch_size, ranks)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Returns `error_RATIO`: mean squared error over masked patches, in normalized pixels."""
        model.eval()
        device = next(model.parameters()).device
        sums = torch.zeros(len(self.visible), dtype=torch.float64, device=device)
        for number, visible in enumerate(self.visible.values()):
            for part in self._mine():
                pixels = normalize(self.views[part].to(device))
                sums[number] += model(pixels, visible[part].to(device)).double() * len(pixels)
        errors = (self.ranks.all_reduce_sum(sums) / len(self.views)).tolist()
        return {error_name(ratio): error for ratio, error in zip(self.visible, errors, strict=True)}

    def mean_filled(self) -> dict[str, float]:
        """Returns the errors of filling each masked patch with the mean of the visible ones."""
        errors = {}
        for ratio, visible in self.visible.items():
            patches = patchify(normalize(self.views), self.patch_size)
            index = visible[..., None].expand(-1, -1, patches.shape[-1])
            colors = patches.gather(1, index).unflatten(2, (-1, 3)).mean(dim=(1, 2))
            filled = colors.repeat(1, patches.shape[-1] // 3)[:, None]
            masked = torch.ones(patches.shape[:2], dtype=torch.bool).scatter(1, visible, False)
            squared = (patches - filled).square().mean(dim=2)
            errors[error_name(ratio)] = float((squared * masked).sum() / masked.sum())
        return errors

    @torch.no_grad()
    def draw(self, mae: MaskedAutoencoder) -> NDArray[np.uint8]:
        """Returns a picture (rows, columns, 3) of the first images: photo, then for each ratio the
        visible patches and the reconstruction with them as they are."""
        device = next(mae.parameters()).device
        images = normalize(self.views[:DRAWN].to(device))
        own = mae.patchify(images)
        columns = [images]
        for visible in self.visible.values():
            some = visible[:DRAWN].to(device)
            index = some[..., None].expand(-1, -1, own.shape[-1])
            seen = own.gather(1, index)
            for empty in (torch.zeros_like(own), mae.decode(mae.encode(images, some), some)):
                columns.append(mae.unpatchify(empty.to(own.dtype).scatter(1, index, seen)))
        pictures = torch.stack([denormalize(column) for column in columns], dim=1)
        framed = torch.nn.functional.pad(pictures, (2, 2, 2, 2), value=255)
        rows = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        drawn: NDArray[np.uint8] = rows.cpu().numpy()
        return drawn

    def _mine(self) -> Iterator[slice]:
        starts = range(0, len(self.views), _AT_A_TIME)
        for start in list(starts)[self.ranks.rank :: self.ranks.size]:
            yield slice(start, start + _AT_A_TIME)


def error_name(ratio: float) -> str:
    """Returns the measure's name: `error_75` for 0.75."""
    return f"error_{100 * ratio:g}"
