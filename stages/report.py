"""What the report shows of an image: reconstructions, maps, kept patches (Figs. 1, 3, 6, 7, 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.attention_distance import Watched, attention_distances, patches_of
from ltrp_core.distances import IMAGENET_STD
from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import sample_visible
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.selection import num_homogeneous, top_patches
from ltrp_core.selectors.references import random_scores
from ltrp_core.views import View, denormalize, normalize, render_mask, render_view
from stages.evaluation.annotation_join import UsedOnce
from stages.evaluation.beside import Beside
from stages.evaluation.sources import RANDOM, STORED, TEACHER, without_prior
from stages.options import check_ranges, option
from stages.protocols import Annotations, Arrays, CacheReader, Foreground, Sample
from stages.records import kept_name, recorded_view
from stages.score_maps import ScoreMaps
from stages.types import SelectRun


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Options of `report`."""

    images: int = option(24, low=1, help="images in the gallery: the first ones by key")
    key: tuple[str, ...] = option(
        (), help="show the image with this key instead; may be given repeatedly"
    )
    mask_ratio: float = option(0.9, help="of the partition that the reconstructions are made from")
    seed: int = option(0, help="of that partition, and of the random order")

    def __post_init__(self) -> None:
        check_ranges(self)


class Kept(NamedTuple):
    """One selection of one image."""

    patches: NDArray[np.int64]
    """(k,) as `select` wrote them: best first, then homogeneous"""
    num_homogeneous: int
    """How many of them, the last ones, stand for homogeneous regions"""

    @property
    def best(self) -> NDArray[np.int64]:
        """The patches that were kept for their scores."""
        return self.patches[: len(self.patches) - self.num_homogeneous]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryImage:
    """One image of the gallery; S = side of the view in px."""

    key: str
    photo: NDArray[np.uint8]
    """(S, S, 3)"""
    visible: NDArray[np.int64]
    """(n,): the partition that was reconstructed"""
    reconstruction: NDArray[np.uint8]
    """(S, S, 3), the visible patches as they are"""
    left_out: int
    """The visible patch with the highest score"""
    reconstruction_without: NDArray[np.uint8]
    """(S, S, 3): an ordinary reconstruction from the other n - 1 patches"""
    difference: NDArray[np.float32]
    """(S, S): between the two reconstructions, mean over channels, in 8-bit levels"""
    selections: Mapping[str, Mapping[float, Kept]]
    """label -> keep ratio -> what `select` kept; in the order that they are shown in"""
    scores: Mapping[str, NDArray[np.float32]]
    """source -> (L,): of selections with scores (also without their priors), of the teacher if a
    cover cache has the image, border contrast and patch variance"""
    orders: Mapping[str, NDArray[np.int64]]
    """source -> (L,): all patches, the first to keep first; of those with scores, and random"""
    foreground: NDArray[np.bool_] | None
    """(S, S), if the image is annotated"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionProfile:
    """How far the heads of one model look (Fig. 8)."""

    name: str
    distances: NDArray[np.float64]
    """(layers, heads), px"""
    image_size: int
    """Side of the images in px"""
    num_images: int


def gallery_keys(selections: CacheReader, config: ReportConfig) -> dict[str, str]:
    """Returns the unit of each image to show, by key: those asked for, or the first ones, sorted.

    Raises:
        RequestError: one that is asked for was not selected from.
    """
    units = {
        key: unit
        for unit in selections.units
        for key in selections.read(unit, ["key"])["key"].tolist()
    }
    if not config.key:
        return dict(sorted(units.items())[: config.images])
    for key in config.key:
        if key not in units:
            raise RequestError(
                f"the selections have no image with the key {key!r}; keys look like "
                f"{min(units, default='')!r}"
            )
    return {key: units[key] for key in sorted(config.key)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Models:
    """What all images of a gallery are shown with."""

    config: ReportConfig
    mae: MaskedAutoencoder
    runs: Mapping[str, SelectRun]
    """By label"""
    teacher: ScoreMaps | None


def run(
    config: ReportConfig,
    samples: Iterator[Sample],
    *,
    selections: Mapping[str, CacheReader],
    mae: MaskedAutoencoder,
    teacher: ScoreMaps | None,
    annotations: Annotations | None,
) -> Iterator[GalleryImage]:
    """Yields the gallery's images from the `samples` that were selected from.

    Ends as soon as it has all of them.

    Args:
        selections: by label, of the same views; the first one says which images there are.

    Raises:
        RequestError: two stored selections of an image contradict each other, `samples` lack an
            image, or two images have one annotation.
    """
    (label, first), *others = selections.items()
    first_run = SelectRun.of(first.run, label)
    beside = [Beside(name, cache, first_run) for name, cache in others]
    models = _Models(
        config=config,
        mae=mae,
        runs={label: first_run} | {other.label: other.run for other in beside},
        teacher=teacher,
    )
    units = gallery_keys(first, config)
    read: dict[str, dict[str, Arrays]] = {}
    for unit in sorted(set(units.values())):
        arrays = first.read(unit)
        read[unit] = {label: arrays} | {o.label: o.rows(unit, arrays) for o in beside}
    missing = set(units)
    used = UsedOnce()
    while missing:
        sample = next(samples, None)
        if sample is None:
            raise RequestError(
                f"the shards lack {len(missing)} of the {len(units)} images to show, e.g. "
                f"{min(missing)!r}; pass the shards that were selected from"
            )
        if sample.key not in missing:
            continue
        missing.remove(sample.key)
        of_unit = read[units[sample.key]]
        row = of_unit[label]["key"].tolist().index(sample.key)
        found = None
        if annotations is not None:
            found = annotations.foreground(sample.key, *sample.image.shape[:2])
        if found is not None:
            used.add(units[sample.key], [sample.key], [found.name])
        rows = {
            name: {array: values[row] for array, values in arrays.items()}
            for name, arrays in of_unit.items()
        }
        view = recorded_view(of_unit[label], row)
        yield _gallery_image(models, sample, view, rows, found)


def attention_profile(
    name: str, model: Watched, photos: Iterable[NDArray[np.uint8]]
) -> AttentionProfile:
    """Returns how far the heads of a model look in some photos (S, S, 3): the mean over them.

    Raises:
        RequestError: no photo, or the model is no plain vision transformer.
    """
    grid, patch_size = patches_of(model)
    side = grid * patch_size
    found = []
    for photo in photos:  # one by one: L² numbers a head and layer are much
        if photo.shape[:2] != (side, side):
            raise RequestError(
                f"{name} takes images of {side} x {side} px; these are {photo.shape[1]} x "
                f"{photo.shape[0]}"
            )
        image = normalize(torch.from_numpy(np.array(photo)).permute(2, 0, 1))
        found.append(attention_distances(model, image[None]))
    if not found:
        raise RequestError("attention distances need at least one image; got none")
    mean = torch.stack(found).mean(dim=0)
    return AttentionProfile(
        name=name, distances=mean.numpy(), image_size=side, num_images=len(found)
    )


def stored_order(
    scores: NDArray[np.float32], best: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Returns all patches (L,), the first to keep first, as the stored selections have them.

    Scores are stored in half precision, where patches tie that the selection told apart: what the
    longest of the `best` lists holds comes first, in its order; the rest by score, then index.

    Args:
        scores: (L,), as stored; all equal if none were.
        best: the best patches of each stored selection, without the homogeneous ones.

    Raises:
        RequestError: a list is no beginning of the longest, or no beginning of the scores' order.
    """
    longest = max(best, key=len, default=np.zeros(0, np.int64))
    for chosen in best:
        if not np.array_equal(chosen, longest[: len(chosen)]):
            raise RequestError(
                "its selections at two keep ratios have the best patches in two orders"
            )
    by_score = top_patches(torch.from_numpy(scores)[None], len(scores))[0].numpy()
    if not np.array_equal(scores[longest], scores[by_score[: len(longest)]]):
        raise RequestError("its selection does not hold the best patches by its stored scores")
    return np.concatenate([longest, by_score[~np.isin(by_score, longest)]])


