"""What chooses k patches of an image: the contract of every method, and the table of their names.

A method that scores patches is a `ScoreSelector` and defines `scores`; one whose choice depends on
k, or that has no map of scores, is a `Selector` and defines `select`. Either way it is one file and
one row: in `SELECTORS`, or from another package by an entry point of the group
`ltrp_pipeline.selectors` that names a `SelectorSpec`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from torch import Tensor

from ltrp_core.errors import RequestError, first_line, unknown_name
from ltrp_core.patches import patchify
from ltrp_core.selection import select_patches_at

ENTRY_POINTS = "ltrp_pipeline.selectors"
IMAGE_SIZE, PATCH_SIZE = 224, 16
"""Pixels, of a selector that has none of its own: the paper's."""
HOMOGENEOUS = 0.2
"""Share of the kept that stands for homogeneous regions: the paper's."""
ITS_OWN = -1.0
"""The homogeneous share that an option has before it is settled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectorOptions:
    """What a selector is made with."""

    weights: str = ""
    """A file, a folder or a hub id, of a method that has weights; `random`: untrained ones"""
    model: str = ""
    """`timm:NAME`, the architecture of `weights`, of a method that takes any; empty: its own"""
    image_size: int = 0
    """Side of the images in px; 0: the method's own, else 224"""
    patch_size: int = 0
    """In px; 0: the method's own, else 16"""
    homogeneous: float = HOMOGENEOUS
    """Share of the kept from homogeneous regions (Tab. 1e), of a method that scores patches"""
    seed: int = 0
    """Of methods that draw, and of untrained weights"""
    faithful: bool = False
    """Choose by the rule of the code that the LTRP authors compared with, where ours corrects it"""
    device: str = "cpu"


class Selector(ABC):
    """Chooses k patches of every image; what it chooses does not depend on the images beside it.

    Attributes:
        image_size: side of the images in px.
        patch_size: p in px.
    """

    def __init__(self, image_size: int, patch_size: int) -> None:
        """Keeps the sizes.

        Raises:
            RequestError: the image does not divide into patches.
        """
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise RequestError(
                f"--image-size {image_size} does not divide into patches of {patch_size} px; "
                "choose a multiple"
            )
        self.image_size, self.patch_size = image_size, patch_size

    @property
    def grid(self) -> int:
        """g, patches along a side."""
        return self.image_size // self.patch_size

    @abstractmethod
    def select(self, images: Tensor, keys: Sequence[str], keeps: Sequence[int]) -> list[Tensor]:
        """Returns the kept patches (B, k), int64 and distinct, for each k of `keeps`.

        Args:
            images: (B, 3, S, S), normalized by ImageNet's mean and standard deviation.
            keys: (B,) of the samples, for methods that draw.
            keeps: each from 1 to L.
        """


class ScoreSelector(Selector):
    """A selector with a score for every patch: it keeps the best, and a few homogeneous ones."""

    def __init__(self, image_size: int, patch_size: int, homogeneous: float = 0.2) -> None:
        super().__init__(image_size, patch_size)
        self.homogeneous = homogeneous

    @abstractmethod
    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the scores (B, L) on the device of `images`, higher = kept first."""

    def keep(self, scores: Tensor, images: Tensor, keeps: Sequence[int]) -> list[Tensor]:
        """Returns the kept patches (B, k) by scores (B, L): see `select_patches_at`."""
        patches = patchify(images, self.patch_size)
        return select_patches_at(scores, keeps, patches=patches, homogeneous=self.homogeneous)

    def select(self, images: Tensor, keys: Sequence[str], keeps: Sequence[int]) -> list[Tensor]:
        """Returns the best by `scores`, then the homogeneous ones (Sec. 3.4)."""
        return self.keep(self.scores(images, keys), images, keeps)


class PlainSelector(ScoreSelector):
    """A score selector without a model: of the sizes that are asked for, else the paper's."""

    def __init__(self, options: SelectorOptions) -> None:
        """Takes sizes, homogeneous share and seed from the options."""
        image_size, patch_size = options.image_size or IMAGE_SIZE, options.patch_size or PATCH_SIZE
        super().__init__(image_size, patch_size, options.homogeneous)
        self.seed = options.seed


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectorSpec:
    """One row of `SELECTORS`."""

    make: Callable[[SelectorOptions], Selector]
    help: str
    """A few words, for lists of selectors"""
    weights_file: Callable[[str], Path] | None = None
    """Of `weights`, the file whose sha256 says which weights they are; None: it has none"""
    assumes: str = ""
    """Of one that may be a prior: what that assumes, and where it hurts; see `Priors`"""
    paper: str = ""
    """Where the method is from"""
    uses_labels: bool = False
    """Whether its weights, as its paper has them, were trained with labels"""
    has_scores: bool = True
    """Whether every patch has a score that does not depend on k"""
    takes: str = ""
    """In words, the weights it takes; empty: none"""
    model: str = ""
    """`timm:NAME`, the architecture of a method that takes others, too; empty: it has one only"""
    faithful: str = ""
    """What `faithful` chooses by; empty: there is no such rule that keeps k distinct patches"""
    keeps_homogeneous: bool = True
    """Whether a share of the kept stands for homogeneous regions, unless it is told otherwise"""


