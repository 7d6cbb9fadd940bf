"""Which of a classifier's classes a label means: by number, by place, or by WordNet's synset."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ltrp_core.errors import RequestError
from stages.protocols import Labels

_SYNSET = re.compile(r"(n\d{8})(?!\d)")


def class_numbers(labels: Labels, num_classes: int, classifier: str) -> tuple[list[int], str]:
    """Returns the classifier's number of every class of some labels, and a note on how it is meant.

    Labels without names are the classifier's own numbers. Names that are synsets of ImageNet
    (`n01440764`, as its folders are called, whatever follows) are found by them, so that a few of
    the folders do. Other names count by their place, if there are as many as the classifier has.

    Raises:
        RequestError: several classes per image, or classes that are not the classifier's.
    """
    if labels.is_multi:
        raise RequestError(
            "an image may have several of these labels, and top-1 needs exactly one; pass shards "
            "with .cls members, or class folders"
        )
    names = list(labels.classes)
    if names == [str(number) for number in range(len(names))]:
        if len(names) > num_classes:
            raise RequestError(
                f"an image is labeled {len(names) - 1}, and {classifier} has {num_classes} "
                f"classes, 0 to {num_classes - 1}; pass the labels or the model that belong "
                "together"
            )
        note = f"labels are numbers, taken for those of {classifier}: 0 to {num_classes - 1}"
        return list(range(len(names))), note
    synsets = _synsets_of(names, num_classes)
    if synsets is not None:
        return synsets, f"{len(names)} classes found by their synset among the {num_classes}"
    if len(names) == num_classes:
        return list(range(num_classes)), f"the {num_classes} classes are taken in their order"
    raise RequestError(
        f"the labels have {len(names)} classes ({', '.join(map(repr, names[:3]))}, ...), "
        f"{classifier} has {num_classes}: a number would mean another class. Pass the model of "
        "these classes, or label images by the model's own numbers (.cls members, no classes.txt)"
    )


def _synsets_of(names: Sequence[str], num_classes: int) -> list[int] | None:
    """Returns the number of every class that is named by a synset; None: not all are."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    found = [match[1] for name in names if (match := _SYNSET.match(name))]
    if subset is None or len(found) < len(names) or len(set(found)) < len(names):
        return None
    place = {synset: number for number, synset in enumerate(ImageNetInfo(subset).label_names())}
    return [place[synset] for synset in found] if place.keys() >= set(found) else None
