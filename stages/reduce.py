"""After `select`: shards that hold only what was kept of every image, to train from."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from ltrp_core.patches import patchify, unpatchify
from ltrp_core.tiles import MEAN_COLOR, to_sheet
from ltrp_core.views import View, render_view
from stages.encoding import BLOCK_420, BLOCK_444, ENDINGS, Format, encode
from stages.options import check_ranges, identity, option
from stages.protocols import Arrays, CacheReader, Sample, Summary, UnitRunner
from stages.records import kept_name, recorded_view
from stages.sample_rows import CLASS_KEYS, SAMPLE_FIELDS, object_rows
from stages.types import SelectRun

SCHEMA = 1
"""Of what is written"""
KEPT = "kept"
"""What was kept of a sample: the key of its JSON"""
_JSON = "json"
_QUALITY = 90
_AT_A_TIME = 32

OpenSelections = Callable[[], CacheReader]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReduceConfig:
    """Options of `reduce`."""

    selections: str = option(
        help="--out folder of `select`, of the same shards", changes_numbers=False
    )
    keep_ratio: float = option(
        0.5, low=0.0, high=1.0, help="share of kept patches; one that was selected"
    )
    form: Literal["patches", "indices", "masked"] = option(
        "patches",
        help="patches: a picture of the kept patches as tiles; indices: the sample as it is, and "
        "which were kept; masked: the view with the rest in one color",
    )
    format: Format = option("jpeg", help="of the picture; lossy WebP predicts across tiles")
    quality: int = option(_QUALITY, low=1, high=100, help="of JPEG and WebP")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.form == "indices" and (self.format, self.quality) != ("jpeg", _QUALITY):
            raise RequestError(
                "--form indices copies the images as they are; leave out --format and --quality"
            )
        if self.format == "png" and self.quality != _QUALITY:
            raise RequestError("--format png is lossless; leave out --quality")


class UnitReducer:
    """Makes the reduced samples of one shard after another."""

    device = "cpu"

    def __init__(
        self,
        config: ReduceConfig,
        run: SelectRun,
        open_selections: OpenSelections,
        image_suffixes: Collection[str],
        device: str = "auto",
    ) -> None:
        """Opens the selections.

        Args:
            config: options.
            run: what the selections were made with.
            open_selections: opens their cache.
            image_suffixes: last parts of endings that name images, such as `.jpg`: beside a picture
                of what was kept no other image is copied.
            device: of the worker; it is not needed.
        """
        del device
        self.config, self.run = config, run
        self._selections = open_selections()
        self._suffixes = frozenset(image_suffixes)
        self._arrays: Arrays = {}
        self._rows: dict[str, int] = {}

    def begin(self, unit: str) -> None:
        """Reads the unit of selections of the shard that comes."""
        names = ["size", "crop", "flip", kept_name(self.config.keep_ratio)]
        self._arrays = self._selections.read(unit, names)
        self._rows = {key: row for row, key in enumerate(self._arrays["key"].tolist())}

    def prepare(self, sample: Sample) -> tuple[str, tuple[tuple[str, bytes], ...]]:
        """Returns the key and the members of the reduced sample.

        Raises:
            RequestError: the sample was not selected from, or was another image.
        """
        row = self._row(sample)
        kept = np.sort(self._arrays[kept_name(self.config.keep_ratio)][row].astype(np.int64))
        view = recorded_view(self._arrays, row)
        members = list(sample.members[1:])
        document = next((m for m in members if m[0].lower() == _JSON), (_JSON, b""))
        own = _parsed(document[1])
        members = [member for member in members if member is not document]
        picture = sample.members[0]
        if self.config.form != "indices":
            pixels = self._pixels(sample.image, view, kept)
            block = _block(self.config, self.run.patch_size)
            data = encode(pixels, self.config.format, self.config.quality, block)
            picture = (ENDINGS[self.config.format], data)
            members = [member for member in members if not self._is_image(member[0])]
        described = self._described(sample, view, kept, picture[0], _label(sample.members, own))
        return sample.key, (picture, *members, (_JSON, _merged(own, document[1], described)))

    def batches(
        self, prepared: Iterable[tuple[str, tuple[tuple[str, bytes], ...]]]
    ) -> Iterator[Arrays]:
        """Yields the arrays of `SAMPLE_FIELDS` for the samples that come, some at a time."""
        samples = iter(prepared)
        while group := list(itertools.islice(samples, _AT_A_TIME)):
            yield {
                name: object_rows([sample[number] for sample in group])
                for number, name in enumerate(SAMPLE_FIELDS)
            }

    def take_notes(self) -> list[str]:
        """Returns nothing: there is nothing to confess."""
        return []

    def _row(self, sample: Sample) -> int:
        row = self._rows.get(sample.key)
        if row is None:
            raise RequestError(
                f"--selections {self.config.selections} has nothing of {sample.key!r}: the shard "
                "is not the one that was selected from, or this image could not be used then; "
                "select again, into another --out"
            )
        size, found = self._arrays["size"][row].tolist(), list(sample.image.shape[:2])
        if size != found:
            raise RequestError(
                f"{sample.key!r} was selected from at {size} px and is {found} px now; is this the "
                "image that was selected from?"
            )
        return row

    def _pixels(
        self, image: NDArray[np.uint8], view: View, kept: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Returns the picture (H, W, 3) of what was kept."""
        size, patch = self.run.image_size, self.run.patch_size
        patches = patchify(render_view(image, view, size)[None], patch)[0]
        indices = torch.from_numpy(kept)
        if self.config.form == "patches":
            return to_sheet(patches[indices], patch).numpy()
        masked = torch.tensor(MEAN_COLOR, dtype=torch.uint8).repeat(len(patches), patch**2)
        masked[indices] = patches[indices]
        plain = unpatchify(masked[None], patch, self.run.grid)[0]
        return plain.permute(1, 2, 0).contiguous().numpy()

    def _is_image(self, ending: str) -> bool:
        return f".{ending.rpartition('.')[2].lower()}" in self._suffixes

    def _described(
        self,
        sample: Sample,
        view: View,
        kept: NDArray[np.int64],
        ending: str,
        label: int | None,
    ) -> dict[str, Any]:
        return {
            "form": self.config.form,
            "picture": ending,
            "indices": kept.tolist(),
            "grid": self.run.grid,
            "patch_size": self.run.patch_size,
            "view": {
                "top": view.top,
                "left": view.left,
                "height": view.height,
                "width": view.width,
                "flip": view.flip,
            },
            "size": list(sample.image.shape[:2]),
            "label": label,
        }


