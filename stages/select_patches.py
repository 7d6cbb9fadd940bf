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
from ltrp_core.selection import num_kept
from ltrp_core.selectors import (
    Priors,
    ScoreSelector,
    Selector,
    SelectorOptions,
    create_selector,
    selector_spec,
)
from ltrp_core.selectors.base import ITS_OWN, PATCH_SIZE, check_options, settled_homogeneous
from ltrp_core.views import Crop, normalize, render_view
from stages.devices import resolve_device
from stages.named_weights import as_texts
from stages.options import check_ranges, identity, option
from stages.protocols import ArrayField, Arrays, Sample, Summary, UnitRunner
from stages.records import kept_name, stack_rows, view_row
from stages.selection_arrays import SCHEMA, as_begun, reference_arrays, selection_fields
from stages.selectors import (
    TEACHER,
    KnownMap,
    OpenTeacher,
    TeacherSelector,
    baseline_names,
    check_choices,
    choose,
    made_view,
    names,
    prior_weights,
)
from stages.types import PLAIN_SCORE, SelectRun
from stages.weights import check_same_file

_SHORTHANDS = ("ranker", "teacher", "baseline", "selector")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Options of `select`."""

    selector: str = option("", names=names, absent="", help="what chooses the patches")
    weights: str = option(
        "",
        help="of --selector, where it has any: a file, a folder, hf-hub:ID, timm:NAME (its own)",
        changes_numbers=False,
    )
    model: str = option(
        "",
        absent="",
        help="timm:NAME, the architecture of a file of --weights, of selectors that take several",
    )
    faithful: bool = option(
        False,
        absent=False,
        help="choose by the rule of the code that the LTRP authors compared with, where ours "
        "corrects it (docs/selectors.md)",
    )
    ranker: str = option(
        "",
        help="short for --selector ranker --weights: --out folder of `train-ranker`, ranker_tiny "
        "(the package's own), hf-hub:ID",
        changes_numbers=False,
    )
    teacher: str = option(
        "",
        help="short for --selector teacher --weights: cache of `score --sampler cover`, with its "
        "views",
        changes_numbers=False,
    )
    baseline: str = option(
        "",
        help="short for --selector, of those without weights: random, center, patch-variance, "
        "border",
    )
    keep_ratio: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), low=0.0, high=1.0, help="share of kept patches; may be given repeatedly"
    )
    homogeneous: float = option(
        ITS_OWN,
        low=ITS_OWN,
        high=1.0,
        help="share of the kept from homogeneous regions (Tab. 1e); -1: 0.2, and 0 of the methods "
        "of other papers",
    )
    prior: tuple[str, ...] = option(
        (),
        absent=(),
        help="NAME=WEIGHT, may be given repeatedly: adds WEIGHT times the patches' ranks by border "
        "(assumes that objects do not touch the edge; hurts close-ups and crops), center (the "
        "photographer's habit, looks at no pixel; hurts off center) or patch-variance (objects "
        "have more detail than the ground; hurts on grass and gravel) to their ranks by score",
    )
    crop: Crop = option(
        "eval",
        help="eval: center crop; resize: the whole image, squashed square; none: the image is of "
        "the view's size already; train: random resized crop and flip. With --teacher: as scored",
    )
    image_size: int = option(
        0, low=0, help="side of the view in px; 0: the model's. Positions are interpolated"
    )
    patch_size: int = option(
        0, low=0, help=f"in px; 0: the model's, of a selector without one {PATCH_SIZE}"
    )
    seed: int = option(0, help="of the views when --crop train, and of selectors that draw")
    batch_size: int = option(32, low=1, help="images at a time", changes_numbers=False)
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(set(self.keep_ratio)) != len(self.keep_ratio):
            raise RequestError(f"--keep-ratio is given twice: {self.keep_ratio}")
        given = [name for name in _SHORTHANDS if getattr(self, name)]
        if len(given) != 1:
            words = "none" if not given else " and ".join(f"--{name}" for name in given)
            raise RequestError(
                f"give exactly one of {', '.join(f'--{n}' for n in _SHORTHANDS)}; {words} was given"
            )
        if self.baseline and self.baseline not in baseline_names():
            raise unknown_name("baseline", self.baseline, baseline_names())
        if self.selector and self.selector not in names():
            raise unknown_name("selector", self.selector, names())
        if self.weights and not self.selector:
            raise RequestError(f"--{given[0]} names its weights itself; leave --weights out")
        self._check_weights()
        keeps = self.method == TEACHER or selector_spec(self.method).keeps_homogeneous
        # Settled, and in one form whatever the order and the spelling: the run's identity has it.
        object.__setattr__(self, "homogeneous", settled_homogeneous(self.homogeneous, keeps))
        object.__setattr__(self, "prior", as_texts(prior_weights(self.prior)))

    def _check_weights(self) -> None:
        if self.method != TEACHER:
            options = SelectorOptions(weights=self.source, model=self.model, faithful=self.faithful)
            check_options(self.method, selector_spec(self.method), options)
        elif not self.source:
            raise RequestError("--selector teacher needs --weights, a cache of `score`")
        elif self.model or self.faithful:
            raise RequestError("--teacher has neither --model nor --faithful; leave them out")

    @property
    def method(self) -> str:
        """Name of the selector."""
        if self.ranker or self.teacher:
            return "ranker" if self.ranker else TEACHER
        return self.selector or self.baseline

    @property
    def source(self) -> str:
        """Where its weights, or its cached scores, come from; empty if it has none."""
        return self.ranker or self.teacher or self.weights

    @property
    def weights_option(self) -> str:
        """The option that named `source`."""
        given = next(name for name in _SHORTHANDS if getattr(self, name))
        return f"--{given}" if given in ("ranker", "teacher") else "--weights"


def open_selector(config: SelectConfig, open_teacher: OpenTeacher | None, device: str) -> Selector:
    """Returns what chooses the patches, on `device`.

    Raises:
        CheckpointError: its weights cannot be used.
        RequestError: options that do not fit the selector or the teacher.
    """
    if config.method != TEACHER:
        options = SelectorOptions(
            weights=config.source,
            model=config.model,
            faithful=config.faithful,
            image_size=config.image_size,
            patch_size=config.patch_size,
            homogeneous=config.homogeneous,
            seed=config.seed,
            device=device,
        )
        return create_selector(config.method, options)
    if open_teacher is None:
        raise RequestError("--teacher: its cache must be opened by who runs the stage")
    teacher = TeacherSelector(open_teacher(), config.homogeneous)
    for name, asked, own in (
        ("crop", config.crop, teacher.crop),
        ("image-size", config.image_size or teacher.image_size, teacher.image_size),
        ("patch-size", config.patch_size or teacher.patch_size, teacher.patch_size),
    ):
        if asked != own:
            raise RequestError(
                f"--{name} is {asked}, and the views of --teacher are {own}; say --{name} {own}"
            )
    return teacher


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample as its patches are chosen."""

    rows: dict[str, Any]
    """One row of `key`, `size`, `crop` and `flip`."""
    pixels: Tensor
    """uint8 (3, S, S)"""
    known: KnownMap
    """Scores (L,), where they do not come from the pixels."""


