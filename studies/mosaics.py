"""Mosaics with one class for a classifier and others that it does not name: docs/unbiased.md.

    python studies/mosaics.py photos/measure.tar --out mosaics \
        --weights efficientnet-lite0-57934424.pth

A mosaic is two to four photographs of different classes in one image. Cuts at random places make
cells of unequal sizes; every photograph fills its cell, so there is no background, and what is not
an object is as rich as it was. Photographs are called FOLDER/CLASS/NAME, as in Caltech-101.

Of each mosaic one photograph is the classifier's `top` one, the rest are the `other` ones. Which it
is says a frozen classifier: it names a class for the whole mosaic; top is the photograph that,
alone in its place with the rest filled in the color that the classifier sees as 0, is of that
class too. If none or several are, it is that one of them with the greatest logit of that class.

An object is the part in the cell of the ellipse about the photograph's middle, 70 % as wide and as
high: Caltech-101's objects are in the middle of their photographs, and outlines are not at hand.
Its box is the whole cell (`evaluate patches --foreground boxes`): what of each photograph is kept.

Everything is a function of the photographs, the options and the seed; a mosaic depends on its
number alone, not on how many there are. `OUT/mosaics.tar` has PNGs and what they are made of as
JSON, `OUT/all.json`, `top.json` and `other.json` are annotations for `evaluate patches`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.classifiers import FrozenClassifier, open_classifier
from pipeline.inputs.images import EXTENSIONS
from pipeline.inputs.keys import sample_key

PATH = click.Path(path_type=Path)
SIDE = 224
CUT = (0.3, 0.7)
"""Where a cell is cut, as a share of its longer side."""
ZOOM = (0.6, 0.9)
"""Share of the largest window of the cell's shape that is taken of a photograph."""
ELLIPSE = 0.7
GROUPS = ("all", "top", "other")
ONE_CLASS = {"Faces_easy": "Faces"}
"""Folders of one kind of object."""
NO_CLASS = ("BACKGROUND_Google",)


class Cell(NamedTuple):
    """A rectangle of the mosaic, in px."""

    top: int
    left: int
    height: int
    width: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)

    def cut(self, share: float, is_down: bool) -> tuple[Cell, Cell]:
        """Returns its two parts: above and below if `is_down`, else left and right."""
        top, left, height, width = self
        if is_down:
            first = round(share * height)
            return Cell(top, left, first, width), Cell(top + first, left, height - first, width)
        first = round(share * width)
        return Cell(top, left, height, first), Cell(top, left + first, height, width - first)


class Placed(NamedTuple):
    """A photograph in its cell."""

    key: str
    name: str
    """Of its class"""
    cell: Cell
    object: NDArray[np.bool_]
    """(S, S)"""


class Mosaic(NamedTuple):
    """One image."""

    key: str
    pixels: NDArray[np.uint8]
    """(S, S, 3)"""
    parts: Sequence[Placed]
    top: int
    """Which of them is the classifier's"""
    predicted: int
    """The class that the classifier names for the whole"""
    is_agreed: bool
    """Whether the top photograph alone is of that class too; if not, its logit is the greatest"""


