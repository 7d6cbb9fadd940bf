"""A cache folder: one run's identity, its committed units, and what readers may see of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from pipeline.store import zarr_records
from pipeline.store.errors import DamagedUnitError, RunMismatchError
from pipeline.store.manifest import write_manifest
from pipeline.store.receipts import Receipt, replace_text
from pipeline.store.units import ATTEMPTS, RECORDS, UNITS, check_unit
from stages.protocols import Arrays

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
_RECORDED_PACKAGES = ("ltrp-pipeline", "torch", "timm", "numpy", "zarr")


class Cache:
    """A cache that exists; read-only unless `prepare` was called on it.

    Readers trust a unit only if its receipt is of this run and every file has its size.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.run = run
        """Identity of the run: every option that changes a number, and the weights' sha256."""

    @property
    def run_id(self) -> str:
        """Hash of the identity."""
        return run_id(self.run)

    @cached_property
    def receipts(self) -> Mapping[str, Receipt]:
        """Receipts of the complete units by unit name, sorted; read once."""
        folders = sorted(path for path in (self.path / UNITS).glob("*") if path.is_dir())
        found = ((path.name, check_unit(path, run_id=self.run_id)) for path in folders)
        return {name: receipt for name, receipt in found if receipt is not None}

    @property
    def units(self) -> Sequence[str]:
        """Names of the complete units, sorted."""
        return list(self.receipts)

    def read(self, unit: str) -> Arrays:
        """Returns the arrays of one unit.

        Raises:
            RequestError: no complete unit has that name.
            DamagedUnitError: its files are unreadable or fail a checksum.
        """
        if unit not in self.receipts:
            raise RequestError(
                f"{self.path} has no complete unit {unit!r}; see `ltrp-pipeline verify`"
            )
        arrays = zarr_records.read(self.path / UNITS / unit / RECORDS)
        counts = {name: len(values) for name, values in arrays.items()}
        if set(counts.values()) != {self.receipts[unit].n_ok}:
            raise DamagedUnitError(
                f"{unit}: receipt says {self.receipts[unit].n_ok} records, arrays hold {counts}"
            )
        arrays["key"] = arrays["key"].astype(object)
        return arrays

    def refresh(self) -> None:
        """Forgets the receipts read so far."""
        self.__dict__.pop("receipts", None)

    def prepare(self) -> None:
        """Clears the leftovers of dead attempts; call it under the folder's lock."""
        shutil.rmtree(self.path / ATTEMPTS, ignore_errors=True)

    def write_manifest(self) -> None:
        """Rebuilds manifest.parquet from the receipts, atomically."""
        self.refresh()
        write_manifest(self.path / "manifest.parquet", self.receipts)


def run_id(run: Mapping[str, Any]) -> str:
    """Returns the hash of a run's identity: 16 hex digits."""
    text = json.dumps(run, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_cache(path: str | Path) -> Cache:
    """Returns the cache at `path` for reading: `.run`, `.units`, `.read(unit)`.

    Raises:
        RequestError: there is no cache at `path`.
    """
    path = Path(path).absolute()
    return Cache(path, _read_run(path))


def create_cache(path: str | Path, stage: str, identity: Mapping[str, Any]) -> Cache:
    """Returns the cache at `path`, made if it does not exist.

    Raises:
        RunMismatchError: `path` holds another run (the message names every difference) or
            something that is no cache.
    """
    return Cache(Path(path).absolute(), claim_folder(Path(path), stage, identity))


def claim_folder(path: Path, stage: str, identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Writes the identity of a run into a new folder, or checks it against the one that is there.

    Package versions are recorded beside the identity but are no part of it: an update of a library
    must not orphan a cache of a thousand GPU-hours.

    Raises:
        RunMismatchError: `path` holds another run, or something else.
    """
    path = path.absolute()
    # Through JSON, so that a tuple asked for equals the list that was stored.
    run = json.loads(json.dumps({"schema": SCHEMA_VERSION, "stage": stage, **identity}))
    if (path / RUN_FILE).exists():
        present = _read_run(path)
        if present != run:
            raise RunMismatchError(_difference(path, present, run))
        return present
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunMismatchError(
            f"{path} exists and holds no run of this stage; give a new or empty folder as --out"
        )
    path.mkdir(parents=True, exist_ok=True)
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    document = {"run_id": run_id(run), "identity": run, "versions": versions}
    replace_text(path / RUN_FILE, json.dumps(document, indent=1, sort_keys=True) + "\n")
    return dict(run)


def _read_run(path: Path) -> Mapping[str, Any]:
    try:
        identity: Mapping[str, Any] = json.loads((path / RUN_FILE).read_text())["identity"]
        return identity
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} is no cache: {RUN_FILE} is missing or unreadable; "
            "pass the --out folder of `ltrp-pipeline score` or `select`"
        ) from error


def _difference(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [
        f"{name}: {_brief(old.get(name, 'absent'))} there, {_brief(new.get(name, 'absent'))} asked"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    ]
    return (
        f"{path} holds the output of another run ({'; '.join(changed)}); "
        "give another --out, or the options of that run"
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
