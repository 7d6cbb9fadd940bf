"""How a classifier wants its pixels: it belongs to the weights, and a wrong one costs accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD

_LEVELS = 255.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """(x - mean) / std of pixels x from 0 to 255, by channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of_shares(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """Returns the normalization whose mean and std are of pixels from 0 to 1."""
        red, green, blue = (value * _LEVELS for value in mean)
        of_red, of_green, of_blue = (value * _LEVELS for value in std)
        return cls(mean=(red, green, blue), std=(of_red, of_green, of_blue))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Returns float32 of pixels (B, 3, H, W) from 0 to 255."""
        pixels = pixels.float()
        return (pixels - self.color(pixels)) / pixels.new_tensor(self.std).view(3, 1, 1)

    def color(self, like: Tensor) -> Tensor:
        """Returns the mean color (3, 1, 1), which the classifier sees as 0, where `like` is."""
        return like.new_tensor(self.mean).view(3, 1, 1)

    def __str__(self) -> str:
        mean, std = (
            f"{values[0]:g}" if len(set(values)) == 1 else f"[{' '.join(f'{v:g}' for v in values)}]"
            for values in (self.mean, self.std)
        )
        return f"(x - {mean}) / {std}"


NORMALIZATIONS: dict[str, Normalization] = {
    "imagenet": Normalization.of_shares(IMAGENET_MEAN, IMAGENET_STD),
    "half": Normalization.of_shares((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "tf-lite": Normalization(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
}
"""By name. `half` takes pixels to -1 .. 1; `tf-lite` is that of TensorFlow's EfficientNet-Lite."""
