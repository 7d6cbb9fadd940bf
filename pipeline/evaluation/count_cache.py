"""Keeps what was counted in patches beside an evaluation, so that the next one need not rasterize.

A file holds what it is the answer to; anything else, or a damaged file, is counted again.
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib import resources
from pathlib import Path

import numpy as np

from pipeline.annotations import AnnotationSource
from pipeline.annotations.categories import LISTS
from pipeline.files import atomic_write
from pipeline.store.cache import Cache
from stages.protocols import Arrays

FOLDER = "counts"
_VERSION = 2
"""Raise it when the geometry or what counts as foreground changes."""
_ARRAYS = ("is_annotated", "annotation", "foreground_pixels", "valid_pixels")


class FileCountCache:
    """Counts of the units of one selections cache under one set of annotations."""

    def __init__(self, folder: Path, selections: Cache, annotations: AnnotationSource) -> None:
        self.folder = folder
        self._selections = selections
        self._annotations = annotations
        self.hits = 0
        """Answers that were found."""

    def get(self, unit: str, categories: str) -> Arrays | None:
        """Returns the counts of a unit, if they are of these selections and annotations."""
        wanted = self._identity(unit, categories)
        try:
            with np.load(self._path(unit, categories), allow_pickle=False) as file:
                if str(file["identity"]) != wanted:
                    return None
                # Reading checks the checksum that a zip holds of each array.
                found = {name: file[name] for name in _ARRAYS}
        except MemoryError:
            raise
        except Exception:  # a damaged zip, or a damaged header in it, fails in every way there is
            return None
        self.hits += 1
        return found

    def put(self, unit: str, categories: str, counts: Arrays) -> None:
        """Keeps the counts of a unit; replaces those of other annotations."""
        content = io.BytesIO()
        arrays = {name: counts[name] for name in _ARRAYS}
        arrays["identity"] = np.array(self._identity(unit, categories))
        np.savez(content, **arrays)  # type: ignore[arg-type]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(unit, categories)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.getvalue())

    def _path(self, unit: str, categories: str) -> Path:
        # By hash: a unit's name is data.
        name = hashlib.sha256(f"{unit}\0{categories}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.npz"

    def _identity(self, unit: str, categories: str) -> str:
        receipt = self._selections.receipt(unit).to_bytes()
        lists = [
            (resources.files("pipeline.annotations") / f"{n}.json").read_bytes() for n in LISTS
        ]
        return json.dumps(
            {
                "version": _VERSION,
                "unit": unit,
                "receipt": hashlib.sha256(receipt).hexdigest(),
                "annotations": self._annotations.fingerprint,
                "categories": categories,
                "lists": hashlib.sha256(b"\0".join(lists)).hexdigest(),
            },
            sort_keys=True,
        )