@click.command()
@click.argument("tars", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH)
@click.option("--count", default=300, show_default=True, help="of mosaics")
@click.option("--photographs", "sizes", multiple=True, default=(2, 3, 4), show_default=True)
@click.option("--under", default="caltech101/", show_default=True, help="keys begin so")
@click.option("--model", default="timm:tf_efficientnet_lite0", show_default=True)
@click.option("--weights", default="", help="of the classifier, a file; empty: timm's")
@click.option("--seed", default=0, show_default=True)
def make(
    tars: Sequence[Path],
    out: Path,
    count: int,
    sizes: Sequence[int],
    under: str,
    model: str,
    weights: str,
    seed: int,
) -> None:
    """Writes OUT/mosaics.tar and its annotations."""
    torch.set_num_threads(1)
    places = find_photographs(tars, under)
    if len(places) < max(sizes):
        raise click.ClickException(
            f"{len(places)} classes of photographs under {under!r}, and {max(sizes)} in a mosaic; "
            "pass tars of FOLDER/CLASS/NAME, and --under FOLDER/"
        )
    classifier = open_classifier(model, weights)
    with_top = [mosaic(number, places, sizes, classifier, seed) for number in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    write_tar(out / "mosaics.tar", with_top)
    agreed = sum(one.is_agreed for one in with_top)
    about = {
        "photographs": [tar.name for tar in tars],
        "options": {"count": count, "sizes": list(sizes), "under": under, "seed": seed},
        "classifier": model,
        "agreed": agreed,
    }
    for group in GROUPS:
        document = {"info": about, **coco_document(with_top, group)}
        (out / f"{group}.json").write_text(json.dumps(document) + "\n")
    number = sum(len(one.parts) for one in with_top)
    click.echo(
        f"{count} mosaics of {number} photographs of {len(places)} classes; in "
        f"{agreed} the top photograph alone is of the class named for the whole"
    )


# ---- making ----------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a photograph is."""

    key: str
    tar: Path
    member: str


def find_photographs(tars: Sequence[Path], under: str) -> dict[str, list[Place]]:
    """Returns the photographs of each class, both in the order of their names."""
    found: dict[str, list[Place]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar.getnames():
                key = sample_key(member)
                folder = key.removeprefix(under).split("/")[0]
                name = ONE_CLASS.get(folder, folder)
                is_photograph = Path(member).suffix.lower() in EXTENSIONS
                is_one = is_photograph and key.startswith(under) and "/" in key.removeprefix(under)
                if is_one and name not in NO_CLASS:
                    found.setdefault(name, []).append(Place(key, path, member))
    return {name: sorted(found[name]) for name in sorted(found)}


def mosaic(
    number: int,
    places: Mapping[str, Sequence[Place]],
    sizes: Sequence[int],
    classifier: FrozenClassifier,
    seed: int,
) -> Mosaic:
    """Returns mosaic `number`: classes are drawn first, then a photograph of each."""
    rng = np.random.default_rng([seed, number])
    many = int(rng.choice(sorted(sizes)))
    names = [list(places)[place] for place in rng.choice(len(places), many, replace=False)]
    pixels, parts = np.zeros((SIDE, SIDE, 3), np.uint8), []
    for name, cell in zip(names, cells(many, rng), strict=True):
        place = places[name][int(rng.integers(len(places[name])))]
        pixels[cell.inside], is_object = fill_cell(read_photograph(place), cell, rng)
        parts.append(Placed(place.key, name, cell, is_object))
    top, predicted, is_agreed = find_top(pixels, [part.cell for part in parts], classifier)
    return Mosaic(f"mosaic-{number:04d}", pixels, parts, top, predicted, is_agreed)


def cells(many: int, rng: np.random.Generator) -> list[Cell]:
    """Returns cells that fill the mosaic: the largest is cut, across its longer side, till done."""
    found = [Cell(0, 0, SIDE, SIDE)]
    while len(found) < many:
        largest = max(found, key=lambda cell: cell.height * cell.width)
        found.remove(largest)
        either = bool(rng.random() < 0.5)
        is_down = largest.height > largest.width if largest.height != largest.width else either
        found += largest.cut(rng.uniform(*CUT), is_down)
    return found


def read_photograph(place: Place) -> Image.Image:
    """Decodes a photograph."""
    with tarfile.open(place.tar) as tar:
        content = tar.extractfile(place.member)
        assert content is not None
        return Image.open(io.BytesIO(content.read())).convert("RGB")


def fill_cell(
    photograph: Image.Image, cell: Cell, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Returns the pixels of a cell, and where in the mosaic (S, S) its object is.

    A window of the cell's shape is taken, at random but for this: the middle of the photograph,
    where its object is, comes to lie in the middle half of the cell, along both axes.
    """
    sizes = photograph.size
    in_cell = (cell.width, cell.height)
    scale = min(n / m for n, m in zip(sizes, in_cell, strict=True)) * rng.uniform(*ZOOM)
    starts = []
    for n, m in zip(sizes, in_cell, strict=True):
        taken = scale * m
        low, high = max(0.0, n / 2 - 0.75 * taken), min(n - taken, n / 2 - 0.25 * taken)
        starts.append(rng.uniform(low, high))
    left, top = starts
    right, bottom = (min(s + scale * m, n) for s, m, n in zip(starts, in_cell, sizes, strict=True))
    box = (left, top, right, bottom)
    pixels = photograph.resize(in_cell, Image.Resampling.BICUBIC, box=box)
    x, y = (
        (s + scale * (np.arange(m) + 0.5) - n / 2) / (ELLIPSE / 2 * n)
        for s, m, n in zip(starts, in_cell, sizes, strict=True)
    )
    is_object = np.zeros((SIDE, SIDE), bool)
    is_object[cell.inside] = x[None] ** 2 + y[:, None] ** 2 <= 1
    return np.asarray(pixels), is_object


def find_top(
    pixels: NDArray[np.uint8], cells: Sequence[Cell], classifier: FrozenClassifier
) -> tuple[int, int, bool]:
    """Returns which photograph the classifier's class is of, that class, and whether it is agreed.

    Agreed: that photograph alone, in its place, is of the class named for the whole.
    """
    whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    alone = classifier.normalization.color(whole).expand_as(whole).repeat(len(cells), 1, 1, 1)
    for number, cell in enumerate(cells):
        alone[number][:, *cell.inside] = whole[0][:, *cell.inside]
    predicted = int(classifier.logits(whole).argmax())
    logits = classifier.logits(alone)
    agrees = logits.argmax(dim=1) == predicted
    candidates = agrees if agrees.any() else torch.ones_like(agrees)
    top = int(logits[:, predicted].where(candidates, -torch.inf).argmax())
    return top, predicted, bool(agrees[top])


# ---- writing ---------------------------------------------------------------------------------


def write_tar(path: Path, mosaics: Sequence[Mosaic]) -> None:
    """Writes the mosaics as a WebDataset shard; nothing in it depends on the time."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for one in mosaics:
            image = io.BytesIO()
            Image.fromarray(one.pixels).save(image, "png")
            parts = [
                {"photograph": part.key, "class": part.name, "cell": list(part.cell)}
                for part in one.parts
            ]
            about = {"photographs": parts, "top": one.top, "predicted": one.predicted}
            members = {"png": image.getvalue(), "json": json.dumps(about).encode()}
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{one.key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def coco_document(mosaics: Sequence[Mosaic], group: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the images, annotations and categories of a COCO file of one of `GROUPS`."""
    names = sorted({part.name for one in mosaics for part in one.parts})
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, one in enumerate(mosaics):
        images.append(
            {
                "id": number,
                "file_name": f"{one.key}.png",
                "height": SIDE,
                "width": SIDE,
                "is_agreed": one.is_agreed,
            }
        )
        for place, part in enumerate(one.parts):
            if group != "all" and (place == one.top) != (group == "top"):
                continue
            top, left, height, width = part.cell
            objects.append(
                {
                    "id": len(objects),
                    "image_id": number,
                    "category_id": names.index(part.name),
                    "iscrowd": 0,
                    "area": int(part.object.sum()),
                    "bbox": [left, top, width, height],
                    "segmentation": {"size": [SIDE, SIDE], "counts": runs(part.object)},
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": objects, "categories": categories}


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """Returns COCO's run lengths of a mask, column after column, the first of what is outside."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    return [int(length) for length in np.diff([0, *changes, mask.size])]


if __name__ == "__main__":
    make()
