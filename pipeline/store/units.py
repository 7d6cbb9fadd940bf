"""A unit's way to its final name: staged, stamped, receipt last, published in one step.

A folder is published by one rename, an object store by one conditional put of the receipt.
"""

from __future__ import annotations

import errno
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import file_sha256
from pipeline.store.errors import DamagedUnitError
from pipeline.store.receipts import ERRORS, RECEIPT, Receipt, stamp_files
from pipeline.store.storage import UNITS, Storage
from stages.protocols import BadSample


def unit_name(shard_name: str) -> str:
    """Returns the unit's folder name: readable, and unique to the shard's name.

    Letters, digits, `.`, `_`, `-` of the stem are kept; it never holds a path separator.
    """
    stem = shard_name.removesuffix(".tar")
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem)[:80]
    digest = hashlib.sha256(shard_name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{safe.lstrip('.') or 'shard'}-{digest[:8]}"


def write_errors(staged: Path, bad: Sequence[BadSample]) -> None:
    """Writes errors.parquet into a staged unit, if there is anything to say."""
    if bad:
        table = pa.Table.from_pylist([asdict(row) for row in bad])
        pq.write_table(table, staged / ERRORS, write_page_checksum=True)


def seal(
    staged: Path,
    *,
    unit: str,
    run_id: str,
    n_ok: int,
    bad: Sequence[BadSample],
    input: Mapping[str, Any],
    damage: str | None,
) -> Receipt:
    """Returns the receipt of a staged unit: every file stamped, every sample accounted for."""
    reasons: dict[str, int] = {}
    for row in bad:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    return Receipt(
        unit=unit,
        run_id=run_id,
        n_in=n_ok + len(bad),
        n_ok=n_ok,
        n_bad=len(bad),
        reasons=dict(sorted(reasons.items())),
        damage=damage,
        files=stamp_files(staged),
        input=dict(input),
    )


def publish(storage: Storage, staged: Path, receipt: Receipt) -> Receipt:
    """Puts a sealed unit under its final name; returns the receipt that stands there then.

    An equal or complete unit that is there already stays; a damaged one goes to quarantine.

    Raises:
        DamagedUnitError: another process keeps putting a damaged unit there.
        OSError: disk full and the like; nothing is left under the final name.
    """
    # Two tries: the first may meet a damaged unit, which goes to quarantine.
    for _ in range(2):
        published = storage.publish(staged, receipt)
        if published is not None:
            return published
        present = sound_receipt(storage, receipt.unit, run_id=receipt.run_id)
        if present is not None:
            return present
        quarantine(storage, receipt.unit)
    raise DamagedUnitError(
        f"{storage.url}/{UNITS}/{receipt.unit}: another process keeps putting a damaged unit there"
    )


@dataclass(frozen=True, slots=True)
class UnitState:
    """What is under a unit's name."""

    receipt: Receipt | None
    problem: str | None
    """Why it is no complete unit of the run; None if it is one."""
    strays: tuple[str, ...] = ()
    """Files that the receipt does not know."""
    is_begun: bool = False
    """Whether there is no receipt: an attempt may be going on, and nobody has called it done."""


def sound_receipt(storage: Storage, unit: str, *, run_id: str) -> Receipt | None:
    """Returns the receipt of a unit of this run whose files are what it says, or None."""
    data = storage.read_many([f"{UNITS}/{unit}/{RECEIPT}"])
    content = next(iter(data.values()), None)
    state = parse_unit(unit, content, storage.sizes(f"{UNITS}/{unit}"), run_id=run_id)
    if state.problem is not None or state.receipt is None:
        return None
    return state.receipt if damaged_file(storage, unit, state.receipt) is None else None


def damaged_file(storage: Storage, unit: str, receipt: Receipt) -> str | None:
    """Returns the first file under a unit's name whose sha256 is not the receipt's, or None.

    Raises:
        OSError: one may not be read, or the store is away; nothing is known of it then.
    """
    for name, stamp in receipt.files.items():
        try:
            with storage.local_copy(f"{UNITS}/{unit}/{name}", [""]) as path:
                if file_sha256(path) != stamp.sha256:
                    return name
        except OSError as error:
            if not is_damage(error):
                raise
            return name
    return None


def is_damage(error: OSError) -> bool:
    """Whether an error says that a file is lost, and not that the store is away."""
    lost = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, lost) or error.errno == errno.EIO


def quarantine(storage: Storage, unit: str) -> None:
    """Takes a unit away from the readers, so that the next run makes it anew.

    A folder is moved to quarantine/. Of objects only the receipt is: their files are named by what
    they should hold, and the next attempt writes them again.
    """
    storage.quarantine(unit, f"{unit}.{uuid.uuid4().hex}")


def parse_unit(
    unit: str, content: bytes | None, sizes: Mapping[str, int], *, run_id: str
) -> UnitState:
    """Returns the state of what is under the name `unit`.

    Complete = receipt readable, of this run, this unit and the shard that the unit is called after;
    n_in = n_ok + n_bad, every bad one with a reason; every file there with its size.

    Args:
        content: of its receipt; None if there is none.
        sizes: bytes of the files that are there, by name relative to the unit.
    """
    if content is None:
        return UnitState(None, f"{RECEIPT} is missing", is_begun=True)
    problem, receipt = receipt_problem(unit, content, run_id=run_id)
    if receipt is None:
        return UnitState(None, problem)
    strays = tuple(sorted(set(sizes) - set(receipt.files) - {RECEIPT}))
    return UnitState(receipt, problem or _bad_sizes(receipt, sizes), strays)


def receipt_problem(unit: str, content: bytes, *, run_id: str) -> tuple[str | None, Receipt | None]:
    """Returns why a receipt does not make `unit` complete, if so, and the receipt, if it is one."""
    try:
        receipt = Receipt.parse(content)
    except ValueError as error:
        return f"{RECEIPT} is unreadable: {error}", None
    return _other_unit(unit, receipt, run_id) or _bad_counts(receipt), receipt


def _other_unit(unit: str, receipt: Receipt, run_id: str) -> str | None:
    """Returns why this is the result of something else. A copy of a unit is whole by itself."""
    if receipt.run_id != run_id:
        return f"written by run {receipt.run_id}, not {run_id}"
    if receipt.unit != unit:
        return (
            f"it holds unit {receipt.unit}: {RECEIPT} says so (copied here, or the two swapped); "
            f"what belongs to {unit} is not here"
        )
    shard = str(receipt.input["name"])
    if unit_name(shard) != unit:
        return f"{RECEIPT} says it was made of shard {shard}, whose unit is {unit_name(shard)}"
    return None


def _bad_counts(receipt: Receipt) -> str | None:
    if receipt.n_in != receipt.n_ok + receipt.n_bad:
        return f"{receipt.n_in} samples in, but {receipt.n_ok} ok + {receipt.n_bad} bad"
    named = sum(receipt.reasons.values())
    if named != receipt.n_bad:
        return f"{receipt.n_bad} samples are bad, but {named} have a reason"
    parts = {part for name in receipt.files for part in PurePosixPath(name).parts}
    if not any(part.startswith("records.") for part in parts):
        return f"{RECEIPT} names no records"
    if (ERRORS in parts) != (receipt.n_bad > 0):
        has = "" if ERRORS in parts else "no "
        return f"{receipt.n_bad} samples are bad, but {RECEIPT} names {has}{ERRORS}"
    return None


def _bad_sizes(receipt: Receipt, sizes: Mapping[str, int]) -> str | None:
    for name, stamp in receipt.files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != stamp.size:
            return f"{name} has {sizes[name]} bytes, not {stamp.size}"
    return None
