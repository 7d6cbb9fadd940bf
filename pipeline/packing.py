"""Image folders in, tar shards out: what `pack` needs of the file system."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ltrp_core.errors import RequestError
from pipeline.inputs.images import EXTENSIONS
from pipeline.inputs.keys import image_keys
from pipeline.parsing import read_json_object
from pipeline.store.receipts import file_sha256, replace_text
from pipeline.store.run_file import claim_folder
from stages.pack import ImageFile


def find_images(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """Returns the images below `folder` with unique keys and classes, and the names of other files.

    Keys are those of `image_keys`. Where every image lies in a subfolder, the first one names its
    class (ImageFolder).

    Raises:
        RequestError: no such folder, not readable, no image in it, or two would share a key.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder of images")
    everything: list[str] = []
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        folders.sort()
        relative = Path(root).relative_to(folder)
        everything += [(relative / name).as_posix() for name in files]
    names = [name for name in everything if Path(name).suffix.lower() in EXTENSIONS]
    others = sorted(set(everything) - set(names))
    if not names:
        raise RequestError(f"{folder} holds no image ({', '.join(sorted(EXTENSIONS))})")
    names.sort()
    labelled = all("/" in name for name in names)
    classes = sorted({name.split("/", 1)[0] for name in names}) if labelled else []
    keys = image_keys(names)
    images = [
        ImageFile(
            path=folder / name,
            key=key,
            label=classes.index(name.split("/", 1)[0]) if labelled else None,
            class_name=name.split("/", 1)[0] if labelled else None,
        )
        for name, key in zip(names, keys, strict=True)
    ]
    return images, others


def _unreadable(error: OSError) -> None:
    raise RequestError(f"cannot read {error.filename}: {error.strerror}; check its permissions")


class TarSink:
    """Writes shards under their final name only when whole; equal input gives equal bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, files: Sequence[ImageFile]) -> dict[str, str | int]:
        """Writes one shard; returns its name, size, sha256 and number of samples.

        Raises:
            RequestError: a file cannot be read.
        """
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            with temporary.open("wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    for image in files:
                        _add(tar, image)
                file.flush()
                os.fsync(file.fileno())
            stamp: dict[str, str | int] = {
                "name": name,
                "size": temporary.stat().st_size,
                "sha256": file_sha256(temporary),
                "num_samples": len(files),
            }
            os.replace(temporary, self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return stamp


class PackFolder:
    """The output folder of `pack`: `run.json`, `shards.json` (one stamp a shard), `classes.txt`."""

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

    def add(self, name: str, stamp: Mapping[str, str | int]) -> None:
        """Records a shard that was written."""
        self._stamps[name] = stamp
        replace_text(self.folder / "shards.json", json.dumps(self._stamps, indent=1) + "\n")


def _add(tar: tarfile.TarFile, image: ImageFile) -> None:
    try:
        data = image.path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {image.path}: {error.strerror}") from error
    members = [(f"{image.key}{image.path.suffix.lower()}", data)]
    if image.label is not None:
        members.append((f"{image.key}.cls", str(image.label).encode()))
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(content), 0, 0o644
        tar.addfile(info, io.BytesIO(content))