@torch.no_grad()
def _gallery_image(
    models: _Models,
    sample: Sample,
    view: View,
    rows: Mapping[str, Mapping[str, Any]],
    found: Foreground | None,
) -> GalleryImage:
    """Returns one image; `rows` are its row of every selection, by label."""
    config, mae = models.config, models.mae
    pixels = render_view(sample.image, view, mae.config.image_size)
    images = normalize(pixels)[None]
    length = mae.config.num_patches
    visible = torch.from_numpy(
        sample_visible(sample.key, 0, 1, length, config.mask_ratio, config.seed)
    )
    best = int(leave_one_out_scores(mae, images, visible)[0].argmax())
    others = torch.cat([visible[:, :best], visible[:, best + 1 :]], dim=1)
    whole, without = (_reconstruction(mae, images, given) for given in (visible, others))
    selections = {label: _kept(run, rows[label]) for label, run in models.runs.items()}
    scores = _scores(models, sample.key, rows)
    return GalleryImage(
        key=sample.key,
        photo=pixels.permute(1, 2, 0).numpy(),
        visible=visible[0].numpy(),
        reconstruction=_picture(whole),
        left_out=int(visible[0, best]),
        reconstruction_without=_picture(without),
        difference=_difference(whole, without),
        selections=selections,
        scores=scores,
        orders=_orders(config, sample.key, length, scores, selections),
        foreground=(
            None if found is None else render_mask(found.is_foreground, view, mae.config.image_size)
        ),
    )


