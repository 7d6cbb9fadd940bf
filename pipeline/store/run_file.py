"""run.json: what was asked for. Another run is refused with a readable difference."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltrp_core.errors import DamagedFileError, RequestError
from ltrp_core.parsing import parse_json_object
from pipeline.remote import RemoteError
from pipeline.store.errors import RunMismatchError
from pipeline.store.storage import Storage
from pipeline.store.storage.local import LocalStorage

SCHEMA_VERSION = 2
RUN_FILE = "run.json"
_RECORDED_PACKAGES = ("ltrp-pipeline", "torch", "timm", "numpy", "zarr", "pillow")


def run_id(run: Mapping[str, Any]) -> str:
    """Returns the hash of a run's identity: 16 hex digits."""
    text = json.dumps(run, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim_storage(storage: Storage, stage: str, identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Writes the identity of a run into a new storage, or checks it against the one that is there.

    Package versions are recorded beside the identity but are no part of it: an update of a library
    must not orphan a cache of a thousand GPU-hours.

    Raises:
        RunMismatchError: the storage holds another run, or something else.
    """
    # Through JSON, so that a tuple asked for equals the list that was stored.
    run: dict[str, Any] = json.loads(
        json.dumps({"schema": SCHEMA_VERSION, "stage": stage, **identity})
    )
    if _claimed(storage, run):
        return run
    if storage.names("") or storage.is_file():
        raise RunMismatchError(
            f"{storage.url} exists and holds no run of this stage; "
            "give a new or empty folder as --out"
        )
    document = {"run_id": run_id(run), "identity": run, "versions": _versions()}
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if not storage.create(RUN_FILE, text.encode()):
        _claimed(storage, run)
    return run


def claim_folder(path: Path, stage: str, identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Claims a local folder: see `claim_storage`."""
    return claim_storage(LocalStorage(path), stage, identity)


def read_run(storage: Storage) -> dict[str, Any]:
    """Returns the identity of the run in a storage.

    Raises:
        RequestError: there is none, or it is not what its run_id was made of: a flipped bit of it
            would make every unit that of another run.
    """
    try:
        document = parse_json_object(storage.read(RUN_FILE), RUN_FILE)
        identity = document["identity"]
        if not isinstance(identity, dict):
            raise TypeError("identity is no object")
    except (RemoteError, PermissionError):
        raise  # whether there is one is not known
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{storage.url} is no cache: {RUN_FILE} is missing or unreadable; "
            "pass the --out folder of `ltrp-pipeline score` or `select`"
        ) from error
    if document.get("run_id", run_id(identity)) != run_id(identity):
        raise DamagedFileError(
            f"{storage.url}/{RUN_FILE} is damaged: its identity is not that of its run_id "
            f"{document['run_id']}; bring the file back, the units beside it need not be damaged"
        )
    return identity


def begun_run(storage: Storage) -> dict[str, Any]:
    """Returns the identity of the run in a storage, empty if there is none yet.

    Raises:
        RequestError: its file cannot be read.
    """
    return read_run(storage) if storage.read_many([RUN_FILE]) else {}


def _claimed(storage: Storage, run: Mapping[str, Any]) -> bool:
    present = begun_run(storage)
    if present and present != run:
        raise RunMismatchError(difference(storage.url, present, run))
    return bool(present)


def difference(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns one line that names every option of `old` that is not so in `new`."""
    changed = [
        f"{name}: {_brief(old.get(name, 'absent'))} there, {_brief(new.get(name, 'absent'))} asked"
        for name in sorted(set(old) | set(new))
        if old.get(name, "absent") != new.get(name, "absent")
    ]
    return (
        f"{where} holds the output of another run ({'; '.join(changed)}); "
        "give another --out, or the options of that run"
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
