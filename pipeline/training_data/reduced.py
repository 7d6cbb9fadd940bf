"""Folders of `reduce` as PyTorch datasets: what was kept of each image, as timm's NaFlexVit takes.

`ReducedDataset` has a length and any order, of a local folder; `ReducedStream` reads shard after
shard, of object stores, too. Both give dicts:

    patches      float32 (k + 1, 3p²), normalized by ImageNet's mean and deviation, channel fastest
    patch_coord  int64 (k + 1, 2), row and column on the grid
    patch_valid  bool (k + 1,): false for the last slot alone, the anchor: see `naflex_input`
    label        int64 (), -1 where the sample has none
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.utils.data
from torch import Tensor

from ltrp_core.errors import DamagedFileError, RequestError
from pipeline.inputs.keys import sample_key
from pipeline.store.cache import Cache, open_cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.kinds import open_cache_of
from pipeline.store.records.forms import SAMPLES, form_of
from pipeline.store.storage import UNITS, is_url
from pipeline.training_data.extents import ExtentReader, Extents
from pipeline.training_data.reduced_samples import decode_sample

Item = dict[str, Tensor]


def collate(items: Sequence[Item]) -> Item:
    """Returns a batch of items (B, ...), of unequal k as well: those with fewer slots are padded.

    Slots that were added are not valid, and lie at row 0, column 0.

    Args:
        items: at least one.
    """
    slots = max(len(item["patch_valid"]) for item in items)
    batch: Item = {}
    for name, first in items[0].items():
        rows = [item[name] for item in items]
        if first.ndim and any(len(row) < slots for row in rows):
            joined = first.new_zeros((len(rows), slots, *first.shape[1:]))
            for number, row in enumerate(rows):
                joined[number, : len(row)] = row
            batch[name] = joined
        else:
            batch[name] = torch.stack(rows)
    return batch


class ReducedDataset(torch.utils.data.Dataset[Item]):
    """The samples of a local folder of `reduce`, in the order of its shards."""

    def __init__(self, folder: str | Path) -> None:
        """Looks up where every sample lies: the headers of the tars are read, not what is in them.

        Args:
            folder: --out of `reduce`, of any form.

        Raises:
            RequestError: another folder, or one in an object store.
            DamagedUnitError: a shard is damaged.
        """
        if is_url(folder):
            raise RequestError(
                f"{folder} is in an object store, which is read from start to end: take "
                "ReducedStream, or copy the folder here"
            )
        cache = open_cache_of("folder", folder, "reduce")
        self.folder = cache.url
        self.image_size = int(cache.identity["image_size"])
        """Side of the views that were cut into patches, px"""
        self.patch_size = int(cache.identity["patch_size"])
        """px"""
        self.keys: list[str] = []
        """Of the samples, by number"""
        paths, rows = [], []
        for number, unit in enumerate(cache.units):
            paths.append(f"{cache.url}/{UNITS}/{unit}/{cache.receipt(unit).records[0]}")
            found = list(_places(Path(paths[-1])))
            if len(found) != cache.rows[unit].n_ok:
                raise DamagedUnitError(
                    f"{paths[-1]} holds {len(found)} samples, its receipt says "
                    f"{cache.rows[unit].n_ok}; {_remedy(cache.url)}"
                )
            self.keys += [key for key, _ in found]
            rows += [(number, *place) for _, places in found for place in places]
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        self._extents = Extents(paths, table[:, 0], table[:, 1], table[:, 2])
        self._reader: ExtentReader | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Item:
        """Returns a sample.

        Raises:
            IndexError: there is none of that number.
            DamagedFileError: it cannot be read any more.
        """
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        row = 2 * (number % len(self))
        if self._reader is None:
            self._reader = ExtentReader(self._extents)
        try:
            return decode_sample(self._reader.read(row), self._reader.read(row + 1))
        except (OSError, DamagedFileError) as error:
            path = self._extents.paths[int(self._extents.file[row])]
            key = self.keys[number]
            raise DamagedFileError(
                f"{path}: sample {key!r}: {error}; {_remedy(self.folder)}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open files out: each loader process has its own."""
        return {**self.__dict__, "_reader": None}