class UnitSelector:
    """Selects the patches of one shard after another by one selector."""

    def __init__(
        self,
        config: SelectConfig,
        open_teacher: OpenTeacher | None = None,
        device: str = "auto",
        *,
        weights_sha256: str | None = None,
        score_name: str = "score",
        schema: int = SCHEMA,
    ) -> None:
        """Opens the selector.

        Args:
            config: options.
            open_teacher: opens the teacher's cache, if it is the teacher that selects.
            device: where this worker computes; `auto` = what `config.device` says.
            weights_sha256: what the weights must be, where they are read on another machine.
            score_name: the array of the scores.
            schema: of the folder, which says what stands beside them.

        Raises:
            CheckpointError: the weights cannot be used, or are others.
            RequestError: options that do not fit each other.
        """
        if weights_sha256 is not None:
            file = weights_file(config)
            check_same_file(config.weights_option, config.source, file, weights_sha256)
        self.config = config
        self.device = resolve_device(config.device if device == "auto" else device)
        self.selector = open_selector(config, open_teacher, str(self.device))
        self.length = self.selector.grid**2
        self.score_name = score_name if isinstance(self.selector, ScoreSelector) else None
        self.schema = schema
        self.priors = Priors(prior_weights(config.prior), self.selector)
        self.fields = _fields(config, self.length, self.score_name, schema)

    def prepare(self, sample: Sample) -> PreparedSample:
        """Renders the view that is selected from."""
        known: KnownMap = None
        size = self.selector.image_size
        if isinstance(self.selector, TeacherSelector):
            view, known = self.selector.view(sample)
        else:
            view = made_view(sample, self.config.crop, self.config.seed, size)
        rows = {
            "key": sample.key,
            "size": sample.image.shape[:2],
            "crop": [view_row(view)],
            "flip": [view.flip],
        }
        return PreparedSample(rows, render_view(sample.image, view, size), known)

    def batches(self, prepared: Iterable[PreparedSample]) -> Iterator[Arrays]:
        """Yields the arrays of `fields` for the samples that come, some at a time."""
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
        keeps = [num_kept(ratio, self.length) for ratio in self.config.keep_ratio]
        known = [sample.known for sample in group]
        selected, scores, plain = choose(self.selector, images, keys, keeps, known, self.priors)
        made = reference_arrays(images, self.selector.patch_size, self.schema)
        for name, values in ((self.score_name, scores), (PLAIN_SCORE, plain)):
            if name and values is not None:
                made[name] = values.cpu().numpy()
        chosen = [kept.cpu().numpy() for kept in selected]
        check_choices(self.selector, chosen, len(group), keeps)
        for ratio, kept in zip(self.config.keep_ratio, chosen, strict=True):
            made[kept_name(ratio)] = kept
        return made


