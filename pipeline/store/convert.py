"""The same records in the other form: Zarr arrays or WebDataset tars, without loss."""

from __future__ import annotations

import shutil

from ltrp_core.errors import RequestError
from pipeline.store.cache import APPENDED, Cache, create_cache
from pipeline.store.errors import DamagedUnitError
from pipeline.store.receipts import ERRORS
from pipeline.store.records.forms import FORMS, copy_records
from pipeline.store.storage import UNITS
from pipeline.store.units import damaged_file, publish, seal
from stages.protocols import Progress, Summary


def convert(source: Cache, out: str, store: str, progress: Progress) -> Summary:
    """Writes every unit of `source` to a cache at `out` whose records have the form `store`.

    Converting back gives the same bytes. Units that are at `out` already are left alone.

    Raises:
        RequestError: `source` has that form already.
        DamagedUnitError: a unit of `source` fails a checksum; nothing of it is written.
    """
    if source.identity["store"] == store:
        raise RequestError(f"{source.url} holds a {store} cache already; nothing to convert")
    identity = {k: v for k, v in source.identity.items() if k != "stage"}
    target = create_cache(out, str(source.identity["stage"]), {**identity, "store": store})
    summary = Summary(stage="convert", output=target.url)
    with target.storage.lock():
        target.clear_attempts()
        with progress.task("convert", len(source.units), "units") as bar:
            for unit in source.units:
                if unit in target.rows:
                    summary.skipped += 1
                else:
                    _convert_unit(source, target, unit)
                    summary.done += 1
                row = source.rows[unit]
                summary.n_ok += row.n_ok
                summary.n_bad += row.n_bad
                bar.advance(1)
        target.refresh()
        target.write_manifest()
    for part in source.parts:
        name = part.url.rstrip("/").rsplit("/", 1)[-1]
        convert(part, f"{target.url}/{APPENDED}/{name}", store, progress)
        summary.notes.append(f"the appended {name} too")
    return summary


def _convert_unit(source: Cache, target: Cache, unit: str) -> None:
    receipt = source.receipt(unit)
    damaged = damaged_file(source.storage, unit, receipt)
    if damaged is not None:
        raise DamagedUnitError(
            f"{source.url}: {damaged} of unit {unit} has another sha256 than its receipt says; "
            "run `ltrp-pipeline verify --deep --repair`, then `score` again"
        )
    folder = f"{UNITS}/{unit}"
    form = FORMS[str(target.identity["store"])]
    with target.storage.staging(unit) as staged:
        name, stamps = receipt.records
        with source.storage.local_copy(f"{folder}/{name}", stamps) as records:
            n_ok = copy_records(records, staged / form.file, form)
        if n_ok != receipt.n_ok:
            raise DamagedUnitError(
                f"{source.url}: unit {unit} holds {n_ok} records, its receipt says {receipt.n_ok}; "
                "run `ltrp-pipeline verify --deep --repair`, then `score` again"
            )
        bad = source.errors(unit)
        if bad:
            with source.storage.local_copy(f"{folder}/{receipt.path_of(ERRORS)}", [""]) as path:
                shutil.copyfile(path, staged / ERRORS)
        sealed = seal(
            staged,
            unit=unit,
            run_id=target.run_id,
            n_ok=n_ok,
            bad=bad,
            input=receipt.input,
            damage=receipt.damage,
        )
        publish(target.storage, staged, sealed)