def run(
    config: ReduceConfig,
    *,
    units: UnitRunner,
    selected: Mapping[str, Any],
    selections_run: str,
    open_selections: OpenSelections,
    image_suffixes: Collection[str],
    store: str,
) -> Summary:
    """Writes the reduced samples of every pending shard.

    Args:
        config: options.
        units: where the shards are, and what is written.
        selected: the identity of the selections.
        selections_run: its hash.
        open_selections: opens their cache.
        image_suffixes: see `UnitReducer`.
        store: the form of the records that takes samples.

    Raises:
        RequestError: the keep ratio was not selected, or JPEG has no block of a patch's size.
    """
    made = SelectRun.of(selected, config.selections)
    if config.keep_ratio not in made.keep_ratio:
        there = ", ".join(f"{ratio:g}" for ratio in made.keep_ratio)
        raise RequestError(
            f"--keep-ratio {config.keep_ratio:g} was not selected: {config.selections} has {there}"
        )
    _block(config, made.patch_size)
    reduced_by = {
        **identity(config),
        "image_size": made.image_size,
        "patch_size": made.patch_size,
        "selections_run": selections_run,
        "store": store,
        "schema": SCHEMA,
    }
    make = functools.partial(UnitReducer, config, made, open_selections, image_suffixes)
    return units.run("reduce", make, identity=reduced_by, fields=SAMPLE_FIELDS)


def _block(config: ReduceConfig, patch_size: int) -> int:
    """Returns the side of a JPEG's blocks: tiles must be whole ones, or they run into each other.

    Raises:
        RequestError: no block divides a patch.
    """
    if (config.form, config.format) != ("patches", "jpeg") or patch_size % BLOCK_420 == 0:
        return BLOCK_420
    if patch_size % BLOCK_444 == 0:
        return BLOCK_444
    raise RequestError(
        f"--format jpeg codes blocks of {BLOCK_444} px, and patches of {patch_size} px are no "
        "whole ones: tiles would run into each other; pass --format png, or webp"
    )


def _label(members: Iterable[tuple[str, bytes]], own: Mapping[str, Any]) -> int | None:
    """Returns the sample's class by its `.cls`, else by its JSON; None if that is no number."""
    values = [
        *(
            int(content)
            for ending, content in members
            if ending.lower() == "cls" and _is_number(content)
        ),
        *(own[key] for key in CLASS_KEYS if key in own),
    ]
    return values[0] if values and type(values[0]) is int and 0 <= values[0] < 2**63 else None


def _is_number(content: bytes) -> bool:
    return len(content) < 20 and content.strip().isdigit()


def _merged(own: Mapping[str, Any], text: bytes, kept: Mapping[str, Any]) -> bytes:
    """Returns the sample's own JSON with one key more.

    What is no JSON object stands as text under `text`.
    """
    if text and not own and text.strip() != b"{}":
        own = {"text": text.decode("utf-8", "backslashreplace")}
    return json.dumps({**own, KEPT: kept}, separators=(",", ":")).encode()


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
