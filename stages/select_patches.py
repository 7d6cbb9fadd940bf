"""Stage 3: every patch gets a score; the top-k of every image is written down (Sec. 3.4)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.patches import patchify
from ltrp_core.selection import num_kept, select_patches_at
from ltrp_core.selectors.references import patch_variance
from ltrp_core.views import Crop, normalize, render_view
from stages.devices import resolve_device
from stages.options import check_ranges, identity, option
from stages.protocols import ArrayField, Arrays, Sample, Summary, UnitRunner
from stages.records import kept_name, stack_rows, view_row
from stages.selectors import (
    BASELINES,
    BaselineSource,
    KnownMap,
    OpenTeacher,
    RankerSource,
    ScoreSource,
    TeacherSource,
    checked_geometry,
)
from stages.weights import check_same_ranker

_BASELINE_IMAGE, _BASELINE_PATCH = 224, 16
"""Pixels, where no model says otherwise: the paper's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Options of `select`."""

    ranker: str = option(
        "",
        help="scores: --out folder of `train-ranker`, ranker_tiny (the package's own), hf-hub:ID",
        changes_numbers=False,
    )
    teacher: str = option(
        "", help="or: cache of `score --sampler cover`, with its views", changes_numbers=False
    )
    baseline: str = option("", help=f"or: {', '.join(BASELINES)}")
    keep_ratio: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), low=0.0, high=1.0, help="share of kept patches; may be given repeatedly"
    )
    homogeneous: float = option(
        0.2, low=0.0, high=1.0, help="share of the kept from homogeneous regions (Tab. 1e)"
    )
    crop: Crop = option(
        "eval",
        help="eval: centre crop; resize: the whole image, squashed square; none: the image is of "
        "the view's size already; train: random resized crop and flip. With --teacher: as scored",
    )
    image_size: int = option(
        0, low=0, help="side of the view in px; 0: the model's. Positions are interpolated"
    )
    patch_size: int = option(
        0, low=0, help=f"in px; 0: the model's, of a baseline {_BASELINE_PATCH}"
    )
    seed: int = option(0, help="of the views when --crop train, and of --baseline random")
    batch_size: int = option(32, low=1, help="images at a time", changes_numbers=False)
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(set(self.keep_ratio)) != len(self.keep_ratio):
            raise RequestError(f"--keep-ratio is given twice: {self.keep_ratio}")
        given = [name for name in ("ranker", "teacher", "baseline") if getattr(self, name)]
        if len(given) != 1:
            words = "none" if not given else " and ".join(f"--{name}" for name in given)
            raise RequestError(
                f"give exactly one of --ranker, --teacher, --baseline; {words} was given"
            )
        if self.baseline and self.baseline not in BASELINES:
            raise unknown_name("baseline", self.baseline, BASELINES)

    @property
    def source(self) -> str:
        """What scores the patches: `ranker`, `teacher` or `baseline`."""
        return "ranker" if self.ranker else "teacher" if self.teacher else "baseline"


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
        f"{config.source}_score": maps,
        "patch_variance": maps,
        **{
            kept_name(ratio): ArrayField(
                dtype=index, shape=(num_kept(ratio, length),), fill=fill, high=length
            )
            for ratio in config.keep_ratio
        },
    }