def weights_file(config: SelectConfig) -> Any:
    """Returns the file whose sha256 says which weights select, or None if there is none."""
    spec = None if config.method == TEACHER else selector_spec(config.method)
    return spec.weights_file(config.source) if spec and spec.weights_file else None


def run(
    config: SelectConfig,
    *,
    units: UnitRunner,
    made_by: Mapping[str, Any],
    open_teacher: OpenTeacher | None = None,
) -> Summary:
    """Writes the selections of every pending shard.

    Selections that were begun with an older schema are gone on with in that one.

    Args:
        config: options.
        units: where the shards are, and what is written.
        made_by: what the choice depends on beside the options: `weights_sha256`, or `teacher_run`
            and `teacher_views`; part of the identity.
        open_teacher: opens the teacher's cache.

    Raises:
        CheckpointError: the weights cannot be used; nothing has been written then.
        RequestError: k out of range, or options that do not fit each other.
    """
    selector = open_selector(config, open_teacher, "cpu")
    Priors(prior_weights(config.prior), selector)
    schema = units.begun().get("schema", SCHEMA)
    selected_by = {
        **{name: value for name, value in identity(config).items() if name not in _SHORTHANDS},
        "image_size": selector.image_size,
        "patch_size": selector.patch_size,
        **made_by,
        "schema": SCHEMA,
        "selector": config.method,
    }
    selected_by = as_begun(selected_by, schema)
    run = SelectRun.of(selected_by)
    has_scores = isinstance(selector, ScoreSelector)
    return units.run(
        "select",
        functools.partial(
            UnitSelector,
            config,
            open_teacher,
            weights_sha256=made_by.get("weights_sha256"),
            score_name=run.score_name,
            schema=selected_by["schema"],
        ),
        identity=selected_by,
        fields=_fields(
            config,
            selector.grid**2,
            run.score_name if has_scores else None,
            selected_by["schema"],
        ),
    )


def _fields(
    config: SelectConfig, length: int, score_name: str | None, schema: int
) -> dict[str, ArrayField]:
    return selection_fields(
        config.keep_ratio,
        length,
        score_name=score_name,
        with_priors=bool(config.prior),
        schema=schema,
    )
