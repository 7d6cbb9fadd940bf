"""Which categories a network trained on ImageNet-1K has learned, and which it has never seen.

The lists lie beside this file as JSON, with the rule and, for every category, what it rests on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from ltrp_core.errors import RequestError, unknown_name
from stages.protocols import CATEGORIES

LISTS = ("coco80", "voc20", "ade20k")


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One category and what its group rests on; synsets are WordNet 3.0's, written `n01234567`."""

    name: str
    group: str
    """learned or unseen"""
    id: int | None = None
    """Its value in the annotation images, where the data set has any."""
    synset: str | None = None
    chain: tuple[str, ...] = ()
    """From an ImageNet-1K synset over its hypernyms to the category's own."""
    like: tuple[str, ...] = ()
    """ImageNet-1K synsets that show essentially the same object."""
    exception: str | None = None
    """Why the chain does not make it learned."""
    arguable: str | None = None
    """Why one may doubt that it is unseen; `unseen-strict` leaves it out."""


@cache
def category_list(name: str) -> tuple[Category, ...]:
    """Returns one of `LISTS`."""
    text = (resources.files("pipeline.annotations") / f"{name}.json").read_text("utf-8")
    found = []
    for values in json.loads(text)["categories"]:
        values |= {field: tuple(values.get(field, ())) for field in ("chain", "like")}
        found.append(Category(**values))
    return tuple(found)


def is_member(category: Category, group: str) -> bool:
    """Returns whether a category belongs to a group of `CATEGORIES`.

    Raises:
        RequestError: unknown group.
    """
    if group not in CATEGORIES:
        raise unknown_name("group of categories", group, CATEGORIES)
    if group == "unseen-strict":
        return category.group == "unseen" and category.arguable is None
    return group in ("all", category.group)


def select_categories(name: str, group: str) -> list[Category]:
    """Returns the categories of a list that belong to a group, never none.

    Raises:
        RequestError: unknown group, or a group without members.
    """
    chosen = [category for category in category_list(name) if is_member(category, group)]
    if not chosen:
        raise RequestError(f"no category of {name} is {group}; leave out --categories {group}")
    return chosen


def select_names(
    names: Collection[str], group: str, path: Path, lists: Sequence[str] = ("coco80", "voc20")
) -> frozenset[str]:
    """Returns those category names of the annotations at `path` that belong to a group.

    Args:
        names: all that the annotations have.
        group: one of `CATEGORIES`.
        path: for messages.
        lists: of these, the first one that has all names counts.

    Raises:
        RequestError: unknown group, or no list has all names and the group is not `all`.
    """
    if group == "all":
        return frozenset(names)
    for name in lists:
        if set(names) <= set(_names(category_list(name))):
            return frozenset(names) & frozenset(_names(select_categories(name, group)))
    strange = sorted(set(names) - set(_names(category_list(lists[0]))))
    raise RequestError(
        f"{path}: learned and unseen are known for the categories of {' and '.join(lists)} only, "
        f"not for {strange[0]!r}; pass --categories all"
    )


def arguable_names(lists: Sequence[str]) -> list[str]:
    """Returns the categories of some lists that `unseen` has and `unseen-strict` has not."""
    found = [c.name for name in lists for c in category_list(name) if c.arguable is not None]
    return list(dict.fromkeys(found))


def category_names(name: str) -> tuple[str, ...]:
    """Returns the names of the categories of one of `LISTS`, in its order."""
    return tuple(_names(category_list(name)))


def _names(categories: Iterable[Category]) -> list[str]:
    return [category.name for category in categories]
