"""The images of shards, for training: checked once, then read in any order by any process."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.files import replace_text
from pipeline.inputs import Shard
from pipeline.inputs.images import ImageError, decode_image
from pipeline.inputs.samples import SampleStream
from pipeline.parsing import read_json_object, read_parquet
from pipeline.training_data.extents import ExtentReader, Extents
from pipeline.training_data.image_places import place_members
from pipeline.training_data.staging import alone
from stages.protocols import BadSample, Progress, Sample

_READY = "images-staged.json"
_KEPT_BYTES = 256 << 20
"""Of decoded images that a process keeps: a small set is decoded once."""


class StagedImages:
    """The images in a folder that `stage_images` filled: see `stages.protocols.Images`.

    Pickles to its folder's name, so that loader processes open their own files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ready = read_json_object(folder / _READY)
        self.identity: Mapping[str, Any] = {"shards": ready["shards"]}
        self.bad = [BadSample(**bad) for bad in ready["bad"]]
        self._kept: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[type[StagedImages], tuple[Path]]:
        return StagedImages, (self.folder,)

    @cached_property
    def keys(self) -> Sequence[str]:
        """(N,) keys, shard after shard."""
        keys: Sequence[str] = read_parquet(self.folder / "keys.parquet")["key"].to_pylist()
        return keys

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, row: int) -> NDArray[np.uint8]:
        """Returns an image (H, W, 3).

        Raises:
            RequestError: it cannot be read any more.
        """
        if row not in self._kept:
            self._keep(row, self._decode(row))
        self._kept.move_to_end(row)
        return self._kept[row]

    def close(self) -> None:
        """Closes the files that are open."""
        self._reader.close()

    @cached_property
    def _reader(self) -> ExtentReader:
        return ExtentReader(Extents.load(self.folder, "images"))

    def _decode(self, row: int) -> NDArray[np.uint8]:
        try:
            return decode_image(self._reader.read(row))
        except (OSError, ImageError) as error:
            path = self._reader.extents.paths[int(self._reader.extents.file[row])]
            raise RequestError(
                f"image {self.keys[row]!r} in {path}: {error}; it was whole when training began, "
                "so the file changed since: bring it back"
            ) from error

    def _keep(self, row: int, image: NDArray[np.uint8]) -> None:
        self._kept[row] = image
        self._kept_bytes += image.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes


def stage_images(shards: Sequence[Shard], folder: Path, progress: Progress) -> Path:
    """Decodes every image once and writes down where it lies; returns `folder`.

    The images of local tars stay where they are; others are copied into `folder`. Those that do
    not decode are left out, and listed.

    Raises:
        RequestError: no image at all, or two shards of one name.
        DamagedShardError: a shard is not whole.
    """
    wanted = [[shard.path, shard.size, shard.stamp] for shard in shards]
    with alone(folder):
        if _is_ready(folder, wanted):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        extents, keys, bad, sha256 = [], [], [], dict[str, str]()
        with progress.task("read images", len(shards), "shards") as bar:
            for number, shard in enumerate(shards):
                if shard.name in sha256:
                    raise RequestError(f"two shards are called {shard.name}; rename one")
                found, places, left_out, sha256[shard.name] = _stage_shard(
                    shard, folder / f"images-{number:06d}"
                )
                keys += found
                extents.append(places)
                bad += left_out
                bar.advance(1)
        if not keys:
            raise RequestError(
                f"no image in {len(shards)} shard(s); pass tars or folders of images"
            )
        Extents.join(extents).save(folder, "images")
        pq.write_table(pa.table({"key": keys}), folder / "keys.parquet")
        ready = {
            "wanted": wanted,
            "shards": sha256,
            "bad": [dataclasses.asdict(one) for one in bad],
        }
        replace_text(folder / _READY, json.dumps(ready))
    return folder


def _is_ready(folder: Path, wanted: list[list[Any]]) -> bool:
    try:
        ready = read_json_object(folder / _READY)
    except (OSError, ValueError):
        return False
    return bool(ready.get("wanted") == json.loads(json.dumps(wanted)))


def _stage_shard(shard: Shard, copy: Path) -> tuple[list[str], Extents, list[BadSample], str]:
    """Returns the keys of a shard's images, their places, those left out, and its sha256."""
    with SampleStream(shard, prepare=_key, threads=4) as stream:
        keys = list(stream)
    whole = set(keys)
    sha256 = str(stream.identity["sha256"])
    reader = shard.open("strict")
    path, places = place_members(shard, (member for member in reader if member.key in whole), copy)
    if reader.identity["sha256"] != sha256:
        raise RequestError(f"{shard.path} changed while it was read; start again")
    table = np.array([places[key] for key in keys], dtype=np.int64).reshape(-1, 2)
    extents = Extents([path], np.zeros(len(table), np.int32), table[:, 0], table[:, 1])
    return keys, extents, stream.bad, sha256


def _key(sample: Sample) -> str:
    return sample.key
