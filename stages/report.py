"""What the report shows of an image: reconstructions, maps, kept patches (Figs. 1, 3, 6, 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import sample_visible
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.views import denormalize, normalize, render_mask, render_view
from stages.options import check_ranges, option
from stages.protocols import Annotations, Arrays, CacheReader, Sample
from stages.records import kept_name, recorded_view


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Options of `report`."""

    images: int = option(24, low=1, help="images in the gallery")
    mask_ratio: float = option(0.9, help="of the partition that the reconstructions are made from")
    seed: int = option(0, help="of that partition")

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
    teacher: NDArray[np.float32] | None
    """(L,): mean pseudo-scores, if a cover cache was given"""
    ranker: NDArray[np.float32]
    """(L,)"""
    kept: Mapping[float, NDArray[np.int64]]
    """keep ratio -> (k,), best first, then homogeneous"""
    foreground: NDArray[np.bool_] | None
    """(S, S), if the image is annotated"""


def gallery_keys(selections: CacheReader, config: ReportConfig) -> dict[str, str]:
    """Returns the unit of each image to show, by key: the first ones, sorted."""
    units = {
        key: unit for unit in selections.units for key in selections.read(unit)["key"].tolist()
    }
    return dict(sorted(units.items())[: config.images])


def run(
    config: ReportConfig,
    samples: Iterator[Sample],
    *,
    selections: CacheReader,
    mae: MaskedAutoencoder,
    teacher_maps: Mapping[str, NDArray[np.float32]],
    annotations: Annotations | None,
) -> Iterator[GalleryImage]:
    """Yields the gallery's images from the `samples` that were selected from."""
    units = gallery_keys(selections, config)
    arrays = {unit: selections.read(unit) for unit in sorted(set(units.values()))}
    for sample in samples:
        if sample.key not in units:
            continue
        unit = arrays[units[sample.key]]
        row = unit["key"].tolist().index(sample.key)
        yield _gallery_image(
            config, sample, unit, row, selections.run, mae, teacher_maps, annotations
        )


@torch.no_grad()
def _gallery_image(
    config: ReportConfig,
    sample: Sample,
    arrays: Arrays,
    row: int,
    run: Mapping[str, Any],
    mae: MaskedAutoencoder,
    teacher_maps: Mapping[str, NDArray[np.float32]],
    annotations: Annotations | None,
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
    found = None
    if annotations is not None:
        found = annotations.foreground(sample.key, *sample.image.shape[:2])
    return GalleryImage(
        key=sample.key,
        photo=pixels.permute(1, 2, 0).numpy(),
        visible=visible[0].numpy(),
        reconstruction=_picture(mae, images, visible),
        left_out=int(visible[0, best]),
        reconstruction_without=_picture(mae, images, others),
        teacher=teacher_maps.get(sample.key),
        ranker=arrays["ranker_score"][row].astype(np.float32),
        kept={
            float(ratio): arrays[kept_name(ratio)][row].astype(np.int64)
            for ratio in run["keep_ratio"]
        },
        foreground=(
            None if found is None else render_mask(found.is_foreground, view, mae.config.image_size)
        ),
    )


def _picture(mae: MaskedAutoencoder, images: Tensor, visible: Tensor) -> NDArray[np.uint8]:
    """Returns the reconstruction (S, S, 3) with the visible patches as they are."""
    predicted = mae.decode(mae.encode(images, visible), visible)
    own = mae.patchify(images)
    index = visible.unsqueeze(-1).expand(-1, -1, own.shape[-1])
    predicted = predicted.scatter(1, index, own.gather(1, index))
    picture: NDArray[np.uint8] = denormalize(mae.unpatchify(predicted))[0].permute(1, 2, 0).numpy()
    return picture