def _kept(run: SelectRun, row: Mapping[str, Any]) -> dict[float, Kept]:
    has_scores = run.score_name in row
    found = {}
    for ratio in run.keep_ratio:
        patches = row[kept_name(ratio)].astype(np.int64)
        # A selector without scores chooses all k by itself.
        count = num_homogeneous(run.homogeneous, len(patches)) if has_scores else 0
        found[ratio] = Kept(patches, count)
    return found


def _scores(
    models: _Models, key: str, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, NDArray[np.float32]]:
    """Returns the scores of each source that has any."""
    stored = {label: (rows[label], run.score_name) for label, run in models.runs.items()}
    for label, run in models.runs.items():
        stored[without_prior(label)] = rows[label], run.plain_name
    for source, name in STORED.items():
        # Of the view alone, so any selection has it for all; older ones lack some.
        stored[source] = next((r for r in rows.values() if name in r), {}), name
    teacher = models.teacher
    scores = {}
    if teacher is not None and key in teacher.places:
        scores[TEACHER] = teacher.map(key)
    return scores | {
        source: row[name].astype(np.float32)
        for source, (row, name) in stored.items()
        if name in row
    }


def _orders(
    config: ReportConfig,
    key: str,
    length: int,
    scores: Mapping[str, NDArray[np.float32]],
    selections: Mapping[str, Mapping[float, Kept]],
) -> dict[str, NDArray[np.int64]]:
    draw = random_scores(key, length, draw=0, seed=config.seed)
    by_score = {RANDOM: draw} | {
        source: torch.from_numpy(values) for source, values in scores.items()
    }
    orders = {
        source: top_patches(values[None], length)[0].numpy() for source, values in by_score.items()
    }
    for label, kept in selections.items():
        if label not in scores:
            continue
        try:
            orders[label] = stored_order(scores[label], [one.best for one in kept.values()])
        except RequestError as error:
            raise RequestError(
                f"image {key!r}: {error}; check the selections with `ltrp-pipeline verify --deep`"
            ) from error
    return orders


def _reconstruction(mae: MaskedAutoencoder, images: Tensor, visible: Tensor) -> Tensor:
    """Returns the reconstruction (1, 3, S, S), normalized, with the visible patches as they are."""
    predicted = mae.decode(mae.encode(images, visible), visible)
    own = mae.patchify(images)
    index = visible.unsqueeze(-1).expand(-1, -1, own.shape[-1])
    return mae.unpatchify(predicted.scatter(1, index, own.gather(1, index)))


def _picture(normalized: Tensor) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = denormalize(normalized)[0].permute(1, 2, 0).numpy()
    return picture


def _difference(first: Tensor, second: Tensor) -> NDArray[np.float32]:
    """Before rounding to whole levels: a small autoencoder's differences are a few of them."""
    levels = torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
    difference: NDArray[np.float32] = ((first - second).abs()[0] * levels).mean(dim=0).numpy()
    return difference
