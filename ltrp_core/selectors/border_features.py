"""Border contrast of what an encoder sees: which patches are unlike all at the edge (ours).

As `border` does with colors, with the features of a masked autoencoder's last block, all patches
visible. Over 146 photographs it finds a little less at few patches than colors do and a little more
at half of them; it costs a pass of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.linear import frozen_weights, use_fast_linears
from ltrp_core.mae import load_mae
from ltrp_core.mae.files import find_weights, locate
from ltrp_core.precision import float32_kept
from ltrp_core.selectors.base import ScoreSelector, SelectorOptions, SelectorSpec
from ltrp_core.selectors.border import edge_places


def feature_contrast(features: Tensor) -> Tensor:
    """Returns how far each patch's features are from the nearest edge patch's, (B, L) >= 0.

    The Euclidean distance; 0 on the edge of the grid.

    Args:
        features: (B, L, D), L = g * g, row by row.

    Raises:
        RequestError: L is no square.

    >>> features = torch.zeros(1, 9, 2)
    >>> features[0, 4] = torch.tensor([3.0, 4.0])
    >>> feature_contrast(features)[0, [0, 4]]
    tensor([0., 5.])
    """
    is_edge = edge_places(features.shape[1], features.device)
    # By differences: the faster form by products depends on the images beside an image.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(features, features[:, is_edge], compute_mode=exact).amin(dim=2)


class BorderFeaturesSelector(ScoreSelector):
    """The patches whose features differ most from those at the edge of the image."""

    def __init__(self, options: SelectorOptions) -> None:
        """Loads the masked autoencoder; its decoder is not used.

        Raises:
            CheckpointError: it cannot be used.
            RequestError: the image or patch size is not its own.
        """
        mae = load_mae(options.weights, normalized_target="warn")
        super().__init__(mae.config.image_size, mae.patch_size, options.homogeneous)
        for name, own in (("image_size", self.image_size), ("patch_size", self.patch_size)):
            if getattr(options, name) not in (0, own):
                raise RequestError(
                    f"--{name.replace('_', '-')} is {getattr(options, name)}, and the masked "
                    f"autoencoder {options.weights} takes {own}; leave the option out"
                )
        self.mae = mae.eval().to(options.device)
        use_fast_linears(self.mae)

    @torch.no_grad()
    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the contrast of the features of each patch.

        One image at a time: the number of rows decides how a matrix product is summed up.
        """
        del keys
        visible = torch.arange(self.grid**2, device=images.device)[None]
        found = [torch.empty((0, self.grid**2), device=images.device)]
        with frozen_weights(), float32_kept():
            for image in images.float().split(1) if len(images) else ():
                found.append(feature_contrast(self.mae.encode(image, visible)[:, 1:].float()))
        return torch.cat(found)


def _weights_file(source: str) -> Path:
    return find_weights(locate(source))


BORDER_FEATURES = SelectorSpec(
    make=BorderFeaturesSelector,
    help="most unlike the edge to the encoder of a masked autoencoder first",
    weights_file=_weights_file,
)
