"""Does a selector find objects, or what photographers put in the middle: docs/study.md.

    python studies/off_center.py --photographs data/coco-sample --photographs data/coco128-train \
        --out docs/study

A folder of photographs has `images` and COCO's `instances.json`. Two views of the question:

- near and far: the photographs, in two halves by how far the center of mass of what is foreground
  lies from the middle of the view;
- mosaics: four photographs in one image, each through its center crop at half the size, so that no
  object is where photographers put it. The foreground is that of all four; every photograph is in
  one mosaic of each of `--rounds` shuffles.

Precision of the k best patches by score alone, mean over images, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.bootstrap import bootstrap_ratios
from ltrp_core.patch_metrics import PatchCoverage, coverage, nested_agreement
from ltrp_core.selection import num_kept, top_patches
from ltrp_core.selectors import ScoreSelector, SelectorOptions, create_selector
from ltrp_core.selectors.priors import with_priors
from ltrp_core.selectors.references import oracle_scores, random_scores
from ltrp_core.shipped_weights import SHIPPED_RANKERS
from ltrp_core.views import make_view, normalize, render_mask, render_view
from pipeline.annotations import open_annotations
from pipeline.inputs import find_shards
from pipeline.inputs.samples import read_samples

PATH = click.Path(path_type=Path)
SIDE, PATCH = 224, 16
LENGTH = (SIDE // PATCH) ** 2
RATIOS = (0.1, 0.25, 0.5)
RANDOM_DRAWS = 20
HEURISTICS = ("center", "border", "patch-variance")
PRIORS = ({"border": 1.0}, {"center": 0.5})


class Picture(NamedTuple):
    """One photograph, or a mosaic of four."""

    key: str
    pixels: Tensor
    """uint8 (3, SIDE, SIDE)"""
    foreground: NDArray[np.bool_]
    """(SIDE, SIDE)"""
    ignored: NDArray[np.bool_]
    """(SIDE, SIDE): crowds"""


@click.command()
@click.option("--photographs", multiple=True, required=True, type=PATH)
@click.option("--ranker", "rankers", multiple=True, default=SHIPPED_RANKERS, show_default=True)
@click.option("--rounds", default=4, show_default=True, help="shuffles that mosaics are made of")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", required=True, type=PATH)
def study(
    photographs: Sequence[Path], rankers: Sequence[str], rounds: int, seed: int, out: Path
) -> None:
    """Precision near the middle, far from it, and in mosaics."""
    whole = [p for p in pictures(photographs, SIDE) if p.foreground.any()]
    halves = [p for p in pictures(photographs, SIDE // 2) if p.foreground.any()]
    distance = np.array([distance_from_the_middle(p.foreground) for p in whole])
    is_far = distance > np.median(distance)
    near_and_far = {"all": np.full(len(whole), True), "near": ~is_far, "far": is_far}
    made = list(mosaics(halves, rounds, seed))
    rows = [
        *_rows(_precision_of_all(whole, rankers, seed), near_and_far, seed),
        *_rows(_precision_of_all(made, rankers, seed), {"mosaics": np.full(len(made), True)}, seed),
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "off_center.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    click.echo(path.read_text())
    click.echo(f"the middle of the halves: {np.median(distance):.3f} of half a side")


def distance_from_the_middle(foreground: NDArray[np.bool_]) -> float:
    """Returns how far the center of mass of a mask (S, S) is from its middle, in half sides."""
    rows, columns = np.nonzero(foreground)
    half = len(foreground) / 2
    return float(np.hypot(rows.mean() + 0.5 - half, columns.mean() + 0.5 - half) / half)


def mosaics(photographs: Sequence[Picture], rounds: int, seed: int) -> Iterator[Picture]:
    """Yields mosaics of four; what is left over in a round has none."""
    for number in range(rounds):
        order = np.random.default_rng([seed, number]).permutation(len(photographs))
        for start in range(0, len(order) - 3, 4):
            four = [photographs[place] for place in order[start : start + 4]]
            yield Picture(
                key=f"{number}/{'+'.join(p.key for p in four)}",
                pixels=torch.from_numpy(_tiled([p.pixels.numpy() for p in four])),
                foreground=_tiled([p.foreground for p in four]),
                ignored=_tiled([p.ignored for p in four]),
            )


def _tiled(four: Sequence[NDArray[Any]]) -> NDArray[Any]:
    rows = (np.concatenate(four[:2], axis=-1), np.concatenate(four[2:], axis=-1))
    return np.concatenate(rows, axis=-2)


def pictures(folders: Sequence[Path], side: int) -> Iterator[Picture]:
    """Yields the center crops of the annotated photographs of some folders, side x side px."""
    for folder in folders:
        annotations = open_annotations(folder / "instances.json")
        for shard in find_shards([str(folder / "images")]):
            for sample in read_samples(shard):
                found = annotations.foreground(sample.key, *sample.image.shape[:2])
                if found is None:
                    continue
                view = make_view("eval", sample.key, 0, *sample.image.shape[:2], 0)
                pixels = render_view(sample.image, view, side)
                both = (found.is_foreground, found.is_ignored)
                yield Picture(sample.key, pixels, *(render_mask(m, view, side) for m in both))


def _scores(
    images: Tensor, keys: Sequence[str], rankers: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the scores (B, L) of each source that has no knowledge of the foreground."""
    selectors = {name: create_selector(name) for name in HEURISTICS}
    selectors |= {
        name: create_selector("ranker", SelectorOptions(weights=name)) for name in rankers
    }
    found = {
        n: s.scores(images, keys) for n, s in selectors.items() if isinstance(s, ScoreSelector)
    }
    yield from found.items()
    for ranker, weights in itertools.product(rankers, PRIORS):
        parts = [name if w == 1 else f"{w:g} {name}" for name, w in weights.items()]
        yield " + ".join([ranker, *parts]), with_priors(found[ranker], found, weights)


