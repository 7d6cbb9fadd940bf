"""Where the images of a unit lie, checked to be those that were scored."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.inputs import OnDamage, Shard
from pipeline.inputs.images import ImageError, decode_image
from pipeline.inputs.shards import Member, TarShard
from pipeline.store.manifest import UnitRow, check_same_members
from pipeline.store.replay import changed_shard
from pipeline.training_data.extents import Extents
from stages.protocols import Sample


def image_places(
    shard: Shard,
    known: UnitRow,
    rows: Mapping[str, int],
    sizes: NDArray[np.int32],
    folder: Path,
    *,
    render: Callable[[Sample], None] | None,
) -> Extents:
    """Returns where the encoded image of every row is: one pass over a shard.

    The images of a local tar stay where they are; others are copied to a file in `folder`.

    Args:
        rows: row of each key; consecutive numbers.
        sizes: (N, 2) height and width of the images that were scored, in the rows' order.
        render: called with every decoded image of a row, if given.

    Raises:
        RequestError: the shard is not the one that was scored; an image that is missing, or of
            another size, is named.
        DamagedShardError: it is not whole.
    """
    first = min(rows.values(), default=0)
    reader = shard.open(_policy(known))

    number = 0

    def scored() -> Iterator[Member]:
        nonlocal number
        for member in reader:
            number += 1
            if member.key not in rows:
                continue
            yield member
            if render is not None:
                # One that does not decode, or not to that size, shows in the sha256 below.
                with suppress(ImageError, RequestError):
                    render(Sample(member.key, decode_image(member.data)))

    path, places = place_members(shard, scored(), folder / f"{known.unit}.{uuid.uuid4().hex}")
    ordered = sorted(rows, key=rows.__getitem__)
    if rows.keys() != places.keys() or reader.identity["sha256"] != known.shard_sha256:
        then = [(height, width) for height, width in sizes.tolist()]
        raise changed_shard(known.unit, shard, dict(zip(ordered, then, strict=True)))
    check_same_members(known, number + len(reader.left_out))
    table = np.array([places[key] for key in ordered], dtype=np.int64).reshape(-1, 2)
    assert [rows[key] for key in ordered] == list(range(first, first + len(ordered)))
    return Extents([path], np.zeros(len(table), np.int32), table[:, 0], table[:, 1])


def place_members(
    shard: Shard, members: Iterable[Member], copy: Path
) -> tuple[str, dict[str, tuple[int, int]]]:
    """Returns the file that members of a shard lie in, and offset and size of each, by key.

    That is the shard itself if it is a local tar; else they are copied to the file `copy`.
    """
    stays = isinstance(shard, TarShard) and "://" not in shard.path
    if not stays:
        copy.parent.mkdir(exist_ok=True)
    places: dict[str, tuple[int, int]] = {}
    with open(os.devnull if stays else copy, "wb") as file:
        for member in members:
            offset = member.offset if stays else file.tell()
            places[member.key] = (offset, len(member.data))
            if not stays:
                file.write(member.data)
    return shard.path if stays else str(copy), places


def _policy(known: UnitRow) -> OnDamage:
    return "strict" if known.damage is None else "salvage"
