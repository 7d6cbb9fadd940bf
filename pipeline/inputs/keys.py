"""What a sample is called: the one rule of keys in tars, folders, `pack` and annotations.

A key is a path without an ending whose file name has no dot. In a tar it is WebDataset's: the path
up to the first dot of the file name. Of a folder it is made so that a tar can hold it unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from ltrp_core.errors import RequestError
from pipeline.inputs.images import EXTENSIONS

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""They garble whatever prints a key."""
_NO_TEXT = re.compile(r"[\ud800-\udfff]")
"""Bytes of a file name that are no UTF-8, as Python has them; a cache cannot store them."""


def sample_key(name: str) -> str:
    """Returns a member's key as WebDataset has it: its path up to the file name's first dot."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem = file.split(".", 1)[0]
    return f"{folder}/{stem}" if folder else stem


def image_keys(names: Sequence[str]) -> list[str]:
    """Returns the keys of all images of a folder, unique, in the order of their `names`.

    A key is the relative path without its ending, in Unicode's composed form (NFC), with `_` for
    each further dot of the file name and each control character, and `_e9` for a byte that is no
    UTF-8. Where files would share a key, each keeps its ending: `cat_jpg`, `cat_png`.

    Args:
        names: paths below the folder.

    Raises:
        RequestError: two names share a key even so; the message has both.
    """
    short = [_key_of(_without_ending(name)) for name in names]
    counts: dict[str, int] = {}
    for key in short:
        counts[key] = counts.get(key, 0) + 1
    keys = [s if counts[s] == 1 else _key_of(name) for s, name in zip(short, names, strict=True)]
    seen: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        if key in seen:
            raise RequestError(
                f"{seen[key]!r} and {name!r} would share the key {key!r}; rename one"
            )
        seen[key] = name
    return keys


class KeyIndex:
    """Finds annotated images by sample key, whichever way their key was made.

    A key fits an image by the whole path first; else where one path ends with the other, folder by
    folder (`cats/1` fits `1`, never `dogs/1`), the longest first. It may be that of `image_keys`,
    that of older versions of `pack`, or only if none is, WebDataset's.
    """

    def __init__(self, names: Iterable[str], where: str) -> None:
        """Indexes images by relative path, with or without an ending.

        Args:
            names: all different.
            where: the annotations, for messages.

        Raises:
            RequestError: two names are the same path.
        """
        self._where = where
        self._own: dict[str, list[tuple[str, str]]] = {}
        self._webdataset: dict[str, list[tuple[str, str]]] = {}
        seen: dict[str, str] = {}
        for name in names:
            path = _plain(name)
            if path in seen:
                raise RequestError(
                    f"{where}: {seen[path]!r} and {name!r} are one path; remove one of them"
                )
            seen[path] = name
            own = set(_own_forms(path))
            _add(self._own, own, name)
            _add(self._webdataset, {_composed(sample_key(path))} - own, name)

    def find(self, key: str) -> str | None:
        """Returns the name of the image that a sample key is of, None if there is none.

        Raises:
            RequestError: it may be of two.
        """
        wanted = _composed(key)
        last = wanted.rpartition("/")[2]
        candidates = [index.get(last, []) for index in (self._own, self._webdataset)]
        for fitting in (_same(wanted, each) for each in candidates):
            if fitting:
                return self._only(key, fitting)
        for fitting in (_ending_alike(wanted, each) for each in candidates):
            if fitting:
                return self._only(key, fitting)
        return None

    def _only(self, key: str, names: set[str]) -> str:
        if len(names) > 1:
            first, second = sorted(names)[:2]
            raise RequestError(
                f"{self._where}: sample {key!r} may be {first!r} or {second!r} there; rename one, "
                "or pack the folder that the annotations' names are relative to"
            )
        return next(iter(names))


def _add(index: dict[str, list[tuple[str, str]]], forms: Iterable[str], name: str) -> None:
    for form in forms:
        index.setdefault(form.rpartition("/")[2], []).append((form, name))


def _same(wanted: str, candidates: Iterable[tuple[str, str]]) -> set[str]:
    return {name for form, name in candidates if form == wanted}


def _ending_alike(wanted: str, candidates: Iterable[tuple[str, str]]) -> set[str]:
    """Returns the names that share the most folders with a key, where one ends with the other."""
    longest, names = -1, set[str]()
    for form, name in candidates:
        if not (f"/{wanted}".endswith(f"/{form}") or f"/{form}".endswith(f"/{wanted}")):
            continue
        shared = min(form.count("/"), wanted.count("/"))
        if shared > longest:
            longest, names = shared, set()
        if shared == longest:
            names.add(name)
    return names


def _own_forms(path: str) -> Iterator[str]:
    """Yields the keys that a folder's reader or `pack` gives, or has given, to an image."""
    for text in {path, _without_ending(path)}:
        yield _key_of(text)
        # Before keys were made here, `pack` replaced whatever is no letter, digit, `-` or `_`.
        yield _composed(re.sub(r"[^\w/-]", "_", text))
        yield re.sub(r"[^\w/-]", "_", _composed(text))
    yield _composed(_without_ending(path))


def _plain(name: str) -> str:
    """Returns an image's name as others wrote it as a path below a folder."""
    return name.replace("\\", "/").removeprefix("./").lstrip("/")


def _without_ending(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in EXTENSIONS else name


def _key_of(path: str) -> str:
    folder, slash, file = _composed(path).rpartition("/")
    key = _CONTROL.sub("_", f"{folder}{slash}{file.replace('.', '_')}")
    return _NO_TEXT.sub(lambda found: f"_{ord(found[0]) & 0xFF:02x}", key)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
