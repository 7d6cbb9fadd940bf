"""Which images and annotations belong together: each annotation once, and none left unsaid."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ltrp_core.errors import RequestError
from stages.protocols import Annotations

_NAMED = 3
"""Of many, how many a note names."""


class UsedOnce:
    """Sees to it that no annotation counts for two images.

    Keys may differ in their folders alone (`cats/1`, `dogs/1`) where annotations have none.
    """

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, str]] = {}
        """Key and unit of the image by the annotation's name"""

    def add(self, unit: str, keys: Sequence[str], names: Sequence[str]) -> None:
        """Adds images of a unit and what the annotations call each; empty names are none.

        Raises:
            RequestError: an annotation was taken before; the message has both images.
        """
        for key, name in zip(keys, names, strict=True):
            if not name:
                continue
            other, other_unit = self.names.setdefault(name, (key, unit))
            if (other, other_unit) == (key, unit):
                continue
            both = (
                f"{other!r} and {key!r}"
                if other != key
                else f"both that are called {key!r}, in units {other_unit} and {unit}"
            )
            raise RequestError(
                f"the one annotation of {name!r} would count for two images, {both}; give the "
                "annotations the folders that the keys have, or evaluate the images apart"
            )


def unmatched(keys: Collection[str], used: UsedOnce, annotations: Annotations) -> list[str]:
    """Returns a note on images without annotation, and on annotations that may be theirs.

    Args:
        keys: of the images without annotation; without any there is nothing to say.
        used: what was annotated.
        annotations: all of them.
    """
    if not keys:
        return []
    unused = set(annotations.names) - used.names.keys()
    return [
        f"left out {len(keys)} selected image(s) without annotation{examples(keys)}; "
        f"{len(unused)} annotation(s) are of no selected image{examples(unused)}"
    ]


def examples(names: Collection[str]) -> str:
    """Returns the first few of some names, to follow their number."""
    return f", e.g. {', '.join(map(repr, sorted(names)[:_NAMED]))}" if names else ""
