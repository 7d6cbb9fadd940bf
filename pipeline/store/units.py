"""A unit's way to its final name: write, read back, hash, receipt, rename."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import zarr_records
from pipeline.store.errors import DamagedUnitError
from pipeline.store.receipts import FileStamp, Receipt, file_sha256, read_receipt, write_receipt
from stages.protocols import ArrayField, Arrays, BadSample

RECORDS, RECEIPT, ERRORS = "records.zarr", "receipt.json", "errors.parquet"
UNITS, ATTEMPTS, QUARANTINE = "units", ".attempt", "quarantine"


def unit_name(shard_stem: str, shard_sha256: str) -> str:
    """Returns the unit's folder name: readable, and unique to the shard's content.

    Letters, digits, `.`, `_`, `-` of the stem are kept; it never holds a path separator.
    """
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in shard_stem)[:80]
    return f"{safe.lstrip('.') or 'shard'}-{shard_sha256[:12]}"


def commit_unit(
    cache: Path,
    name: str,
    *,
    arrays: Arrays,
    fields: Mapping[str, ArrayField],
    bad: Sequence[BadSample],
    facts: Mapping[str, object],
) -> Receipt:
    """Publishes one unit; returns its receipt. An equal unit that is there already is kept.

    Args:
        facts: `run_id`, `input` and `seconds` of the receipt.

    Raises:
        DamagedUnitError: what was written does not read back as `arrays`.
        OSError: disk full and the like; nothing is left under the final name.
    """
    attempt = cache / ATTEMPTS / f"{name}.{uuid.uuid4().hex}"
    attempt.mkdir(parents=True)
    try:
        zarr_records.write(attempt / RECORDS, arrays, fields)
        _check_read_back(attempt / RECORDS, arrays, fields)
        if bad:
            table = pa.Table.from_pylist([asdict(row) for row in bad])
            pq.write_table(table, attempt / ERRORS, write_page_checksum=True)
        receipt = _receipt(attempt, name, arrays, bad, facts)
        write_receipt(attempt / RECEIPT, receipt)
        _sync_tree(attempt)
        return _publish(cache, attempt, name, receipt)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _receipt(
    attempt: Path,
    name: str,
    arrays: Arrays,
    bad: Sequence[BadSample],
    facts: Mapping[str, object],
) -> Receipt:
    reasons: dict[str, int] = {}
    for row in bad:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    n_ok = len(arrays["key"])
    return Receipt.from_json(
        {
            "unit": name,
            "n_in": n_ok + len(bad),
            "n_ok": n_ok,
            "n_bad": len(bad),
            "reasons": dict(sorted(reasons.items())),
            "files": {
                path.relative_to(attempt).as_posix(): asdict(
                    FileStamp(size=path.stat().st_size, sha256=file_sha256(path))
                )
                for path in sorted(attempt.rglob("*"))
                if path.is_file()
            },
            "host": socket.gethostname(),
            **facts,
        }
    )


def _check_read_back(folder: Path, arrays: Arrays, fields: Mapping[str, ArrayField]) -> None:
    stored = zarr_records.read(folder)
    for name in fields:
        same = np.array_equal(
            stored[name], arrays[name], equal_nan=np.issubdtype(arrays[name].dtype, np.floating)
        )
        if not same:
            raise DamagedUnitError(f"{folder}: array {name!r} does not read back as written")


def _publish(cache: Path, attempt: Path, name: str, receipt: Receipt) -> Receipt:
    units = cache / UNITS
    units.mkdir(exist_ok=True)
    target = units / name
    # Two tries: the first may meet a damaged unit, which goes to quarantine.
    for _ in range(2):
        try:
            os.rename(attempt, target)
        except OSError:
            if not target.exists():
                raise
            present = check_unit(target, run_id=receipt.run_id)
            if present is not None:
                return present
            quarantine = cache / QUARANTINE
            quarantine.mkdir(exist_ok=True)
            os.rename(target, quarantine / f"{name}.{uuid.uuid4().hex}")
            continue
        _sync_folder(units)
        return receipt
    raise DamagedUnitError(f"{target}: another process keeps putting a damaged unit there")


def check_unit(folder: Path, *, run_id: str, deep: bool = False) -> Receipt | None:
    """Returns the receipt of a complete unit of this run, or None if it is not one.

    Complete = receipt readable, run id equal, every file there with its size (and, `deep`, sha256).
    """
    return (
        None if unit_problem(folder, run_id=run_id, deep=deep) else read_receipt(folder / RECEIPT)
    )


def unit_problem(folder: Path, *, run_id: str, deep: bool = False) -> str | None:
    """Returns what is wrong with the unit in `folder` in one line, or None if it is complete."""
    try:
        receipt = read_receipt(folder / RECEIPT)
    except (OSError, ValueError) as error:
        return f"receipt unreadable: {error}"
    if receipt.run_id != run_id:
        return f"written by run {receipt.run_id}, not {run_id}"
    if receipt.n_in != receipt.n_ok + receipt.n_bad:
        return f"{receipt.n_in} samples in, but {receipt.n_ok} ok + {receipt.n_bad} bad"
    for relative, stamp in receipt.files.items():
        path = folder / relative
        if not path.is_file():
            return f"{relative} is missing"
        if path.stat().st_size != stamp.size:
            return f"{relative} has {path.stat().st_size} bytes, not {stamp.size}"
        if deep and file_sha256(path) != stamp.sha256:
            return f"{relative} has another sha256 than its receipt says"
    return None


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
