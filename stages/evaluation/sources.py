"""Whose patches an evaluation measures: selections by their labels, and the references beside them.

All that tables and plots need to know of a source is in its name: one of `REFERENCES`, `ORACLE`, a
selection's label, or that label with `TOP_ONLY` or `WITHOUT_PRIOR` behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ltrp_core.errors import RequestError, unknown_name
from stages.types import SelectRun

TEACHER, BORDER, VARIANCE, CENTER, RANDOM, ORACLE = (
    "teacher",
    "border contrast",
    "patch variance",
    "center",
    "random",
    "oracle",
)
REFERENCES = (TEACHER, BORDER, VARIANCE, CENTER, RANDOM)
"""What every selection is compared with at the same k; the oracle is an upper bound beside it."""
TOP_ONLY = ", top-k only"
"""Ends the name of a selection's k best patches by its scores, without homogeneous ones."""
WITHOUT_PRIOR = ", top-k without prior"
"""Ends the name of the k best patches by the selector's own scores, where priors were added."""
_SELECTED = " (selected)"

STORED = {BORDER: "border_contrast", VARIANCE: "patch_variance"}
"""References that need the pixels: `select` stores them, in arrays of these names."""


def top_only(label: str) -> str:
    """Returns the name of a selection's k best patches by score alone."""
    return label + TOP_ONLY


def without_prior(label: str) -> str:
    """Returns the name of a selector's k best patches before the ranks of priors were added."""
    return label + WITHOUT_PRIOR


def label_of(source: str) -> str:
    """Returns the label of the selection that a source is of."""
    return source.removesuffix(TOP_ONLY).removesuffix(WITHOUT_PRIOR)


def is_selection(source: str) -> bool:
    """Returns whether a source is a selection, or its k best patches, and no reference."""
    return source not in (*REFERENCES, ORACLE)


def labels_in(sources: Iterable[str]) -> list[str]:
    """Returns the labels of the selections among some sources, in their order."""
    return list(dict.fromkeys(label_of(source) for source in sources if is_selection(source)))


def sources_of(label: str) -> tuple[str, str, str]:
    """Returns the sources of one selection: as stored, the best alone, the best without priors."""
    return label, top_only(label), without_prior(label)


def in_order(labels: Sequence[str]) -> list[str]:
    """Returns all sources in the order of the tables: selections as they were given, references."""
    own = [name for label in labels for name in sources_of(label)]
    return [*own, *REFERENCES, ORACLE]


def check_against(name: str, labels: Sequence[str], *, has_teacher: bool) -> None:
    """Checks the name that `--against` gives; an empty one is none.

    Raises:
        RequestError: it is no selection's label and no reference's name, or the teacher's without
            its cache.
    """
    if name and name not in in_order(labels):
        raise unknown_name("selection or reference of --against", name, [*labels, *REFERENCES])
    if name == TEACHER and not has_teacher:
        raise RequestError(f"--against {TEACHER} needs its scores; pass its cache as --teacher")


def name_selections(
    runs: Sequence[SelectRun], folders: Sequence[str], given: Sequence[str] = ()
) -> list[str]:
    """Returns the label of each selection: as given, else its selector's name.

    Where two would have one name, the folder's name follows; a selection by what is a reference,
    too, is called `center (selected)`.

    Args:
        runs: of the selections.
        folders: last parts of their paths.
        given: of `--label`, one per selection, or none.

    Raises:
        RequestError: another number of labels, one that is there twice, or is a reference's.
    """
    if given and len(given) != len(runs):
        raise RequestError(
            f"--label is given {len(given)} time(s) for {len(runs)} --selections; give one each"
        )
    labels = list(given) or [
        run.label if is_selection(run.label) else run.label + _SELECTED for run in runs
    ]
    counts = Counter(labels)
    if not given:
        labels = [
            f"{label} ({folder})" if counts[label] > 1 else label
            for label, folder in zip(labels, folders, strict=True)
        ]
    for label in labels:
        if labels.count(label) > 1:
            raise RequestError(f"two selections are called {label!r}; give each a --label")
        if not label or not is_selection(label) or label != label_of(label):
            raise RequestError(f"--label {label!r} is a reference's name, or none; take another")
    return labels
