"""manifest.parquet: the receipts as one table, rebuilt by one process and replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.receipts import Receipt

SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("shard", pa.string()),
        ("shard_sha256", pa.string()),
        ("n_in", pa.int64()),
        ("n_ok", pa.int64()),
        ("n_bad", pa.int64()),
        ("reasons", pa.string()),
        ("bytes", pa.int64()),
    ]
)


def manifest_table(receipts: Mapping[str, Receipt]) -> pa.Table:
    """Returns one row a unit, sorted by name; a pure function of the receipts."""
    rows = [
        {
            "unit": name,
            "shard": receipt.input["name"],
            "shard_sha256": receipt.input["sha256"],
            "n_in": receipt.n_in,
            "n_ok": receipt.n_ok,
            "n_bad": receipt.n_bad,
            "reasons": json.dumps(dict(receipt.reasons), sort_keys=True),
            "bytes": sum(stamp.size for stamp in receipt.files.values()),
        }
        for name, receipt in sorted(receipts.items())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_manifest(path: Path, receipts: Mapping[str, Receipt]) -> None:
    """Replaces the manifest at `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(manifest_table(receipts), temporary, write_page_checksum=True)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
