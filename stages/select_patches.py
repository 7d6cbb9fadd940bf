"""Stage 3: a ranker scores every patch; the top-k of every image is written down (Sec. 3.4)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltrp_core.baselines.references import patch_variance
from ltrp_core.errors import RequestError
from ltrp_core.patches import patchify
from ltrp_core.rankers import load_ranker
from ltrp_core.selection import num_kept, select_patches
from ltrp_core.views import Crop, make_view, normalize, render_view
from stages.devices import resolve_device
from stages.options import check_ranges, identity, option
from stages.protocols import ArrayField, Arrays, Sample, Summary, UnitRunner
from stages.records import kept_name, stack_rows, view_row


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Options of `select`."""

    ranker: Path = option(
        help="--out folder of `train-ranker`, or hf-hub:ID", changes_numbers=False
    )
    keep_ratio: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), low=0.0, high=1.0, help="share of kept patches; may be given repeatedly"
    )
    homogeneous: float = option(
        0.2, low=0.0, high=1.0, help="share of the kept from homogeneous regions (Tab. 1e)"
    )
    crop: Crop = option("eval", help="eval: centre crop; train: random resized crop and flip")
    seed: int = option(0, help="of the views when --crop train")
    batch_size: int = option(32, low=1, help="images at a time", changes_numbers=False)
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(set(self.keep_ratio)) != len(self.keep_ratio):
            raise RequestError(f"--keep-ratio is given twice: {self.keep_ratio}")


def selection_fields(config: SelectConfig, length: int) -> dict[str, ArrayField]:
    """Returns the arrays of a unit of selections.

    Raises:
        RequestError: a keep ratio leaves no patch of `length`.
    """
    index, fill = ("uint16", 65535) if length > 255 else ("uint8", 255)
    maps = ArrayField(dtype="float16", shape=(length,), fill=float("nan"))
    return {
        "key": ArrayField(dtype="string", shape=(), fill=""),
        "size": ArrayField(dtype="int32", shape=(2,), fill=-1),
        "crop": ArrayField(dtype="float32", shape=(1, 4), fill=float("nan")),
        "flip": ArrayField(dtype="bool", shape=(1,), fill=False),
        "ranker_score": maps,
        "patch_variance": maps,
        **{
            kept_name(ratio): ArrayField(
                dtype=index, shape=(num_kept(ratio, length),), fill=fill, high=length
            )
            for ratio in config.keep_ratio
        },
    }


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample as the ranker takes it."""

    rows: dict[str, Any]
    """One row of `key`, `size`, `crop` and `flip`."""
    pixels: Tensor
    """uint8 (3, S, S)"""


class UnitSelector:
    """Selects the patches of one shard after another with one ranker."""

    def __init__(self, config: SelectConfig, device: str = "auto") -> None:
        self.config = config
        self.device = resolve_device(device if config.device == "auto" else config.device)
        self.ranker = load_ranker(config.ranker).eval().to(self.device)
        self.length = self.ranker.grid**2
        self.fields = selection_fields(config, self.length)

    def prepare(self, sample: Sample) -> PreparedSample:
        """Returns the view of a sample that is ranked."""
        height, width = sample.image.shape[:2]
        view = make_view(self.config.crop, sample.key, 0, height, width, self.config.seed)
        rows = {
            "key": sample.key,
            "size": (height, width),
            "crop": [view_row(view)],
            "flip": [view.flip],
        }
        size = self.ranker.grid * self.ranker.patch_size
        return PreparedSample(rows, render_view(sample.image, view, size))

    def batches(self, prepared: Iterable[PreparedSample]) -> Iterator[Arrays]:
        """Yields the arrays of `selection_fields` for the samples that come, some at a time."""
        samples = iter(prepared)
        while group := list(itertools.islice(samples, self.config.batch_size)):
            made = self._select(torch.stack([sample.pixels for sample in group]))
            yield {
                name: stack_rows(
                    made[name] if name in made else [sample.rows[name] for sample in group], field
                )
                for name, field in self.fields.items()
            }

    def take_notes(self) -> list[str]:
        """Returns nothing: selection has nothing to confess."""
        return []

    @torch.no_grad()
    def _select(self, pixels: Tensor) -> Arrays:
        images = normalize(pixels.to(self.device))
        # One by one, so that a selection cannot depend on what else is in the batch.
        scores = torch.cat([self.ranker(image[None]) for image in images]).float()
        patches = patchify(images, self.ranker.patch_size)
        made = {
            "ranker_score": scores.cpu().numpy(),
            "patch_variance": patch_variance(images, self.ranker.patch_size).cpu().numpy(),
        }
        for ratio in self.config.keep_ratio:
            kept = select_patches(
                scores,
                num_kept(ratio, self.length),
                patches=patches,
                homogeneous=self.config.homogeneous,
            )
            made[kept_name(ratio)] = kept.cpu().numpy()
        return made


def run(config: SelectConfig, *, units: UnitRunner, ranker_sha256: str) -> Summary:
    """Writes the selections of every pending shard.

    Raises:
        CheckpointError: the ranker cannot be used; nothing has been written then.
        RequestError: k out of range.
    """
    ranker = load_ranker(config.ranker)
    selected_by = {
        **identity(config),
        "ranker_sha256": ranker_sha256,
        "image_size": ranker.grid * ranker.patch_size,
        "patch_size": ranker.patch_size,
    }
    fields = selection_fields(config, ranker.grid**2)
    summary = units.run(
        "select", functools.partial(UnitSelector, config), identity=selected_by, fields=fields
    )
    summary.next_step = (
        f"ltrp-pipeline evaluate patches --selections {summary.output} --annotations instances.json"
    )
    return summary
