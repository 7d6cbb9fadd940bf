"""The demo's photographs: those that the wheels of scikit-image and scikit-learn hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

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


_SKIMAGE, _SKLEARN = "skimage.data", "sklearn.datasets"

PHOTOGRAPHS = (
    Photograph(
        name="astronaut.png",
        package=_SKIMAGE,
        file="astronaut.png",
        credit="Eileen Collins; NASA, public domain",
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
        name="flower.jpg",
        package=_SKLEARN,
        file="images/flower.jpg",
        credit="vultilion, CC BY 2.0",
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
)


def demo_photographs() -> Iterator[tuple[str, bytes]]:
    """Yields (name, encoded bytes) of every photograph, as shipped, sorted by name.

    Raises:
        RequestError: scikit-image or scikit-learn is not installed.
    """
    for photograph in PHOTOGRAPHS:
        try:
            file = resources.files(photograph.package).joinpath(photograph.file)
            yield photograph.name, file.read_bytes()
        except (ImportError, OSError) as error:
            raise RequestError(
                f"the demo's {photograph.name} is in {photograph.package.split('.')[0]}, which "
                f"is not installed or lacks it ({error}); python -m pip install "
                "'ltrp-pipeline[demo]'"
            ) from error
