"""Runs `pack`: image folders in, tar shards out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ltrp_core.errors import RequestError
from ltrp_core.regular_files import read_regular
from pipeline.console.terminal import printable
from pipeline.files import atomic_write, file_sha256, replace_text
from pipeline.inputs.folders import (
    LeftOut,
    entry_is_folder,
    is_hidden,
    is_text,
    stamp_of,
    walk_folder,
)
from pipeline.inputs.images import EXTENSIONS
from pipeline.inputs.keys import image_keys
from pipeline.parsing import read_json_object
from pipeline.store.errors import RunMismatchError
from pipeline.store.run_file import claim_folder
from pipeline.store.storage import is_inside
from stages import pack
from stages.pack import ImageFile
from stages.protocols import Progress, Summary


def run_pack(config: pack.PackConfig, images: Path, out: Path, progress: Progress) -> Summary:
    """Packs the images below a folder into the shards of `out`."""
    out = out.absolute()
    if "/" in config.prefix or not is_inside(config.prefix):
        raise RequestError(
            f"--prefix {config.prefix!r}: shards are files of --out; take a name without /"
        )
    files, notes = find_images(images)
    summary = pack.run(
        config, files, sink=TarSink(out), index=PackFolder(out, files), progress=progress
    )
    summary.notes += notes
    summary.output = str(out)
    return summary


def find_images(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """Returns the images below `folder` with unique keys and classes, and what must be said of it.

    Keys are those of `image_keys`. Where most images lie in subfolders, the first one of each names
    its class (ImageFolder); images beside the class folders have none.

    Raises:
        RequestError: no such folder, not readable, no image in it, two would share a key, or the
            name of a class cannot be written down.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder of images")
    left_out = LeftOut(str(folder))
    names = sorted(found.name for found in walk_folder(folder, left_out))
    if not names:
        raise RequestError(f"{folder} holds no image ({', '.join(sorted(EXTENSIONS))})")
    keys = image_keys(names)
    of_classes = [name.partition("/")[0] if "/" in name else None for name in names]
    strays = [name for name, found in zip(names, of_classes, strict=True) if found is None]
    is_labeled = 2 * len(strays) < len(names)
    classes = sorted({name for name in of_classes if name is not None}) if is_labeled else []
    for name in classes:
        if not is_text(name) or not name.isprintable():
            raise RequestError(
                f"the name of class folder {printable(f'{folder}/{name}')} is not UTF-8 or holds "
                "control characters; rename it, classes.txt has a line for each"
            )
    number = {name: place for place, name in enumerate(classes)}
    images = [
        ImageFile(
            path=folder / name,
            key=key,
            label=number.get(of_class or "/"),
            class_name=of_class if of_class in number else None,
        )
        for name, key, of_class in zip(names, keys, of_classes, strict=True)
    ]
    notes = _notes_on_classes(folder, strays, classes, len(names))
    return images, notes + left_out.notes()


def _notes_on_classes(
    folder: Path, strays: Sequence[str], classes: Sequence[str], num_images: int
) -> list[str]:
    first = printable(strays[0]) if strays else ""
    if not classes:
        below = num_images - len(strays)
        return [f"{below} image(s) lie in subfolders, and most do not: none has a class"][:below]
    notes = []
    if strays:
        notes.append(
            f"{len(strays)} image(s) beside the class folders have no class (no .cls), e.g. {first}"
        )
    empty = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry_is_folder(entry) and not is_hidden(entry.name) and entry.name not in classes
    )
    if empty:
        notes.append(
            f"{len(empty)} folder(s) hold no image and are no class, e.g. {printable(empty[0])}"
        )
    return notes


class TarSink:
    """Writes shards under their final name only when whole; equal input gives equal bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, files: Sequence[ImageFile]) -> dict[str, str | int]:
        """Writes one shard; returns its name, size, sha256, number of samples and their sources.

        Raises:
            RequestError: a file cannot be read.
        """
        sources = _sources_sha256(files)  # before they are read: a later change is seen
        with atomic_write(self.folder / name) as temporary:
            with tarfile.open(temporary, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for image in files:
                    _add(tar, image)
            stamp: dict[str, str | int] = {
                "name": name,
                "size": temporary.stat().st_size,
                "sha256": file_sha256(temporary),
                "num_samples": len(files),
                "sources": sources,
            }
        return stamp


class PackFolder:
    """The output folder of `pack`: run.json, shards.json (one stamp per shard) and classes.txt."""

    def __init__(self, folder: Path, files: Sequence[ImageFile]) -> None:
        self.folder = folder
        self.class_names = sorted(
            {file.class_name for file in files if file.class_name is not None}
        )
        self._stamps: dict[str, Mapping[str, str | int]] = {}

    def open(self, identity: Mapping[str, object]) -> Mapping[str, Mapping[str, str | int]]:
        """Returns the stamps of the shards that are there, whole.

        Raises:
            RunMismatchError: the folder holds shards of other images or options.
        """
        claim_folder(self.folder, "pack", identity)
        for left_over in self.folder.glob(".*.tar.*"):
            left_over.unlink()
        path = self.folder / "shards.json"
        stamps = read_json_object(path) if path.exists() else {}
        for name, stamp in stamps.items():
            shard = self.folder / name
            if shard.is_file() and shard.stat().st_size == stamp["size"]:
                self._stamps[name] = stamp
        if self.class_names:
            replace_text(self.folder / "classes.txt", "".join(f"{c}\n" for c in self.class_names))
        return dict(self._stamps)

    def check(self, name: str, files: Sequence[ImageFile]) -> None:
        """Checks that a shard that is there holds the images as they are now.

        Sizes and times tell; where these are others, or unknown, the images are compared.

        Raises:
            RunMismatchError: an image has changed.
            RequestError: one cannot be read.
        """
        sources = _sources_sha256(files)
        if self._stamps[name].get("sources") == sources:
            return
        with tarfile.open(self.folder / name) as tar:
            for image in files:
                packed = tar.extractfile(_member_of(image))
                if packed is None or packed.read() != _read(image):
                    raise RunMismatchError(
                        f"{image.path} is not what {self.folder / name} was packed from; give "
                        f"another --out, or delete {name} there and pack again"
                    )
        self.add(name, {**self._stamps[name], "sources": sources})

    def add(self, name: str, stamp: Mapping[str, str | int]) -> None:
        """Records a shard that was written."""
        self._stamps[name] = stamp
        replace_text(self.folder / "shards.json", json.dumps(self._stamps, indent=1) + "\n")


def _sources_sha256(files: Sequence[ImageFile]) -> str:
    """Returns one hash over names, sizes and times: equal means that no image was replaced."""
    digest = hashlib.sha256()
    for image in files:
        status = image.path.stat()
        digest.update(f"{image.key}\0{status.st_size}\0{stamp_of(status)}\n".encode())
    return digest.hexdigest()


def _member_of(image: ImageFile) -> str:
    return f"{image.key}{image.path.suffix.lower()}"


def _read(image: ImageFile) -> bytes:
    try:
        return read_regular(image.path)
    except OSError as error:
        raise RequestError(f"cannot read {image.path}: {error.strerror}") from error


def _add(tar: tarfile.TarFile, image: ImageFile) -> None:
    members = [(_member_of(image), _read(image))]
    if image.label is not None:
        members.append((f"{image.key}.cls", str(image.label).encode()))
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(content), 0, 0o644
        tar.addfile(info, io.BytesIO(content))
