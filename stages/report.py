"""What the report shows of an image: reconstructions, maps, kept patches (Figs. 1, 3, 6, 7, 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.attention_distance import attention_distances
from ltrp_core.distances import IMAGENET_STD
from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import sample_visible
from ltrp_core.rankers import Ranker
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.selection import num_homogeneous, top_patches
from ltrp_core.selectors.references import random_scores
from ltrp_core.views import denormalize, normalize, render_mask, render_view
from stages.evaluation.annotation_join import UsedOnce
from stages.options import check_ranges, option
from stages.protocols import Annotations, Arrays, CacheReader, Foreground, Sample
from stages.records import kept_name, recorded_view

RANKER, TEACHER, BASELINE = "ranker", "teacher", "baseline"
VARIANCE, RANDOM = "patch variance", "random"
SOURCES = (RANKER, TEACHER, BASELINE, VARIANCE, RANDOM)
"""Whose order the kept patches can be shown in; `select` goes by one of the first three."""


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
    selected_by: str
    """The source that `select` went by"""
    scores: Mapping[str, NDArray[np.float32]]
    """source -> (L,); the teacher's only if a cover cache has the image"""
    orders: Mapping[str, NDArray[np.int64]]
    """source -> (L,): all patches, the first to keep first"""
    kept: Mapping[float, NDArray[np.int64]]
    """keep ratio -> (k,) as `select` wrote it: best first, then homogeneous"""
    num_homogeneous: Mapping[float, int]
    """keep ratio -> how many of `kept`, the last ones, stand for homogeneous regions"""
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


def run(
    config: ReportConfig,
    samples: Iterator[Sample],
    *,
    selections: CacheReader,
    mae: MaskedAutoencoder,
    teacher_maps: Mapping[str, NDArray[np.float32]],
    annotations: Annotations | None,
) -> Iterator[GalleryImage]:
    """Yields the gallery's images from the `samples` that were selected from.

    Ends as soon as it has all of them.

    Raises:
        RequestError: two stored selections of an image contradict each other, `samples` lack an
            image, or two images have one annotation.
    """
    units = gallery_keys(selections, config)
    arrays = {unit: selections.read(unit) for unit in sorted(set(units.values()))}
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
        unit = arrays[units[sample.key]]
        row = unit["key"].tolist().index(sample.key)
        found = None
        if annotations is not None:
            found = annotations.foreground(sample.key, *sample.image.shape[:2])
        if found is not None:
            used.add(units[sample.key], [sample.key], [found.name])
        yield _gallery_image(config, sample, unit, row, selections.run, mae, teacher_maps, found)


def attention_profile(
    name: str, model: MaskedAutoencoder | Ranker, photos: Iterable[NDArray[np.uint8]]
) -> AttentionProfile:
    """Returns how far the heads of a model look in some photos (S, S, 3): the mean over them.

    Raises:
        RequestError: no photo, or the model is no plain vision transformer.
    """
    side = model.grid * model.patch_size
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
    config: ReportConfig,
    sample: Sample,
    arrays: Arrays,
    row: int,
    run: Mapping[str, Any],
    mae: MaskedAutoencoder,
    teacher_maps: Mapping[str, NDArray[np.float32]],
    found: Foreground | None,
) -> GalleryImage:
    view = recorded_view(arrays, row)
    pixels = render_view(sample.image, view, mae.config.image_size)
    images = normalize(pixels)[None]
    length = mae.config.num_patches
    visible = torch.from_numpy(
        sample_visible(sample.key, 0, 1, length, config.mask_ratio, config.seed)
    )
    best = int(leave_one_out_scores(mae, images, visible)[0].argmax())
    others = torch.cat([visible[:, :best], visible[:, best + 1 :]], dim=1)
    whole, without = (_reconstruction(mae, images, given) for given in (visible, others))
    kept = {
        float(ratio): arrays[kept_name(ratio)][row].astype(np.int64) for ratio in run["keep_ratio"]
    }
    homogeneous = {
        ratio: num_homogeneous(float(run["homogeneous"]), len(chosen))
        for ratio, chosen in kept.items()
    }
    selected_by = str(run.get("source", RANKER))
    scores = _scores(arrays, row, teacher_maps.get(sample.key))
    orders = _orders(config, sample.key, length, scores, selected_by, kept, homogeneous)
    return GalleryImage(
        key=sample.key,
        photo=pixels.permute(1, 2, 0).numpy(),
        visible=visible[0].numpy(),
        reconstruction=_picture(whole),
        left_out=int(visible[0, best]),
        reconstruction_without=_picture(without),
        difference=_difference(whole, without),
        selected_by=selected_by,
        scores=scores,
        orders=orders,
        kept=kept,
        num_homogeneous=homogeneous,
        foreground=(
            None if found is None else render_mask(found.is_foreground, view, mae.config.image_size)
        ),
    )


def _scores(
    arrays: Arrays, row: int, teacher: NDArray[np.float32] | None
) -> dict[str, NDArray[np.float32]]:
    """Selections have the scores that they were made by, or none."""
    stored = {source: f"{source}_score" for source in (RANKER, TEACHER, BASELINE)}
    stored[VARIANCE] = "patch_variance"
    scores = {} if teacher is None else {TEACHER: teacher}
    return scores | {
        source: arrays[name][row].astype(np.float32)
        for source, name in stored.items()
        if name in arrays
    }


def _orders(
    config: ReportConfig,
    key: str,
    length: int,
    scores: Mapping[str, NDArray[np.float32]],
    selected_by: str,
    kept: Mapping[float, NDArray[np.int64]],
    homogeneous: Mapping[float, int],
) -> dict[str, NDArray[np.int64]]:
    draw = random_scores(key, length, draw=0, seed=config.seed)
    by_score = {RANDOM: draw} | {
        source: torch.from_numpy(values) for source, values in scores.items()
    }
    orders = {
        source: top_patches(values[None], length)[0].numpy() for source, values in by_score.items()
    }
    best = [chosen[: len(chosen) - homogeneous[ratio]] for ratio, chosen in kept.items()]
    try:
        stored = scores.get(selected_by, np.zeros(length, np.float32))
        orders[selected_by] = stored_order(stored, best)
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