def open_source(config: SelectConfig, open_teacher: OpenTeacher | None, device: str) -> ScoreSource:
    """Returns what scores the patches, on `device`.

    Raises:
        CheckpointError: the ranker cannot be used.
        RequestError: options that do not fit the ranker or the teacher.
    """
    source: ScoreSource
    if config.ranker:
        source = RankerSource(config.ranker, config.image_size, config.crop, config.seed, device)
    elif open_teacher is not None:
        teacher = open_teacher()
        source = TeacherSource(teacher)
        crop = teacher.run["crop"]
        if crop != config.crop:
            raise RequestError(
                f"--crop is {config.crop}, and the views of --teacher are {crop}; say --crop {crop}"
            )
        if config.image_size not in (0, source.geometry.image_size):
            raise RequestError(
                f"--image-size is {config.image_size}, and the views of --teacher have "
                f"{source.geometry.image_size} px; leave the option out"
            )
    else:
        geometry = checked_geometry(
            config.image_size or _BASELINE_IMAGE, config.patch_size or _BASELINE_PATCH
        )
        return BaselineSource(config.baseline, geometry, config.crop, config.seed)
    if config.patch_size not in (0, source.geometry.patch_size):
        raise RequestError(
            f"--patch-size is {config.patch_size}, and --{config.source} has patches of "
            f"{source.geometry.patch_size} px; leave the option out"
        )
    return source


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample as its scores are made."""

    rows: dict[str, Any]
    """One row of `key`, `size`, `crop` and `flip`."""
    pixels: Tensor
    """uint8 (3, S, S)"""
    known: KnownMap
    """Scores (L,), where they do not come from the pixels."""


class UnitSelector:
    """Selects the patches of one shard after another by one source of scores."""

    def __init__(
        self,
        config: SelectConfig,
        open_teacher: OpenTeacher | None = None,
        device: str = "auto",
        *,
        ranker_sha256: str | None = None,
    ) -> None:
        """Opens the source.

        Args:
            ranker_sha256: what the ranker's weights must be, where they are read on another
                machine; None = any.

        Raises:
            CheckpointError: they are others.
        """
        check_same_ranker(config.ranker, ranker_sha256)
        self.config = config
        self.device = resolve_device(device if config.device == "auto" else config.device)
        self.source = open_source(config, open_teacher, str(self.device))
        self.length = self.source.geometry.grid**2
        self.fields = selection_fields(config, self.length)

    def prepare(self, sample: Sample) -> PreparedSample:
        """Returns the view of a sample that is selected from."""
        view, known = self.source.prepare(sample)
        rows = {
            "key": sample.key,
            "size": sample.image.shape[:2],
            "crop": [view_row(view)],
            "flip": [view.flip],
        }
        size = self.source.geometry.image_size
        return PreparedSample(rows, render_view(sample.image, view, size), known)

    def batches(self, prepared: Iterable[PreparedSample]) -> Iterator[Arrays]:
        """Yields the arrays of `selection_fields` for the samples that come, some at a time."""
        samples = iter(prepared)
        while group := list(itertools.islice(samples, self.config.batch_size)):
            made = self._select(group)
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
    def _select(self, group: Sequence[PreparedSample]) -> Arrays:
        images = normalize(torch.stack([sample.pixels for sample in group]).to(self.device))
        keys = [sample.rows["key"] for sample in group]
        scores = self.source.scores(keys, [sample.known for sample in group], images)
        patch_size = self.source.geometry.patch_size
        made = {
            f"{self.config.source}_score": scores.cpu().numpy(),
            "patch_variance": patch_variance(images, patch_size).cpu().numpy(),
        }
        selected = select_patches_at(
            scores,
            [num_kept(ratio, self.length) for ratio in self.config.keep_ratio],
            patches=patchify(images, patch_size),
            homogeneous=self.config.homogeneous,
        )
        for ratio, kept in zip(self.config.keep_ratio, selected, strict=True):
            made[kept_name(ratio)] = kept.cpu().numpy()
        return made


def run(
    config: SelectConfig,
    *,
    units: UnitRunner,
    made_by: Mapping[str, Any],
    open_teacher: OpenTeacher | None = None,
) -> Summary:
    """Writes the selections of every pending shard.

    Args:
        config: options.
        units: where the shards are, and what is written.
        made_by: what the scores depend on beside the options, such as the sha256 of the weights;
            part of the identity.
        open_teacher: opens the cache `config.teacher`.

    Raises:
        CheckpointError: the ranker cannot be used; nothing has been written then.
        RequestError: k out of range, or options that do not fit each other.
    """
    geometry = open_source(config, open_teacher, "cpu").geometry
    selected_by = {
        **identity(config),
        **made_by,
        "source": config.source,
        "image_size": geometry.image_size,
        "patch_size": geometry.patch_size,
    }
    fields = selection_fields(config, geometry.grid**2)
    summary = units.run(
        "select",
        functools.partial(
            UnitSelector, config, open_teacher, ranker_sha256=made_by.get("ranker_sha256")
        ),
        identity=selected_by,
        fields=fields,
    )
    summary.next_step = (
        f"ltrp-pipeline evaluate patches --selections {summary.output} --annotations instances.json"
    )
    return summary
