"""Any records of a staged cache, by number: what a training step is made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.inputs.images import ImageError, decode_image
from pipeline.parsing import read_parquet
from pipeline.store.errors import DamagedUnitError
from pipeline.store.replay import render_tiles
from pipeline.training_data.extents import ExtentReader, Extents, map_array
from pipeline.training_data.staging import read_ready
from stages.records import recorded_view, scored_lists
from stages.types import ScoreRun

_VIEWS_KEPT = 64
"""Views last rendered: several records of one view often stand in one step."""


class StagedRecords:
    """The records in a folder that `stage_records` filled: see `stages.protocols.Records`.

    Pickles to its folder's name, so that loader processes open their own files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ready = read_ready(folder)
        self.identity: Mapping[str, Any] = ready["run"]
        self.run = ScoreRun.of(self.identity, ready["url"])
        self.units: Sequence[str] = ready["units"]
        self.starts = np.array(ready["starts"], dtype=np.int64)
        self.url: str = ready["url"]
        self._views_of_parts: Sequence[int] = ready["views_of_parts"]
        self._rendered: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()

    def __reduce__(self) -> tuple[type[StagedRecords], tuple[Path]]:
        return StagedRecords, (self.folder,)

    @cached_property
    def keys(self) -> Sequence[str]:
        """(N,) keys of all samples, unit after unit."""
        keys: Sequence[str] = read_parquet(self.folder / "keys.parquet")["key"].to_pylist()
        return keys

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def has_whole_views(self) -> bool:
        """Whether every patch of a view can be had: from the images, or from stored patches."""
        return self._has_images or self._is_covered

    @property
    def is_decoded(self) -> bool:
        """Whether no image needs to be decoded to train on visible patches."""
        return bool(self._pixels) or self._views is not None

    def lists(
        self, sample: NDArray[np.int64], record: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the patches (b, m) that were scored in some records, and their scores."""
        view, partition = np.divmod(record, self.run.partitions)
        arrays = {name: self._array(name)[sample, view, partition] for name in ("visible", "score")}
        patches, score = scored_lists(self.run, arrays)
        return patches, score.astype(np.float32)

    def visible_patches(
        self, sample: NDArray[np.int64], record: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Returns the pixels (b, n, 3p²) of the visible patches of some records, channel fastest.

        Raises:
            DamagedUnitError: stored pixels cannot be read.
            RequestError: an image cannot be read or is not the one that was scored.
        """
        view, partition = np.divmod(record, self.run.partitions)
        if self._pixels and not self._stores_views:
            return self._stored_pixels(sample, view, partition)
        visible = self._array("visible")[sample, view, partition].astype(np.int64)
        return self.view_patches(sample, view, visible)

    def view_patches(
        self, sample: NDArray[np.int64], view: NDArray[np.int64], patches: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Returns the pixels (b, k, 3p²) of any patches (b, k) of some views, channel fastest.

        Raises:
            DamagedUnitError, RequestError: as `visible_patches`; or not `has_whole_views`.
        """
        if self._views is not None:
            chosen: NDArray[np.uint8] = self._views[sample[:, None], view[:, None], patches]
            return chosen
        if not self._has_images:
            places = patches[..., None]
            return np.take_along_axis(self.whole_views(sample, view), places, axis=1)
        pixels = np.empty((*patches.shape, self._patch_bytes), np.uint8)
        rows, columns = np.divmod(patches, self._grid)
        for place, (row, number) in enumerate(zip(sample.tolist(), view.tolist(), strict=True)):
            tiles = self._replayed(row, number)
            chosen_tiles = pixels[place].reshape(-1, *tiles.shape[2:])
            chosen_tiles[...] = tiles[rows[place], columns[place]]
        return pixels

    def whole_views(self, sample: NDArray[np.int64], view: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns all patches (b, L, 3p²) of some views, channel fastest.

        Raises:
            DamagedUnitError, RequestError: as `visible_patches`; or not `has_whole_views`.
        """
        if not self.has_whole_views:
            raise RequestError(
                f"{self.url} holds only the visible patches of each view; "
                "pass the scored images with --shards"
            )
        if self._views is not None:
            chosen: NDArray[np.uint8] = self._views[sample, view]
            return chosen
        patches = np.empty((len(sample), self._length, self._patch_bytes), np.uint8)
        if self._has_images:
            for place, (row, number) in enumerate(zip(sample.tolist(), view.tolist(), strict=True)):
                tiles = self._replayed(row, number)
                patches[place].reshape(tiles.shape)[...] = tiles
            return patches
        if self._stores_views:
            return self._stored_pixels(sample, view, np.zeros(len(sample), np.int64))
        partitions = self.run.partitions
        for place, (row, number) in enumerate(zip(sample.tolist(), view.tolist(), strict=True)):
            rows, views = np.full(partitions, row), np.full(partitions, number)
            stored = self._stored_pixels(rows, views, np.arange(partitions))
            patches[place, self._array("visible")[row, number]] = stored
        return patches

    def close(self) -> None:
        """Closes the files that are open."""
        for reader, _ in self._pixels:
            reader.close()
        if self._has_images:
            self._images.close()

    @property
    def _grid(self) -> int:
        return self.run.grid

    @property
    def _length(self) -> int:
        return self._grid**2

    @property
    def _patch_bytes(self) -> int:
        return 3 * self.run.patch_size**2

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            self._arrays[name] = map_array(self.folder / f"{name}.npy")
        return self._arrays[name]

    @cached_property
    def _views(self) -> NDArray[np.uint8] | None:
        path = self.folder / "views.npy"
        return map_array(path) if path.exists() else None

    @cached_property
    def _has_images(self) -> bool:
        return (self.folder / "images.npy").exists()

    @property
    def _stores_views(self) -> bool:
        """Whether stored pixels are those of whole views, once, and not of visible patches."""
        return self.run.scored == "masked" and bool(self._pixels)

    @cached_property
    def _is_covered(self) -> bool:
        """Whether the stored pixels of each view are those of every patch."""
        if self._stores_views:
            return True
        is_enough = self.run.partitions >= self.run.partitions_per_round
        return self.run.sampler == "cover" and is_enough and bool(self._pixels)

    @cached_property
    def _images(self) -> ExtentReader:
        return ExtentReader(Extents.load(self.folder, "images"))

    @cached_property
    def _pixels(self) -> list[tuple[ExtentReader, int]]:
        """The readers of stored pixels, and the first view of each."""
        readers: list[tuple[ExtentReader, int]] = []
        first = 0
        for number in range(len(list(self.folder.glob("pixels-*.npy")))):
            readers.append((ExtentReader(Extents.load(self.folder, f"pixels-{number}")), first))
            first += int(self._views_of_parts[number])
        return readers

    def _stored_pixels(
        self, sample: NDArray[np.int64], view: NDArray[np.int64], partition: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Returns the patches that are stored of some partitions, or of whole views: number 0."""
        n, partitions = self._array("visible").shape[-1], self.run.partitions
        if self._stores_views:
            n, partitions = self._length, 1
        patches = np.empty((len(sample), n, self._patch_bytes), np.uint8)
        list_bytes = n * self._patch_bytes
        if len(self._pixels) > 1:
            firsts = np.array([first for _, first in self._pixels])
            part = np.searchsorted(firsts, view, side="right") - 1
            skip = ((view - firsts[part]) * partitions + partition) * list_bytes
        else:
            part = np.zeros(len(sample), np.int64)
            skip = (view * partitions + partition) * list_bytes
        places = zip(sample.tolist(), part.tolist(), skip.tolist(), patches, strict=True)
        for row, number, start, target in places:
            try:
                self._pixels[number][0].read_into(row, start, target)
            except OSError as error:
                raise DamagedUnitError(
                    f"{self.url}: unit {self._unit(row)}: pixels of {self.keys[row]!r}: {error}; "
                    f"`ltrp-pipeline verify {self.url} --deep`"
                ) from error
        return patches

    def _replayed(self, row: int, number: int) -> NDArray[np.uint8]:
        """Returns the patches (g, g, p, p, 3) of a view, from the encoded image."""
        if (row, number) not in self._rendered:
            try:
                image = decode_image(self._images.read(row))
                self._check_size(row, image.shape[:2])
            except (OSError, ImageError) as error:
                path = self._images.extents.paths[int(self._images.extents.file[row])]
                raise RequestError(
                    f"image {self.keys[row]!r} of unit {self._unit(row)} in {path}: {error}; it "
                    "was scored, so the file changed since: pass the shards that were scored"
                ) from error
            arrays = {name: self._array(name) for name in ("crop", "flip")}
            self._rendered[row, number] = render_tiles(
                image,
                recorded_view(arrays, row, number),
                self.run.image_size,
                self.run.patch_size,
            )
            while len(self._rendered) > _VIEWS_KEPT:
                self._rendered.popitem(last=False)
        return self._rendered[row, number]

    def _check_size(self, row: int, found: tuple[int, ...]) -> None:
        scored = tuple(self._array("size")[row].tolist())
        if found != scored:
            raise ImageError("changed", f"is {found[::-1]} px, was scored with {scored[::-1]} px")

    def _unit(self, row: int) -> str:
        return self.units[int(np.searchsorted(self.starts, row, side="right")) - 1]
