"""Records as a Zarr v3 group: one Zarr shard an array, zstd and crc32c on every chunk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.codecs.numcodecs import Delta
from zarr.errors import ZarrUserWarning

from pipeline.store.errors import DamagedUnitError
from stages.protocols import ArrayField, Arrays

_CHUNK_ROWS = 4096


def write(folder: Path, arrays: Arrays, fields: Mapping[str, ArrayField]) -> None:
    """Writes `arrays` (first axis N, of `fields`' dtypes and shapes) into a new group `folder`.

    The same arrays give the same bytes.
    """
    with warnings.catch_warnings():
        # numcodecs' Delta and variable-length strings are not in the Zarr v3 core specification;
        # both are read by every Zarr-Python since 3.1.
        warnings.simplefilter("ignore", ZarrUserWarning)
        warnings.filterwarnings("ignore", message=".*(Zarr V?3|Zarr format 3).*")
        group = zarr.open_group(folder, mode="w-", zarr_format=3)
        for name, field in fields.items():
            _write_array(group, name, arrays[name], field)


def _write_array(
    group: zarr.Group, name: str, values: np.ndarray[Any, Any], field: ArrayField
) -> None:
    shape = (len(values), *field.shape)
    if values.shape != shape:
        raise ValueError(f"array {name!r} must be {shape}; got {values.shape}")
    rows = max(1, min(_CHUNK_ROWS, len(values)))
    shard_rows = -(-max(1, len(values)) // rows) * rows
    text = field.dtype == "string"
    array = group.create_array(
        name,
        shape=shape,
        dtype=str if text else field.dtype,
        chunks=(rows, *field.shape),
        shards=(shard_rows, *field.shape),
        filters=[Delta(dtype=np.dtype(field.dtype).str)] if field.delta else None,
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=field.fill,
    )
    if len(values):
        array[:] = values.astype(object) if text else values.astype(field.dtype)


def read(folder: Path) -> Arrays:
    """Returns every array of the group as NumPy arrays.

    Raises:
        DamagedUnitError: the group or a chunk is unreadable, or fails its checksum.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)
            warnings.filterwarnings("ignore", message=".*(Zarr V?3|Zarr format 3).*")
            group = zarr.open_group(folder, mode="r", zarr_format=3)
            return {name: np.asarray(array[:]) for name, array in group.arrays()}
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DamagedUnitError(f"{folder}: unreadable records: {error}") from error
