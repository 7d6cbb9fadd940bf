"""The gallery: one card per image, and the lists that the slider draws from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.errors import RequestError
from pipeline.plots import heat_map
from stages.evaluation.sources import (
    BORDER,
    RANDOM,
    TEACHER,
    VARIANCE,
    is_selection,
    without_prior,
)
from stages.report import GalleryImage, Kept

_BUTTONS = {BORDER: "Border", VARIANCE: "Variance"}
"""What a source is called where it cannot be called by its name."""
_PICTURES = ("photo", "reconstruction", "reconstruction_without")
_MAPS_BESIDE, _BUTTONS_BESIDE = 5, 8
"""More maps than these are below the panels, and more sources than these are a menu: a phone's
screen is no wider"""
_LEAST_RANGE = 1.0
"""In 8-bit levels: a difference below it is shown as dark as it is."""


def check_gallery(gallery: Sequence[GalleryImage], grid: int) -> None:
    """Checks that the arrays of the gallery fit a grid and one another.

    Raises:
        RequestError: they do not; the message names the image.
    """
    for image in gallery:
        _check_pictures(image)
        _check_patches(image, grid)
        sizes = [
            {label: _sizes(kept) for label, kept in i.selections.items()}
            for i in (image, gallery[0])
        ]
        if sizes[0] != sizes[1]:
            raise RequestError(
                f"{image.key!r} keeps {sizes[0]} patches by keep ratio, the first image "
                f"{sizes[1]}; show images of one selection"
            )


def gallery_context(gallery: Sequence[GalleryImage], grid: int, folder: Path) -> dict[str, Any]:
    """Writes the pictures into `folder`; returns what the template is filled with."""
    labels = list(gallery[0].selections) if gallery else []
    known = (*map(without_prior, labels), TEACHER, BORDER, VARIANCE, RANDOM)
    others = [source for source in known if any(source in i.orders for i in gallery)]
    sources = [*labels, *others]
    stored = [_stored(gallery[0].selections[label]) for label in labels] + [[] for _ in others]
    buttons = {choice["k"]: choice for of_source in reversed(stored) for choice in of_source}
    return {
        "cards": [_card(image, grid, folder, number) for number, image in enumerate(gallery)],
        "has_outlines": any(image.foreground is not None for image in gallery),
        "stored": [buttons[k] for k in sorted(buttons)],
        "sources": [(number, _button(source)) for number, source in enumerate(sources)],
        "is_menu": len(sources) > _BUTTONS_BESIDE,
        "beside": labels if len(labels) > 1 else [],
        "shown": {
            "grid": grid,
            "stored": [[(choice["k"], choice["best"]) for choice in own] for own in stored],
            "cards": [
                {
                    "orders": [_list(image.orders.get(source)) for source in sources],
                    "stored": [
                        [
                            _list(kept.patches)
                            for _, kept in sorted(image.selections[source].items())
                        ]
                        if source in image.selections
                        else []
                        for source in sources
                    ],
                }
                for image in gallery
            ],
        },
    }


def _check_pictures(image: GalleryImage) -> None:
    shape = image.photo.shape
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
        raise RequestError(f"{image.key!r}: photo must be (S, S, 3); got {shape}")
    for name in _PICTURES:
        picture = getattr(image, name)
        if picture.shape != shape or picture.dtype != np.uint8:
            raise RequestError(
                f"{image.key!r}: {name} must be uint8 {shape}; got {picture.dtype} {picture.shape}"
            )
    for name in ("foreground", "difference"):
        picture = getattr(image, name)
        if picture is not None and picture.shape != shape[:2]:
            raise RequestError(f"{image.key!r}: {name} must be {shape[:2]}; got {picture.shape}")


def _check_patches(image: GalleryImage, grid: int) -> None:
    length = grid**2
    for name, scores in image.scores.items():
        if scores.shape != (length,) or not np.isfinite(scores).all():
            raise RequestError(
                f"{image.key!r}: {name} must be {length} finite scores, one per patch of the "
                f"{grid} x {grid} grid; got shape {scores.shape}"
            )
    for name, order in image.orders.items():
        if not np.array_equal(np.sort(order), np.arange(length)):
            raise RequestError(f"{image.key!r}: the order of {name} must be all {length} patches")
    kept = [one.patches for own in image.selections.values() for one in own.values()]
    indices = np.concatenate([image.visible, [image.left_out], *kept])
    if indices.min() < 0 or indices.max() >= length:
        raise RequestError(f"{image.key!r}: patches must be from 0 to {length - 1}")


def _sizes(kept: Mapping[float, Kept]) -> dict[float, tuple[int, int]]:
    """Returns keep ratio -> (k, how many of them are homogeneous)."""
    return {ratio: (len(one.patches), one.num_homogeneous) for ratio, one in sorted(kept.items())}


def _stored(kept: Mapping[float, Kept]) -> list[dict[str, Any]]:
    """Returns each stored selection's keep ratio, its k, and how many of the k are best patches."""
    return [
        {"label": f"{100 * ratio:g} %", "k": k, "best": k - homogeneous}
        for ratio, (k, homogeneous) in _sizes(kept).items()
    ]