def _precision_of_all(
    pictures: Sequence[Picture], rankers: Sequence[str], seed: int
) -> dict[str, NDArray[np.float64]]:
    """Returns the precision (B, ratios) of every source."""
    images = normalize(torch.stack([picture.pixels for picture in pictures]))
    keys = [picture.key for picture in pictures]
    masks = (np.stack([getattr(p, name) for p in pictures]) for name in ("foreground", "ignored"))
    seen = coverage(*map(torch.from_numpy, masks), PATCH)
    found = {"random": _by_chance(keys, seen, seed)}
    with torch.no_grad():
        found |= {name: _precision(scores, seen) for name, scores in _scores(images, keys, rankers)}
    return found | {"oracle": _precision(oracle_scores(seen), seen)}


def _rows(
    found: Mapping[str, NDArray[np.float64]], groups: Mapping[str, NDArray[np.bool_]], seed: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each group of images, source and ratio, with intervals."""
    # One column a figure: the precision of a source at a ratio, and that minus each heuristic's.
    columns = [*found.values()]
    columns += [one - found[base] for base in HEURISTICS for one in found.values()]
    for group, is_in in groups.items():
        values = np.concatenate(columns, axis=1)[is_in]
        is_defined = ~np.isnan(values)
        above, below = np.where(is_defined, values, 0.0), is_defined.astype(float)
        low, high = bootstrap_ratios(above, below, seed=seed)
        table = np.stack([above.sum(axis=0) / below.sum(axis=0), low, high], axis=1)
        parts = np.split(table, 1 + len(HEURISTICS))
        for place, (source, kept) in enumerate(itertools.product(found, RATIOS)):
            row = {"images": group, "number": len(values), "source": source, "kept": kept}
            names = ("precision", *(f"minus {base}" for base in HEURISTICS))
            for name, part in zip(names, parts, strict=True):
                ends = (name, f"{name} low", f"{name} high")
                row |= {k: round(float(v), 4) for k, v in zip(ends, part[place], strict=True)}
            yield row


def _precision(scores: Tensor, seen: PatchCoverage) -> NDArray[np.float64]:
    """Returns the precision (B, ratios) of the k best patches."""
    keeps = [num_kept(ratio, LENGTH) for ratio in RATIOS]
    found = nested_agreement(top_patches(scores, LENGTH), seen, keeps)
    return np.stack([one.precision.numpy() for one in found], axis=1)


def _by_chance(keys: Sequence[str], seen: PatchCoverage, seed: int) -> NDArray[np.float64]:
    draws = []
    for draw in range(RANDOM_DRAWS):
        scores = [random_scores(key, LENGTH, draw=draw, seed=seed) for key in keys]
        draws.append(_precision(torch.stack(scores), seen))
    mean: NDArray[np.float64] = np.mean(draws, axis=0)
    return mean


if __name__ == "__main__":
    study()
