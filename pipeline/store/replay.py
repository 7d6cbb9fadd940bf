"""The views that were scored, made again: shards joined with units by name, images by key."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltrp_core.errors import RequestError
from ltrp_core.views import View, render_view
from pipeline.inputs import OnDamage, Shard
from pipeline.inputs.images import FORMATS
from pipeline.inputs.samples import SampleStream
from pipeline.inputs.shards import DamagedShardError, with_image_ext
from pipeline.store.cache import Cache
from pipeline.store.manifest import check_same_members
from pipeline.store.units import unit_name
from stages.protocols import Arrays, Sample
from stages.records import recorded_view
from stages.types import ViewSizes


def replay_views(cache: Cache, unit: str, arrays: Arrays, shard: Shard) -> NDArray[np.uint8]:
    """Returns the recorded views uint8 (N, V, 3, S, S) of a unit, joined with the shard by key.

    Raises:
        RequestError: the shard is not the one that was scored.
    """
    size = ViewSizes.of(cache.run, cache.url).image_size
    rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
    views = arrays["crop"].shape[1]
    pixels = np.empty((len(rows), views, 3, size, size), dtype=np.uint8)

    def render(sample: Sample) -> str:
        row = rows.get(sample.key)
        for number in range(views if row is not None else 0):
            view = recorded_view(arrays, rows[sample.key], number)
            pixels[rows[sample.key], number] = render_view(sample.image, view, size).numpy()
        return sample.key

    known = cache.rows[unit]
    on_damage: OnDamage = "strict" if known.damage is None else "salvage"
    with SampleStream(shard, on_damage=on_damage, prepare=render, threads=0) as stream:
        found = list(stream)
    missing = set(rows).difference(found)
    if not missing:
        check_same_members(known, len(found) + len(stream.bad))
    if missing or stream.identity["sha256"] != known.shard_sha256:
        raise changed_shard(unit, shard, _sizes(cache, unit))
    return pixels


def render_tiles(
    image: NDArray[np.uint8], view: View, size: int, patch_size: int
) -> NDArray[np.uint8]:
    """Returns the patches uint8 (g, g, p, p, 3) of a view, in the order of `patchify`.

    They are not copied into that order: where a few patches of a view are needed, copying all of
    them takes longer than rendering it.
    """
    grid = size // patch_size
    pixels: NDArray[np.uint8] = render_view(image, view, size).numpy()
    return pixels.reshape(3, grid, patch_size, grid, patch_size).transpose(1, 3, 2, 4, 0)


def match_shards(
    cache: Cache, shards: Sequence[Shard], units: Sequence[str] | None = None
) -> dict[str, Shard]:
    """Returns the shard of every unit, by name and size; its content is checked when it is read.

    Args:
        units: only of these; all if omitted.

    Raises:
        RequestError: a unit's shard is not among `shards`, or has another size: the message then
            names the image that is missing or changed.
    """
    chosen = with_image_ext(shards, str(cache.identity.get("image_ext", "")))
    by_unit = {unit_name(shard.name): shard for shard in chosen}
    matched = {}
    for unit in cache.units if units is None else units:
        row, shard = cache.rows[unit], by_unit.get(unit)
        if shard is None:
            raise RequestError(
                f"no shard given is the one unit {unit} was scored from ({row.shard}, "
                f"{row.shard_size} bytes); pass it with --shards, unchanged"
            )
        if shard.size != row.shard_size:
            raise changed_shard(unit, shard, _sizes(cache, unit))
        matched[unit] = shard
    return matched


Sizes = Mapping[str, tuple[int, int]]
"""Height and width of the images of a unit as they were scored, by key."""


def changed_shard(unit: str, shard: Shard, sizes: Sizes) -> RequestError:
    """Returns an error that names the first image of a unit that is missing or has another size."""
    found: dict[str, tuple[int, int] | None] = {}
    with suppress(DamagedShardError, OSError):
        for member in shard.open("salvage"):
            if member.key in sizes:
                found[member.key] = _header_size(member.data)
    missing = [key for key in sizes if key not in found]
    resized = [key for key in sizes if key in found and found[key] != sizes[key]]
    if missing:
        more = f" nor are {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"{missing[0]!r}, which was scored, is not in it{more}"
    elif resized:
        height, width = sizes[resized[0]]
        now = found[resized[0]]
        is_now = "is no image now" if now is None else f"has {now[1]} x {now[0]} px now"
        what = f"{resized[0]!r} was scored with {width} x {height} px and {is_now}"
    else:
        what = "every image that was scored is there, of the same size, in other bytes"
    return RequestError(
        f"{shard.path} changed since unit {unit} was scored ({what}); "
        "pass the shards that were scored, or score these"
    )


def _sizes(cache: Cache, unit: str) -> Sizes:
    arrays = cache.read_own(unit, ("size",))
    return {
        key: (height, width)
        for key, (height, width) in zip(
            arrays["key"].tolist(), arrays["size"].tolist(), strict=True
        )
    }


def _header_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width as an image's header says, or None."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size[1], image.size[0]
    except Exception:  # any decoder, any damage
        return None
