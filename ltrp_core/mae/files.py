"""Weights files, found and read, not interpreted yet: no code in a file is run."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ltrp_core.errors import CheckpointError, first_line
from ltrp_core.mae.model import MAE_CONFIGS, MAEConfig
from ltrp_core.regular_files import open_regular
from ltrp_core.shipped_weights import shipped_folder, where_to_get
from ltrp_core.weight_checks import listed

Format = Literal["mae-authors", "transformers", "ltrp"]
Target = Literal["raw", "normalized", "unknown"]

_HUB_PREFIX = "hf-hub:"
OUR_FORMAT = "ltrp-mae"
_WRAPPED_AS = ("model", "state_dict")
"""Keys that the parameters may lie under: the MAE authors' and timm's training scripts."""
_WEIGHTS_NAMES = ("mae.safetensors", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFile:
    """What a weights file holds, not interpreted yet."""

    path: Path
    state: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, Any] | None = None
    """The options of the training run, which only the MAE authors' files may hold."""


def locate(source: str | os.PathLike[str]) -> Path:
    """Returns where `source` is on the disk, downloaded if it is a hub id."""
    text = os.fspath(source)
    if not text.startswith(_HUB_PREFIX):
        return shipped_folder(text) or Path(text).expanduser()
    from huggingface_hub import snapshot_download

    repository = text.removeprefix(_HUB_PREFIX)
    folder = Path()
    try:
        # One after the other: most repositories hold the same weights in both formats.
        for name in ("model.safetensors", "pytorch_model.bin"):
            folder = Path(snapshot_download(repository, allow_patterns=["config.json", name]))
            if (folder / name).exists():
                break
    except Exception as error:  # requests', httpx's and the hub's own, by version
        raise CheckpointError(
            f"cannot download {repository!r} from the hub ({first_line(error)}); download "
            "config.json and model.safetensors elsewhere and pass the folder that holds them"
        ) from error
    return folder


def find_weights(path: Path) -> Path:
    """Returns `path`, or the weights file in it if it is a folder."""
    if path.exists() and not path.is_dir():  # what is no file either, `read_file` refuses
        return path
    if not path.exists():
        if str(path) in MAE_CONFIGS:
            advice = f"a size, not weights; {where_to_get(str(path))}"
        else:
            advice = f"no file and no folder; {where_to_get()}"
        raise CheckpointError(f"{str(path)!r} is {advice}")
    for name in _WEIGHTS_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    raise CheckpointError(
        f"the folder {path} holds none of {', '.join(_WEIGHTS_NAMES)} and {len(found)} other "
        ".safetensors files; pass the weights file itself, in one piece"
    )


def read_file(path: Path, advice: str = "", wrapped_as: Sequence[str] = _WRAPPED_AS) -> WeightsFile:
    """Returns what the weights file at `path` holds, safetensors or torch's own, nothing executed.

    Args:
        path: of the file.
        advice: what to do where it holds no parameters; empty: where a MAE's are to be had.
        wrapped_as: keys that the parameters may lie under, the first one that is there.

    Raises:
        CheckpointError: unreadable, empty, damaged, asking to run code, or without parameters.
    """
    try:
        with open_regular(path) as stream:
            head = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    # Eight bytes of length, then JSON; neither of torch's two formats has a brace there.
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _read_safetensors(path)
    return _read_torch(path, advice or where_to_get(), wrapped_as)


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return WeightsFile(path=path, state=state, metadata=file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def read_pickled(path: Path) -> Mapping[str, Any]:
    """Returns the dict that `torch.save` wrote, nothing executed; empty where it is something else.

    Raises:
        CheckpointError: unreadable, damaged, or asking to run code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes read as a pickle fail in every way there is
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f"{path} was not loaded: it asks to run {refused[1]}, which weights never need; if you "
            "trust it, save torch.load(...)['model'] alone with torch.save and pass that"
        ) from error
    return content if isinstance(content, Mapping) else {}


def _read_torch(path: Path, advice: str, wrapped_as: Sequence[str]) -> WeightsFile:
    fields = read_pickled(path)
    wrapped = next((fields[key] for key in wrapped_as if key in fields), None)
    state = (fields or None) if wrapped is None else wrapped
    if not isinstance(state, Mapping) or not all(_is_entry(item) for item in state.items()):
        raise CheckpointError(
            f"{path} holds no parameters (a dict of tensors, alone or under 'model'), but "
            f"{listed(str(key) for key in fields) or 'something else'}; {advice}"
        )
    args = fields.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    return WeightsFile(
        path=path,
        state=dict(state),
        args=options if isinstance(options, Mapping) else None,
    )


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged, cut short or no weights file ({first_line(error)}); "
        "copy or download it again"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A file in the words of `MaskedAutoencoder`, not checked against it yet."""

    format: Format
    state: dict[str, Tensor]
    config: MAEConfig
    target: Target
    names: Mapping[str, str] = field(default_factory=dict)
    """How the file calls a key of `state`, where that differs."""


TARGETS: dict[object, Target] = {
    "raw": "raw",
    False: "raw",
    "normalized": "normalized",
    True: "normalized",
}
"""By what our header, or the `norm_pix_loss` of the others, says."""


def require_decoder(path: Path, state: Iterable[str]) -> None:
    """Raises CheckpointError if the keys of a state are an encoder's alone."""
    if any(key == "mask_token" or key.startswith("decoder_") for key in state):
        return
    raise CheckpointError(
        f"{path} holds an encoder only (no decoder_* keys, no mask_token), and scores need the "
        f"decoder; {where_to_get()}"
    )
