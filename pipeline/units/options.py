"""Options of every stage that turns shards into units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.inputs import OnDamage
from pipeline.inputs.image_choice import checked_image_ext
from pipeline.units.shares import parse_share
from stages.options import check_ranges, option

ENOUGH_TO_JUDGE = 1000
"""Images below which no share of bad ones stops a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOptions:
    """Options of reading shards."""

    on_damage: OnDamage = option(
        "strict",
        help="strict: a damaged shard fails; salvage: what was readable before the damage is kept",
        changes_numbers=False,
    )
    max_bad: str = option(
        "5%",
        help=f"stop when more of the images ({ENOUGH_TO_JUDGE} at least) are bad; 100% = never",
        changes_numbers=False,
    )
    image_ext: str = option(
        "",
        absent="",
        help="of tars: the image of a sample is the member of this ending, e.g. jpg or left.png; "
        "empty: 0.jpg before 0.depth.png, common kinds before rare ones",
    )
    decode_threads: int = option(
        0,
        low=0,
        help="threads per worker that decode ahead of the model; 0 = one per CPU",
        changes_numbers=False,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_share("--max-bad", self.max_bad)
        object.__setattr__(self, "image_ext", checked_image_ext(self.image_ext))


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitOptions(ShardOptions):
    """Options of stages whose records have two forms."""

    store: Literal["zarr", "webdataset"] = option(
        "zarr", help="form of the records: Zarr v3 arrays, or a WebDataset tar per unit"
    )
