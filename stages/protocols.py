"""What a stage needs of the outside world; `pipeline` implements it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stages.types import ScoreRun

Arrays = dict[str, NDArray[Any]]
"""Named arrays whose first axis is the N samples of a unit."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded image of a shard."""

    key: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    members: tuple[tuple[str, bytes], ...] = ()
    """Ending and content of its members, the image's first; of the others those that were asked
    for"""


@dataclass(frozen=True, slots=True)
class BadSample:
    """A member that holds no usable image; it becomes a row of the unit's errors."""

    key: str
    offset: int
    """Of the member's data in the tar, bytes."""
    reason: str
    """One word: what `n_bad` is counted by."""
    message: str


CATEGORIES = ("all", "learned", "unseen", "unseen-strict")
"""Groups of categories that can be the foreground, by whether ImageNet-1K has them as a label;
`unseen-strict` is `unseen` without what one may argue about."""


@dataclass(frozen=True, slots=True)
class Foreground:
    """What the annotations of an image say, in its own pixels; True = is."""

    is_foreground: NDArray[np.bool_]
    """(H, W): the union of boxes or masks"""
    is_ignored: NDArray[np.bool_]
    """(H, W): crowd regions, neither foreground nor background"""
    name: str = ""
    """What the annotations call the image: an annotation is of one image only. Empty: unknown."""


MEMBERS = "members"
"""dtype of a field whose rows are samples: tuples of pairs, ending and content of each member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayField:
    """One array of a unit: its dtype, its shape after the N samples, and an illegal fill value."""

    dtype: str
    """Of NumPy, `string` or `MEMBERS`"""
    shape: tuple[int, ...]
    fill: Any
    delta: bool = False
    """Whether neighbors are close: stored as differences."""
    high: int | None = None
    """Values must be smaller; checked before a unit is committed."""
    ascending: bool = False
    """Whether values must ascend strictly along the last axis."""
    raw: bool = False
    """Stored as they are: photographs, which a general compressor hardly makes smaller."""


@dataclass(kw_only=True, slots=True)
class Summary:
    """What a command prints at its end; `failed` names each unit that is not done, and why.

    Input shards = done + skipped + failed + pending.
    """

    stage: str
    done: int = 0
    skipped: int = 0
    """Complete before this run."""
    failed: dict[str, str] = field(default_factory=dict)
    pending: int = 0
    """Not reached, because the run was stopped."""
    stopped: str = ""
    """Why the run ended before all was tried, e.g. a full disk."""
    n_ok: int = 0
    n_bad: int = 0
    seconds: float = 0.0
    rate: str = ""
    """What there is one of, e.g. "41.2 images/s"."""
    notes: list[str] = field(default_factory=list)
    """Whatever else must not go unsaid, e.g. samples that were left out."""
    output: str = ""
    next_step: str = ""


class UnitStage(Protocol):
    """The work on shards: samples in, rows out. Made once a worker, used for many shards."""

    def prepare(self, sample: Sample) -> Any:
        """Returns what of a sample can be done ahead of the model; called on several threads."""
        ...

    def batches(self, prepared: Iterable[Any]) -> Iterator[Arrays]:
        """Yields the rows of the samples in their order, some at a time."""
        ...

    def take_notes(self) -> list[str]:
        """Returns what must not go unsaid since the last call, e.g. that the batch was halved."""
        ...


@runtime_checkable
class JoiningStage(Protocol):
    """A `UnitStage` that reads what another stage has made of the same shard."""

    def begin(self, unit: str) -> None:
        """Opens the other stage's unit; called before the samples of a shard come."""
        ...


class UnitRunner(Protocol):
    """Runs a `UnitStage` over every pending shard and commits one unit each."""

    def begun(self) -> Mapping[str, Any]:
        """Returns the identity of the run that the output holds already; empty at the start."""
        ...

    def slots(self) -> Collection[str]:
        """Returns what the workers will be given: `cpu`, `cuda`, `auto` = what this process has."""
        ...

    def run(
        self,
        stage: str,
        make: Callable[[str], UnitStage],
        *,
        identity: Mapping[str, Any],
        fields: Mapping[str, ArrayField],
        gpu_only: bool = False,
    ) -> Summary:
        """Runs `make(device)` on every pending shard, with `gpu_only` on GPUs alone."""
        ...


