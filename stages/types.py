"""What run.json says of a run, typed: of a cache of scores, of a cache of selections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from ltrp_core.errors import RequestError
from ltrp_core.partitions import Scored, num_scored

LABELS = {
    "patch-variance": "patch variance",
    "border": "border contrast",
    "border-features": "border contrast of features",
}
"""Selectors whose name in tables is not their name as an option."""
PLAIN_SCORE = "plain_score"
"""Array of a selector's own scores, where `score` is with the ranks of priors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSizes:
    """Sizes of the views, in pixels."""

    image_size: int
    patch_size: int
    crop: str = "eval"

    @property
    def grid(self) -> int:
        """g, patches along a side."""
        return self.image_size // self.patch_size

    @property
    def length(self) -> int:
        """L, patches of a view."""
        return self.grid**2

    @classmethod
    def of(cls, run: Mapping[str, Any], where: str = "the cache") -> Self:
        """Returns the run that `run`, the identity in a run.json, describes.

        Args:
            run: read from a file; keys that are of no use here are left alone.
            where: the cache, for messages.

        Raises:
            RequestError: a key is missing or of another type: names both.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in run:
                if field.default is dataclasses.MISSING:
                    raise RequestError(f"{where} has no {field.name!r} in its run.json{_WHOSE}")
                continue
            values[field.name] = _value(hints[field.name], field.name, run[field.name], where)
        found = cls(**values)
        if found.patch_size < 1 or found.image_size % found.patch_size or found.image_size < 1:
            raise RequestError(
                f"{where} has images of {found.image_size} px and patches of {found.patch_size} px "
                f"in its run.json, which do not divide{_WHOSE}"
            )
        return found


_WHOSE = "; pass the --out folder of `ltrp-pipeline score` or `select`, as it was written"


def _value(kind: Any, name: str, found: Any, where: str) -> Any:
    """Returns a value of JSON as `kind`: int, float, str, bool, a Literal or a tuple of one."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if kind is float and is_number:
        return float(found)
    if kind is int and is_number and found == int(found):
        return int(found)
    if kind in (str, bool) and isinstance(found, kind):
        return found
    if get_origin(kind) is Literal and found in get_args(kind):
        return found
    if kind in (tuple[float, ...], tuple[str, ...]) and isinstance(found, list | tuple):
        return tuple(_value(kind.__args__[0], name, one, where) for one in found)
    raise RequestError(f"{where} has {name} = {str(found)[:40]!r} in its run.json{_WHOSE}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRun(ViewSizes):
    """A run of `score`: see `stages.score.ScoreConfig` for what its options mean."""

    views: int
    partitions: int
    sampler: str
    mask_ratio: float = 0.9
    metric: str = "l1"
    phase: str = "decoder"
    region: str = "masked"
    seed: int = 0
    pixels: bool = False
    mae_sha256: str = ""
    scored: Scored = "visible"
    """`masked`: by `--metric surprise`"""

    @property
    def partitions_per_round(self) -> int:
        """Fewest partitions that can score every patch of a view once."""
        return -(-self.length // self.num_scored)

    @property
    def disjoint_by(self) -> int | None:
        """Partitions of a round, where two halves of a view's partitions must be whole rounds.

        Of a cover of visible patches; else any partitions are independent of any others: None.
        """
        is_cover = self.sampler == "cover" and self.scored == "visible"
        return self.partitions_per_round if is_cover else None

    @property
    def num_scored(self) -> int:
        """Patches of a partition that have a score: n, or L - n."""
        return num_scored(self.length, self.mask_ratio, self.scored)

    @property
    def records(self) -> int:
        """V * P, records of an image."""
        return self.views * self.partitions


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectRun(ViewSizes):
    """A run of `select`: by which selector, and under which name its scores are stored."""

    keep_ratio: tuple[float, ...]
    homogeneous: float = 0.2
    selector: str = ""
    source: str = "ranker"
    """Of schema 2, which had no `selector`: `ranker`, `teacher` or `baseline`"""
    baseline: str = ""
    """Of schema 2: which one"""
    prior: tuple[str, ...] = ()
    """NAME=WEIGHT of each prior whose ranks were added to the scores"""
    weights_sha256: str = ""
    ranker_sha256: str = ""
    """Of schema 2: `weights_sha256`"""

    @property
    def selected_by(self) -> str:
        """The selector's name, also of runs that were made before it was written down."""
        if self.selector:
            return self.selector
        return self.baseline or "baseline" if self.source == "baseline" else self.source

    @property
    def label(self) -> str:
        """What tables call it: the selector, and its priors with their weights."""
        priors = [_term(*text.partition("=")[::2]) for text in self.prior]
        return " + ".join([LABELS.get(self.selected_by, self.selected_by), *priors])

    @property
    def score_name(self) -> str:
        """The array of the scores; a selector that has none has no such array."""
        return "score" if self.selector else f"{self.source}_score"

    @property
    def plain_name(self) -> str:
        """The array of the selector's own scores, which is there where priors were added."""
        return PLAIN_SCORE

    @property
    def weights(self) -> str:
        """sha256 of the weights that selected, in hex; empty if there were none."""
        return self.weights_sha256 or self.ranker_sha256


def _term(name: str, weight: str) -> str:
    """Returns `border`, or `0.5 border` of another weight than 1."""
    return name if weight in ("", "1") else f"{weight} {name}"


def score_name(run: Mapping[str, Any]) -> str:
    """Returns the name of the array of scores of a cache of `score` or `select`."""
    return SelectRun.of(run).score_name if run.get("stage") == "select" else "score"
