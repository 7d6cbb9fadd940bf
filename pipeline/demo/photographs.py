"""The demo's photographs: those of clear objects that wheels of its packages hold, and two crops.

What was added to the first seven was settled, and outlined in `annotations.json`, before any score
of it was looked at. A crop is no further photograph, though intervals over images take it for one.

Left out of what the wheels hold: the second picture of the stereo pair, the clock (blurred on
purpose: it has no edge to outline), and what shows no object apart from a background (textures,
text, microscopy, retina, moon, galaxies, drawings).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from PIL import Image

from ltrp_core.errors import RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One photograph, where it is and whose it is, as its package states it."""

    name: str
    """What the demo calls the file; `annotations.json` knows it by this name."""
    package: str
    file: str
    """Inside the package."""
    credit: str
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom px of a crop, the last two exclusive; None: all of it."""


_SKIMAGE, _SKLEARN = "skimage.data", "sklearn.datasets"
_MATPLOTLIB = "matplotlib"

PHOTOGRAPHS = (
    Photograph(
        name="astronaut.png",
        package=_SKIMAGE,
        file="astronaut.png",
        credit="Eileen Collins; NASA, public domain",
    ),
    Photograph(
        name="cameraman.png",
        package=_SKIMAGE,
        file="camera.png",
        credit="Lav Varshney, CC0",
    ),
    Photograph(
        name="cat.png",
        package=_SKIMAGE,
        file="chelsea.png",
        credit="Stefan van der Walt, CC0",
    ),
    Photograph(
        name="coffee.png",
        package=_SKIMAGE,
        file="coffee.png",
        credit="Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
    ),
    Photograph(
        name="coins.png",
        package=_SKIMAGE,
        file="coins.png",
        credit="Brooklyn Museum, no known copyright restrictions",
    ),
    Photograph(
        name="flower.jpg",
        package=_SKLEARN,
        file="images/flower.jpg",
        credit="vultilion, CC BY 2.0",
    ),
    # The squares at the sides of two wide photographs: in most of the others the object is near
    # the center, where whoever always keeps the center does well, too.
    Photograph(
        name="flower_left.png",
        package=_SKLEARN,
        file="images/flower.jpg",
        credit="vultilion, CC BY 2.0",
        box=(213, 0, 640, 427),
    ),
    Photograph(
        name="hopper.jpg",
        package=_MATPLOTLIB,
        file="mpl-data/sample_data/grace_hopper.jpg",
        # The package names no author; the Navy's portraits are public domain.
        credit="Grace Hopper; official portrait, U.S. Navy, public domain",
    ),
    Photograph(
        name="motorcycle.png",
        package=_SKIMAGE,
        file="motorcycle_left.png",
        credit="Middlebury stereo benchmark 2014, Nesic et al.",
    ),
    Photograph(
        name="palace.jpg",
        package=_SKLEARN,
        file="images/china.jpg",
        credit="danielbuechele, CC BY 2.0",
    ),
    Photograph(
        name="rocket.jpg",
        package=_SKIMAGE,
        file="rocket.jpg",
        credit="SpaceX, public domain",
    ),
    Photograph(
        name="rocket_right.png",
        package=_SKIMAGE,
        file="rocket.jpg",
        credit="SpaceX, public domain",
        box=(0, 0, 427, 427),
    ),
)


def demo_photographs() -> Iterator[tuple[str, bytes]]:
    """Yields (name, encoded bytes) of every photograph, sorted by name; crops as PNG.

    Raises:
        RequestError: scikit-image, scikit-learn or matplotlib is not installed.
    """
    for photograph in PHOTOGRAPHS:
        try:
            file = resources.files(photograph.package).joinpath(photograph.file)
            content = file.read_bytes()
        except (ImportError, OSError) as error:
            raise RequestError(
                f"the demo's {photograph.name} is in {photograph.package.split('.')[0]}, which "
                f"is not installed or lacks it ({error}); python -m pip install "
                "'ltrp-pipeline[demo]'"
            ) from error
        box = photograph.box
        yield photograph.name, content if box is None else _cropped(content, box)


def _cropped(content: bytes, box: tuple[int, int, int, int]) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.crop(box).save(buffer, "PNG")
    return buffer.getvalue()
