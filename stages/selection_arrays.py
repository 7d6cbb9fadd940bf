"""The arrays of a unit of selections, today's and those of folders that were begun before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ltrp_core.selection import num_kept
from ltrp_core.selectors.border import border_contrast
from ltrp_core.selectors.references import patch_variance
from stages.evaluation.sources import BORDER, STORED, VARIANCE
from stages.protocols import ArrayField, Arrays
from stages.records import kept_name
from stages.selectors import TEACHER
from stages.types import PLAIN_SCORE

SCHEMA = 4
"""Of what is newly written: with `border_contrast`. Folders of schema 3 (without it) and of 2
(`ranker_score`, `teacher_score` or `baseline_score` for `score`) are gone on with as they are."""
_REFERENCES: dict[str, Callable[[Tensor, int], Tensor]] = {
    STORED[VARIANCE]: patch_variance,
    STORED[BORDER]: border_contrast,
}
"""Array -> what it holds of images (B, 3, S, S) and their patch size"""
_SINCE = {STORED[VARIANCE]: 2, STORED[BORDER]: 4}
"""The schema that an array came with."""


def selection_fields(
    keep_ratio: Sequence[float],
    length: int,
    *,
    score_name: str | None = "score",
    with_priors: bool = False,
    schema: int = SCHEMA,
) -> dict[str, ArrayField]:
    """Returns the arrays of a unit of selections.

    Args:
        keep_ratio: of the stored selections.
        length: L.
        score_name: of the scores; None: the selector has none.
        with_priors: the scores are with the ranks of priors, and the selector's own stand beside.
        schema: of the folder.

    Raises:
        RequestError: a keep ratio leaves no patch of `length`.
    """
    index, fill = ("uint16", 65535) if length > 255 else ("uint8", 255)
    maps = ArrayField(dtype="float16", shape=(length,), fill=float("nan"))
    scores = [score_name, PLAIN_SCORE if with_priors else None]
    return {
        "key": ArrayField(dtype="string", shape=(), fill=""),
        "size": ArrayField(dtype="int32", shape=(2,), fill=-1),
        "crop": ArrayField(dtype="float32", shape=(1, 4), fill=float("nan")),
        "flip": ArrayField(dtype="bool", shape=(1,), fill=False),
        **{name: maps for name in (*scores, *_references(schema)) if name},
        **{
            kept_name(ratio): ArrayField(
                dtype=index, shape=(num_kept(ratio, length),), fill=fill, high=length
            )
            for ratio in keep_ratio
        },
    }


def reference_arrays(images: Tensor, patch_size: int, schema: int) -> Arrays:
    """Returns the references (B, L) that need the pixels, of images (B, 3, S, S), by array."""
    return {
        name: _REFERENCES[name](images, patch_size).cpu().numpy() for name in _references(schema)
    }


def as_begun(selected_by: Mapping[str, Any], schema: object) -> dict[str, Any]:
    """Returns the identity of a run as the schema has it that its folder was begun with."""
    if schema == 3:
        return {**selected_by, "schema": 3}
    if schema != 2:
        return dict(selected_by)
    old = {name: value for name, value in selected_by.items() if name != "selector"}
    method = selected_by["selector"]
    source = method if method in ("ranker", TEACHER) else "baseline"
    old |= {"schema": 2, "source": source, "baseline": method if source == "baseline" else ""}
    if "weights_sha256" in old:
        old["ranker_sha256"] = old.pop("weights_sha256")
    return old


def _references(schema: int) -> list[str]:
    return [name for name in _REFERENCES if _SINCE[name] <= schema]
