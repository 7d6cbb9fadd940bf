"""Units that are samples, as arrays: a key and members a row. Listing them takes no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.protocols import MEMBERS, ArrayField

SAMPLE_FIELDS: Mapping[str, ArrayField] = {
    "key": ArrayField(dtype="string", shape=(), fill=""),
    "members": ArrayField(dtype=MEMBERS, shape=(), fill=()),
}
"""The arrays of a unit that is samples and no arrays."""
CLASS_KEYS = ("cls", "label", "class", "class_id")
"""Keys of a sample's JSON that may hold its class number, the first one that is there."""


def object_rows(values: Sequence[object]) -> NDArray[Any]:
    """Returns an array (N,) of any objects; `np.array` would look into tuples."""
    rows = np.empty(len(values), dtype=object)
    for number, value in enumerate(values):
        rows[number] = value
    return rows
