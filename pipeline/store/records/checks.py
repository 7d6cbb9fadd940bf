"""What is checked before a unit is committed: what was written reads back, and obeys its rules."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.errors import DamagedUnitError
from pipeline.store.records.forms import form_at
from stages.protocols import MEMBERS, ArrayField, Arrays


class RowDigests:
    """A digest of every array, whatever the pieces its rows come in."""

    def __init__(self, fields: Mapping[str, ArrayField]) -> None:
        self.fields = fields
        self.count = 0
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in fields}

    def update(self, rows: Arrays) -> None:
        """Adds some rows."""
        self.count += len(rows["key"])
        for name, field in self.fields.items():
            if field.dtype == "string":
                for text in rows[name].tolist():
                    data = text.encode("utf-8", "surrogatepass")
                    self._digests[name].update(len(data).to_bytes(8, "little") + data)
            elif field.dtype == MEMBERS:
                for members in rows[name].tolist():
                    for part in (str(len(members)).encode(), *itertools.chain(*members)):
                        data = part.encode() if isinstance(part, str) else part
                        self._digests[name].update(len(data).to_bytes(8, "little") + data)
            else:
                plain = np.ascontiguousarray(rows[name], dtype=np.dtype(field.dtype))
                self._digests[name].update(plain.view(np.uint8).reshape(-1).data)

    def differing(self, other: RowDigests) -> list[str]:
        """Returns the arrays that are not the same."""
        return [
            name
            for name, digest in self._digests.items()
            if digest.digest() != other._digests[name].digest()
        ]


def check_records(path: Path, fields: Mapping[str, ArrayField], expected: RowDigests) -> None:
    """Opens what was written at `path` and checks it against what was given to be written.

    Every array as it was, keys unique and not empty, floats finite, indices in range and, where
    the field says so, ascending.

    Raises:
        DamagedUnitError: names the array, the row and the rule.
    """
    form = form_at(path)
    found = RowDigests(fields)
    keys: set[str] = set()
    for block in form.read_blocks(path):
        if set(block) != set(fields):
            raise DamagedUnitError(f"{path}: arrays {sorted(block)}, expected {sorted(fields)}")
        for name, field in fields.items():
            bad = _breaks_rule(block[name], field)
            if bad is not None:
                row, rule = bad
                raise DamagedUnitError(f"{path}: array {name!r}, row {found.count + row}: {rule}")
        keys.update(block["key"].tolist())
        found.update(block)
    if found.count != expected.count:
        raise DamagedUnitError(f"{path}: {found.count} rows, {expected.count} were written")
    if len(keys) != found.count or "" in keys:
        raise DamagedUnitError(f"{path}: keys are not unique, or one is empty")
    differing = found.differing(expected)
    if differing:
        raise DamagedUnitError(f"{path}: array {differing[0]!r} does not read back as written")


def _breaks_rule(values: NDArray[Any], field: ArrayField) -> tuple[int, str] | None:
    """Returns the first row that breaks a rule of its field, and the rule."""
    if field.dtype in ("string", MEMBERS) or not values.size:
        return None
    if np.issubdtype(values.dtype, np.floating):
        wrong, rule = ~np.isfinite(values), "a value is not finite"
    elif field.high is not None and int(values.max()) >= field.high:
        wrong, rule = values >= field.high, f"an index is not below {field.high}"
    elif field.ascending:
        wrong = values[..., 1:] <= values[..., :-1]
        rule = "indices do not ascend"
    else:
        return None
    rows = wrong.reshape(len(values), -1).any(axis=1)
    return (int(rows.argmax()), rule) if rows.any() else None