def _button(source: str) -> str:
    return _BUTTONS.get(source, source[:1].upper() + source[1:])


def _card(image: GalleryImage, grid: int, folder: Path, number: int) -> dict[str, Any]:
    """Writes the pictures of one image; returns their names and the squares drawn over them."""

    def save(name: str, pixels: NDArray[np.uint8]) -> str:
        path = folder / f"{number:04d}-{name}"
        Image.fromarray(pixels).save(path, quality=88)  # PNG has no quality and ignores it
        return path.name

    hidden = np.setdiff1d(np.arange(grid**2), image.visible)
    outline = None
    if image.foreground is not None:
        outline = f"{number:04d}-outline.svg"
        (folder / outline).write_text(_outline_svg(image.foreground), encoding="utf-8")
    brightest = _brightest(image, grid)
    maps = [
        (
            source,
            caption,
            save(f"map-{place}.png", heat_map(image.scores[source], grid)) if there else None,
        )
        for place, (source, caption) in enumerate(_maps(image))
        if (there := source in image.scores) or source == TEACHER
    ]
    below = [m for m in maps if len(maps) > _MAPS_BESIDE and is_selection(m[0])]
    return {
        "key": image.key,
        "side": image.photo.shape[0],
        "photo": save("photo.jpg", image.photo),
        "reconstruction": save("reconstruction.jpg", image.reconstruction),
        "without": save("without.jpg", image.reconstruction_without),
        "difference": save("difference.jpg", _dark_to_bright(image.difference / brightest)),
        "brightest": f"{brightest:.2g}" if brightest < 10 else f"{brightest:.0f}",
        "maps": [m[1:] for m in maps if m not in below],
        "maps_below": [m[1:] for m in below],
        "outline": outline,
        "num_visible": len(image.visible),
        "hidden": "".join(f"M{i % grid} {i // grid}h1v1h-1z" for i in hidden),
        "left_out": (image.left_out % grid, image.left_out // grid),
    }


def _maps(image: GalleryImage) -> list[tuple[str, str]]:
    """Returns the sources whose maps are shown, and their captions."""
    own = [
        (label, f"Scores: {label}" if " " in label else f"{_button(label)}'s scores")
        for label in image.selections
    ]
    plain = [(without_prior(x), f"Scores: {x}, without prior") for x in image.selections]
    stored = [(BORDER, "Border contrast"), (VARIANCE, "Patch variance")]
    return [(TEACHER, "Teacher's scores"), *own, *plain, *stored]


def _brightest(image: GalleryImage, grid: int) -> float:
    """Returns the difference that is shown brightest: nearly the largest where scores look.

    In the masked patches, that is: in the one that was left out, a patch meets a guess of it.
    """
    side = len(image.difference) // grid
    blocks = image.difference.reshape(grid, side, grid, side).swapaxes(1, 2)
    masked = np.delete(blocks.reshape(grid**2, -1), image.visible, axis=0)
    return max(float(np.quantile(masked, 0.995)), _LEAST_RANGE)


def _dark_to_bright(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns the colors (S, S, 3) of values (S, S) from 0, black, to 1, pale yellow."""
    from matplotlib import colormaps

    colors: NDArray[np.uint8] = colormaps["magma"](values, bytes=True)[..., :3]
    return colors


def _outline_svg(is_foreground: NDArray[np.bool_]) -> str:
    """Returns the border between True and False as an SVG, pixel-exact, white on black."""
    side = len(is_foreground)
    padded = np.pad(is_foreground, 1)
    # Entry (r, c) of `across`: a border above pixel (r, c); of `along`: left of it.
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    along = padded[1:-1, 1:] != padded[1:-1, :-1]
    path = "".join(f"M{start} {row}h{n}" for row, start, n in _runs(across))
    path += "".join(f"M{column} {start}v{n}" for column, start, n in _runs(along.T))
    strokes = "".join(
        f'<path d="{path}" stroke="{color}" stroke-width="{width}"/>'
        for color, width in (("#000", 3.5), ("#fff", 1.75))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" width="{side}" '
        'height="{0}" fill="none" stroke-linecap="square"><style>path{{vector-effect:'
        "non-scaling-stroke}}</style>{1}</svg>\n"
    ).format(side, strokes)


def _runs(is_set: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Returns (row, first column, length) of every run of True."""
    steps = np.diff(np.pad(is_set, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return list(
        zip(rows.tolist(), starts.tolist(), (ends - starts).tolist(), strict=True),
    )


def _list(patches: NDArray[np.int64] | None) -> list[int] | None:
    return None if patches is None else patches.tolist()
