"""The classes in an image, from annotations of its objects: COCO's instances, PASCAL VOC's XML."""

from __future__ import annotations

from collections.abc import Sequence

from ltrp_core.errors import RequestError
from pipeline.annotations import AnnotationSource
from pipeline.annotations.categories import category_names


class AnnotationLabels:
    """Labels of a set of annotations: several per image, or none."""

    is_multi = True

    def __init__(self, source: AnnotationSource) -> None:
        """Takes the categories of the annotations for classes.

        Raises:
            RequestError: the annotations name no categories.
        """
        self._source = source
        self.classes: Sequence[str] = source.all_categories() or _listed(source)
        self._number = {name: number for number, name in enumerate(self.classes)}

    def of(self, key: str) -> tuple[int, ...] | None:
        """Returns the numbers of the classes in an image, ascending; None: it is not annotated.

        Raises:
            RequestError: an object is of a class that the list of classes does not have.
        """
        found = self._source.objects(key)
        if found is None:
            return None
        unknown = [name for name in found if name not in self._number]
        if unknown:
            raise RequestError(
                f"{self._source.path}: an object of {key!r} is of class {unknown[0]!r}, which is "
                f"none of the {len(self.classes)} classes"
            )
        return tuple(sorted(self._number[name] for name in found))


def _listed(source: AnnotationSource) -> tuple[str, ...]:
    names = tuple(name for known in source.categories for name in category_names(known))
    if not names:
        raise RequestError(f"annotations of format {source.format} at {source.path} have no labels")
    return names
