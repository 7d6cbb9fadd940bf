"""Annotations that are one file per image: found by sample key, told apart by content."""

from __future__ import annotations

import hashlib
import stat
from functools import cached_property
from pathlib import Path

from ltrp_core.errors import RequestError
from pipeline.files import file_sha256
from pipeline.inputs.folders import LeftOut, walk_folder
from pipeline.inputs.keys import KeyIndex


class AnnotatedFolder:
    """The files of one kind below a folder, each the annotation of one image."""

    def __init__(self, folder: Path, suffix: str) -> None:
        """Takes all files with a suffix (lower case, with its dot), whatever case theirs is in."""
        self.folder = folder
        self.suffix = suffix

    @cached_property
    def _files(self) -> dict[str, Path]:
        """File by the name that it gives its image, sorted; there is one at least."""
        files = files_below(self.folder, self.suffix)
        if not files:
            raise RequestError(
                f"{self.folder} holds no {self.suffix} file; pass the folder of annotations"
            )
        found: dict[str, Path] = {}
        for file in files:
            name = file.relative_to(self.folder).as_posix()[: -len(self.suffix)]
            other = found.setdefault(name, file)
            if other != file:
                raise RequestError(f"{other} and {file} annotate one image; remove one")
        return found

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self._files, str(self.folder))

    @property
    def names(self) -> frozenset[str]:
        """What the annotated images are called: relative paths without the suffix."""
        return frozenset(self._files)

    @property
    def fingerprint(self) -> str:
        """Hash of all names and contents.

        Raises:
            RequestError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for file in self._files.values():
            try:
                content = file_sha256(file)
            except OSError as error:
                raise RequestError(f"{file} cannot be read: {error.strerror or error}") from error
            line = f"{file.relative_to(self.folder).as_posix()}\0{content}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def find(self, key: str) -> tuple[str, Path] | None:
        """Returns the name and the file of the image with a sample key, None if there is none.

        Raises:
            RequestError: no file at all, or two that may be meant.
        """
        name = self._index.find(key)
        return None if name is None else (name, self._files[name])


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Returns the files below `folder` with a suffix in any case, sorted; linked folders too.

    What macOS leaves beside every file (`._a.png`) is none. A dangling link is listed, so that
    reading it says what is wrong.

    Raises:
        RequestError: a folder cannot be read.
    """
    found = walk_folder(folder, LeftOut(str(folder)), lambda name: name.lower().endswith(suffix))
    # Neither a device nor a pipe, which one may wait for without end.
    return sorted(
        folder / file.name
        for file in found
        if file.status is None or stat.S_ISREG(file.status.st_mode)
    )
