"""Border contrast the slow way: one patch, one edge patch, one pixel at a time."""

from __future__ import annotations

import math

from torch import Tensor

STD = (0.229, 0.224, 0.225)


def mean_color(image: Tensor, patch_size: int, row: int, col: int) -> list[float]:
    """Returns the mean of each channel of a patch of `image` (3, S, S), in RGB from 0 to 1."""
    color = []
    for channel in range(3):
        total = 0.0
        for y in range(row * patch_size, (row + 1) * patch_size):
            for x in range(col * patch_size, (col + 1) * patch_size):
                total += float(image[channel, y, x]) * STD[channel]
        color.append(total / patch_size**2)
    return color


def feature_contrast(features: list[list[float]]) -> list[float]:
    """Returns the distance of every patch's features to those of the nearest one at the edge."""
    grid = round(math.sqrt(len(features)))
    edge = [f for i, f in enumerate(features) if {0, grid - 1} & {i // grid, i % grid}]
    return [min(math.dist(own, other) for other in edge) for own in features]


def border_contrast(image: Tensor, patch_size: int) -> list[float]:
    """Returns the distance of every patch to the nearest one at the edge, row by row."""
    grid = image.shape[-1] // patch_size
    colors = {
        (row, col): mean_color(image, patch_size, row, col)
        for row in range(grid)
        for col in range(grid)
    }
    edge = [place for place in colors if {0, grid - 1} & set(place)]
    return [min(math.dist(color, colors[other]) for other in edge) for color in colors.values()]