class ReducedStream(torch.utils.data.IterableDataset[Item]):
    """The samples of a folder of `reduce`, shard after shard.

    Each loader process, of each training process of torch.distributed, reads shards of its own, so
    they give unequal numbers of samples, and none where there are more of them than shards;
    `set_epoch` draws another order. Every shard is compared with its sha256 as it is read.
    """

    def __init__(
        self, folder: str | Path, *, shuffle: bool = False, buffer: int = 1000, seed: int = 0
    ) -> None:
        """Opens the folder.

        Args:
            folder: --out of `reduce`, of any form; a path or a URL.
            shuffle: draws the order of the shards, and of samples within a buffer.
            buffer: samples that are drawn from, at least 1.
            seed: of the order.

        Raises:
            RequestError: another folder.
            DamagedUnitError: a shard is damaged.
        """
        cache = open_cache_of("folder", folder, "reduce")
        self.folder = cache.url
        self._units = list(cache.units)
        self._shuffle, self._buffer, self._seed = shuffle, max(1, buffer), seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next; before the loader is iterated over."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Item]:
        """Yields the samples of this process.

        Raises:
            DamagedFileError: a shard is damaged.
        """
        rng = np.random.default_rng([self._seed, self._epoch])
        order = rng.permutation(len(self._units)) if self._shuffle else range(len(self._units))
        cache = open_cache(self.folder)
        mine = [self._units[number] for number in order][slice(*_share())]
        samples = (sample for unit in mine for sample in _samples(cache, unit))
        for key, picture, document in self._drawn(samples, rng):
            try:
                yield decode_sample(picture, document)
            except DamagedFileError as error:
                raise DamagedFileError(
                    f"{self.folder}: sample {key!r}: {error}; {_remedy(self.folder)}"
                ) from error

    def _drawn(
        self, samples: Iterator[tuple[str, bytes, bytes]], rng: np.random.Generator
    ) -> Iterator[tuple[str, bytes, bytes]]:
        if not self._shuffle:
            yield from samples
            return
        waiting = []
        for sample in samples:
            waiting.append(sample)
            if len(waiting) > self._buffer:
                place = int(rng.integers(len(waiting)))
                waiting[place], waiting[-1] = waiting[-1], waiting[place]
                yield waiting.pop()
        for place in rng.permutation(len(waiting)):
            yield waiting[place]


def _share() -> tuple[int, None, int]:
    """Returns first, end and step of the shards of this process."""
    info = torch.utils.data.get_worker_info()
    worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
    rank, ranks = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank * workers + worker, None, ranks * workers


def _samples(cache: Cache, unit: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Yields key, picture and JSON of the samples of a shard."""
    records, stamps = cache.receipt(unit).records
    with cache.storage.local_copy(f"{UNITS}/{unit}/{records}", stamps) as path:
        for block in form_of(SAMPLES).read_blocks(path, None, stamps):
            for key, members in zip(block["key"], block["members"], strict=True):
                yield key, members[0][1], members[-1][1]


def _places(path: Path) -> Iterator[tuple[str, tuple[tuple[int, int], tuple[int, int]]]]:
    """Yields the key of each sample, and offset and size of its first and its last member."""
    key, first, last = "", (0, 0), (0, 0)
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                place = (member.offset_data, member.size)
                if (found := sample_key(member.name)) != key:
                    if key:
                        yield key, (first, last)
                    key, first = found, place
                last = place
    except (OSError, tarfile.TarError) as error:
        raise DamagedUnitError(f"{path}: {error}; {_remedy(path.parents[2])}") from error
    if key:
        yield key, (first, last)


def _remedy(folder: str | Path) -> str:
    return f"`ltrp-pipeline verify {folder} --deep --repair`, then the same `reduce` again"
