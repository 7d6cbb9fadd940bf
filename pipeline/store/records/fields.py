"""What the arrays of a unit are, as JSON: stored with the records of either form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stages.protocols import ArrayField


def field_of(values: Mapping[str, Any]) -> ArrayField:
    """Returns the field that `plain_field` made JSON of."""
    fill = float("nan") if values["fill"] == "NaN" else values["fill"]
    return ArrayField(**{**values, "shape": tuple(values["shape"]), "fill": fill})


def plain_field(field: ArrayField) -> dict[str, Any]:
    """Returns a field as JSON values."""
    values = asdict(field)
    is_nan = isinstance(field.fill, float) and math.isnan(field.fill)
    return {**values, "shape": list(field.shape), "fill": "NaN" if is_nan else field.fill}