SELECTORS: dict[str, SelectorSpec] = {}
"""By name. The package's own are put there by `ltrp_core.selectors`."""


def selector_names() -> list[str]:
    """Returns the names of the package's selectors, then those of installed packages."""
    return list(dict.fromkeys([*SELECTORS, *sorted(_entry_points())]))


def selector_spec(name: str) -> SelectorSpec:
    """Returns the row of a selector.

    Raises:
        RequestError: there is none of that name, or another package's cannot be imported.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    points = _entry_points()
    if name not in points:
        raise unknown_name("selector", name, selector_names())
    try:
        spec = points[name].load()
    except Exception as error:  # whatever the other package raises when it is imported
        raise RequestError(
            f"selector {name!r} of {points[name].value} cannot be imported ({first_line(error)}); "
            "mend or remove the package that brings it"
        ) from error
    if not isinstance(spec, SelectorSpec):
        raise RequestError(
            f"selector {name!r} of {points[name].value} is a {type(spec).__name__}; an entry point "
            f"of {ENTRY_POINTS} must name a SelectorSpec"
        )
    return spec


def create_selector(
    name: str,
    options: SelectorOptions | None = None,
    *,
    weights: str = "",
    model: str = "",
    grid: int = 0,
    patch_size: int = 0,
    homogeneous: float | None = None,
    seed: int = 0,
    faithful: bool = False,
    device: str = "cpu",
) -> Selector:
    """Returns a selector by its name, on a device.

    Args:
        name: one of `selector_names()`.
        options: all that follows in one object; then nothing else is given.
        weights: a file, a folder, a hub id, `timm:NAME` or `random` (untrained), of a method that
            has weights.
        model: `timm:NAME`, the architecture of a file of weights; empty: the method's own.
        grid: g, patches along a side; 0: the method's own, else 14.
        patch_size: p in px; 0: the method's own, else 16.
        homogeneous: share of the kept from homogeneous regions, of a method that scores patches;
            None: 0.2 (Tab. 1e) of LTRP's own, 0 of methods of other papers.
        seed: of methods that draw.
        faithful: choose by the rule of the code that the LTRP authors compared with.
        device: where it computes.

    Raises:
        CheckpointError: its weights cannot be used.
        RequestError: no such selector, or options that do not fit it.

    >>> selector = create_selector("center", grid=3, homogeneous=0.0)
    >>> selector.select(torch.zeros(1, 3, 48, 48), ["a"], [1])
    [tensor([[4]])]
    """
    spec = selector_spec(name)
    if options is None:
        own = settled_homogeneous(ITS_OWN, spec.keeps_homogeneous)
        options = SelectorOptions(
            weights=weights,
            model=model,
            image_size=grid * (patch_size or PATCH_SIZE),
            patch_size=patch_size,
            homogeneous=own if homogeneous is None else homogeneous,
            seed=seed,
            faithful=faithful,
            device=device,
        )
    check_options(name, spec, options)
    return spec.make(options)


def check_options(name: str, spec: SelectorSpec, options: SelectorOptions) -> None:
    """Checks that a selector takes what is asked of it.

    Raises:
        RequestError: it has no weights, needs some, or has no such option.
    """
    if options.weights and spec.weights_file is None:
        raise RequestError(f"selector {name!r} has no weights; leave --weights out")
    if not options.weights and spec.weights_file is not None:
        takes = f": {spec.takes}" if spec.takes else ""
        raise RequestError(f"selector {name!r} needs weights; pass them as --weights{takes}")
    if options.model and not spec.model:
        raise RequestError(f"selector {name!r} has one architecture; leave --model out")
    if options.faithful and not spec.faithful:
        raise RequestError(
            f"selector {name!r} has no other rule that keeps k distinct patches; "
            "leave --faithful out"
        )


def settled_homogeneous(asked: float, keeps: bool) -> float:
    """Returns the homogeneous share that an option of -1 to 1 means.

    Args:
        asked: -1: the selector's own.
        keeps: whether its own is the paper's share, and not 0.

    Raises:
        RequestError: it is below 0, and not -1.
    """
    if asked == ITS_OWN:
        return HOMOGENEOUS if keeps else 0.0
    if asked < 0:
        raise RequestError(
            f"--homogeneous is {asked}, out of range 0.0 .. 1.0; -1 is the selector's own"
        )
    return asked


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