class Images(Protocol):
    """The images of some shards, each reachable by its number.

    Picklable and small: loader processes open their own.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the images are: the shards' sha256."""
        ...

    @property
    def bad(self) -> Sequence[BadSample]:
        """Members that did not decode; they are reported, and have no number."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """(N,) keys of all images."""
        ...

    def image(self, row: int) -> NDArray[np.uint8]:
        """Returns an image (H, W, 3)."""
        ...


class Records(Protocol):
    """Cached records, each reachable by the number of its sample and of the record in it.

    Record r of a sample is partition r % P of its view r // P. Picklable and small: loader
    processes open their own.
    """

    @property
    def run(self) -> ScoreRun:
        """What the cache was scored with."""
        ...

    @property
    def units(self) -> Sequence[str]:
        """Names of all units."""
        ...

    @property
    def starts(self) -> NDArray[np.int64]:
        """(units + 1,) number of the first sample of each unit, then of all samples."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """(N,) keys of all samples."""
        ...

    @property
    def has_whole_views(self) -> bool:
        """Whether every patch of a view can be had."""
        ...

    def lists(
        self, sample: NDArray[np.int64], record: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the patches (b, m) that were scored in some records, and their scores.

        m = n visible patches, or the L - n masked ones: what `run.scored` says.
        """
        ...

    def visible_patches(
        self, sample: NDArray[np.int64], record: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Returns the pixels (b, n, 3p²) of the visible patches of some records."""
        ...

    def view_patches(
        self, sample: NDArray[np.int64], view: NDArray[np.int64], patches: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Returns the pixels (b, k, 3p²) of any patches (b, k) of some views; whole ones."""
        ...

    def whole_views(self, sample: NDArray[np.int64], view: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns all patches (b, L, 3p²) of some views."""
        ...


class CacheReader(Protocol):
    """A finished cache."""

    @property
    def run(self) -> Mapping[str, Any]:
        """Identity of the run, as run.json has it: see `stages.types`."""
        ...

    @property
    def units(self) -> Sequence[str]:
        """Names of all complete units."""
        ...

    def read(self, unit: str, names: Collection[str] | None = None) -> Arrays:
        """Returns the arrays of a unit, or those of `names`; always with `key`."""
        ...


class Annotations(Protocol):
    """Where the objects of an image are."""

    @property
    def names(self) -> Collection[str]:
        """What the annotations call their images, for messages."""
        ...

    def foreground(
        self, key: str, height: int, width: int, categories: str = "all"
    ) -> Foreground | None:
        """Returns the union of the objects of some of `CATEGORIES`; None: not annotated."""
        ...


class Labels(Protocol):
    """What class an image is of, or which classes are in it, by its key."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, by their numbers."""
        ...

    @property
    def is_multi(self) -> bool:
        """Whether an image may have none or several; else it has exactly one."""
        ...

    def of(self, key: str) -> tuple[int, ...] | None:
        """Returns the numbers of an image's classes, ascending; None: it is not labeled."""
        ...


class Views(Protocol):
    """The views that a cache was made from, as pixels."""

    def pixels(self, unit: str, arrays: Arrays) -> NDArray[np.uint8]:
        """Returns the first view of each of the N images of a unit, (N, 3, S, S).

        Args:
            unit: its name.
            arrays: its `key`, `size`, `crop` and `flip`.
        """
        ...


class CountCache(Protocol):
    """What was counted in the patches of whole units, kept from one evaluation to the next."""

    def get(self, unit: str, categories: str) -> Arrays | None:
        """Returns what `put` was given for the same unit and the same annotations, if anything."""
        ...

    def put(self, unit: str, categories: str, counts: Arrays) -> None:
        """Keeps the counts of a unit."""
        ...


class TrainingFolder(Protocol):
    """Where a training stage leaves its checkpoints and curves; it refuses another run's folder."""

    def open(self, identity: Mapping[str, Any]) -> None:
        """Claims the folder for a run, or refuses: another run is there."""
        ...

    def resume(self) -> Mapping[str, Any] | None:
        """Returns the state of the last checkpoint that is whole, or None at the start."""
        ...

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one."""
        ...

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keeps `state`, and its curve."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds some values to the log that is watched while training runs."""
        ...

    def picture(self, name: str, epoch: int, pixels: NDArray[np.uint8]) -> None:
        """Keeps a picture (H, W, 3) of an epoch."""
        ...


class Bar(Protocol):
    """One piece of long work on the screen."""

    def advance(self, amount: int = 1, **facts: float | str) -> None:
        """Adds what was done, and facts to show beside it."""
        ...


class Progress(Protocol):
    """A bar on a terminal, a JSON line now and then otherwise."""

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Opens a bar; `unit` is what there are `total` of."""
        ...
