"""The JSON of COCO instances, read with every reference in it checked."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltrp_core.errors import RequestError
from ltrp_core.parsing import parse_json
from ltrp_core.regular_files import read_regular

_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoImage:
    """An image as the file has it."""

    id: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoDocument:
    """What an instances file holds; ids are text, so that 7 and "7" are one."""

    images: dict[str, CocoImage]
    """By file name"""
    categories: dict[str, str]
    """Name by id"""
    objects: dict[str, list[dict[str, Any]]]
    """The annotations of an image by its id; `category_id` is text in them"""


def read_document(path: Path) -> CocoDocument:
    """Reads an instances file.

    Ids of annotations are for messages only, so they may be absent or equal.

    Raises:
        RequestError: unreadable, no instances file, two images of one id or file name, two
            categories of one id, or an annotation of an image or category that is not there.
    """
    parts = _read_parts(path)
    try:
        images = _images(parts["images"], path)
        categories = _categories(parts["categories"], path)
        objects = _objects(parts["annotations"], images, categories, path)
    except RequestError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"{path} is no COCO instances file: {error!r}") from error
    return CocoDocument(images, categories, objects)


def damaged(path: Path, annotation: dict[str, Any], what: str) -> RequestError:
    """Returns the error for an annotation that cannot be used."""
    return RequestError(f"{path}: annotation {annotation.get('id')!r} is damaged: {what}")


def _read_parts(path: Path) -> dict[str, list[Any]]:
    try:
        document = parse_json(read_regular(path), path.name)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is no readable JSON: {error}") from error
    missing = set(_PARTS) - (set(document) if isinstance(document, dict) else set())
    if missing:
        raise RequestError(
            f"{path} is no COCO instances file: {', '.join(sorted(missing))} missing"
        )
    for name in _PARTS:
        if not isinstance(document[name], list):
            raise RequestError(f"{path} is no COCO instances file: {name} must be a list")
    return {name: document[name] for name in _PARTS}


def _images(entries: list[Any], path: Path) -> dict[str, CocoImage]:
    images: dict[str, CocoImage] = {}
    by_id: dict[str, str] = {}
    for entry in entries:
        name = entry["file_name"]
        if not isinstance(name, str) or not name:
            raise RequestError(f"{path}: the file_name {_short(name)} of an image is no name")
        number = _id_of(entry["id"], f"{path}: image {name!r}")
        sides = [_whole(entry[side]) for side in ("height", "width")]
        if None in sides or min(side for side in sides if side is not None) < 1:
            raise RequestError(
                f"{path}: image {name!r} has height {_short(entry['height'])} and width "
                f"{_short(entry['width'])}; they must be whole numbers"
            )
        if by_id.setdefault(number, name) != name:
            raise RequestError(
                f"{path}: images {by_id[number]!r} and {name!r} have one id, {entry['id']!r}, so "
                "nothing tells whose the objects are; give each its own"
            )
        if name in images:
            raise RequestError(f"{path}: two images are called {name!r}; remove one")
        images[name] = CocoImage(number, int(sides[0] or 0), int(sides[1] or 0))
    return images


def _categories(entries: list[Any], path: Path) -> dict[str, str]:
    categories: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry["name"], str):
            raise RequestError(f"{path}: the category name {_short(entry['name'])} is no text")
        name = entry["name"].strip()
        number = _id_of(entry["id"], f"{path}: category {name!r}")
        if categories.setdefault(number, name) != name:
            raise RequestError(
                f"{path}: categories {categories[number]!r} and {name!r} have one id, "
                f"{entry['id']!r}; give each its own"
            )
    return categories


def _objects(
    entries: list[Any], images: dict[str, CocoImage], categories: dict[str, str], path: Path
) -> dict[str, list[dict[str, Any]]]:
    known = {image.id for image in images.values()}
    objects: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        where = f"{path}: annotation {_short(entry.get('id'))}"
        image = _id_of(entry["image_id"], where)
        category = _id_of(entry["category_id"], where)
        if image not in known:
            raise damaged(path, entry, f"its image {entry['image_id']!r} is not in the file")
        if category not in categories:
            raise damaged(path, entry, f"its category {entry['category_id']!r} is not in the file")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise damaged(path, entry, f"iscrowd is {_short(entry['iscrowd'])}, not 0 or 1")
        entry["category_id"] = category
        objects[image].append(entry)
    return objects


def _id_of(value: Any, where: str) -> str:
    """Returns an id as text; some tools write numbers in one place and text in another."""
    if isinstance(value, str) and value:
        return value
    whole = _whole(value)
    if whole is None:
        raise RequestError(f"{where} has the id {_short(value)}; ids are whole numbers or text")
    return str(whole)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if abs(value) < 2**63 else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
