"""Weights of masked autoencoders: reads three origins, writes one, refuses what cannot score.

Origins: the MAE authors' `.pth`, the ViTMAE of `transformers` (three generations of parameter
names) and our own safetensors. Every tensor of a file is used or named in an error; nothing in a
file is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ltrp_core.errors import CheckpointError, RequestError, first_line
from ltrp_core.mae.files import OUR_FORMAT, Format, Target, Weights, find_weights, locate, read_file
from ltrp_core.mae.formats import interpret
from ltrp_core.mae.model import MAEConfig, MaskedAutoencoder
from ltrp_core.regular_files import open_regular
from ltrp_core.shipped_weights import where_to_get
from ltrp_core.weight_checks import check_finite, listed


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """Where the weights of a masked autoencoder came from."""

    path: Path
    """The weights file itself, also when a folder or a hub id was asked for."""
    format: Format
    sha256: str
    """Of the weights file, lower-case hexadecimal."""
    target: Target
    """What it was trained to predict, as far as the file says: Tab. 1i."""


class LoadedMAE(MaskedAutoencoder):
    """A masked autoencoder that came from a file; `source` says which."""

    source: CheckpointInfo


def load_mae(
    source: str | os.PathLike[str], *, normalized_target: Literal["refuse", "warn"] = "refuse"
) -> LoadedMAE:
    """Returns the masked autoencoder in `source`: frozen, evaluation mode, float32, on the CPU.

    Torch's default generator is left as it was. The MAE authors' files do not say how many heads
    they have: sizes listed in `MAE_CONFIGS` take theirs from there, others have heads 64 wide in
    the encoder and 32 wide in the decoder, as all sizes of the authors but huge have.

    Args:
        source: `mae_tiny` (weights that the package carries), a weights file, a folder that holds
            one, or `hf-hub:` and a repository id, which is downloaded into the cache of
            `huggingface_hub`.
        normalized_target: what to do with weights that say they predict per-patch normalized
            pixels, whose scores rank patches worse (Tab. 1i: 83.3 -> 75.7).

    Raises:
        CheckpointError: nothing there, unreadable, unsafe, without a decoder, of another model,
            not finite, or trained on normalized pixels; one line with the file and the remedy.
    """
    path = find_weights(locate(source))
    file = read_file(path)
    weights = interpret(file)
    _check_target(path, weights.target, file.args, normalized_target)
    mae = _empty(path, weights.config)
    _check_keys(path, weights, mae.state_dict())
    state = {
        key: weights.state[key].to(torch.float32, copy=True).contiguous()
        for key in mae.state_dict()
    }
    check_finite(path, state)
    mae.load_state_dict(state, assign=True)
    mae.source = CheckpointInfo(
        path=path, format=weights.format, sha256=weights_sha256(path), target=weights.target
    )
    return mae.eval().requires_grad_(False)


def save_mae(
    mae: MaskedAutoencoder,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Writes `mae` as safetensors that carry its sizes; equal weights give equal bytes.

    The file is complete or absent: it is written under another name first.

    Args:
        mae: on any device; one that `load_mae` read keeps its target, others are taken to
            predict raw pixels, as `MaskedAutoencoder.forward` trains them to.
        path: of the file; its folder exists. A file of that name is replaced.
        dtype: of the tensors; float16 halves the file.
        extra: metadata for the header, beside `format`, `config` and `target`.

    Raises:
        RequestError: `extra` holds a reserved name.
        CheckpointError: a weight is not finite, or too large for `dtype`.
    """
    target = mae.source.target if isinstance(mae, LoadedMAE) else "raw"
    header = {
        "format": OUR_FORMAT,
        "config": json.dumps(dataclasses.asdict(mae.config), sort_keys=True),
        "target": target,
    }
    reserved = sorted(header.keys() & (extra or {}).keys())
    if reserved:
        raise RequestError(f"extra may not hold {', '.join(reserved)}; choose other names")
    state = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in sorted(mae.state_dict().items())
    }
    path = Path(path)
    check_finite(path, state)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(_sorted_header(save(state, {**(extra or {}), **header})))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def weights_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of the weights file at `path`, in lower-case hexadecimal.

    Raises:
        CheckpointError: there is no such file.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path") from error


# ---- checks ------------------------------------------------------------------------------------


def _check_target(
    path: Path,
    target: Target,
    args: Mapping[str, Any] | None,
    normalized_target: Literal["refuse", "warn"],
) -> None:
    """Refuses or warns of weights that predict normalized pixels: Tab. 1i."""
    why = "whose scores rank patches worse (Tab. 1i: 83.3 -> 75.7 % at keep ratio 0.5)"
    if target == "normalized":
        message = f"{path} was trained to predict per-patch normalized pixels, {why}; "
        if normalized_target == "refuse":
            raise CheckpointError(message + where_to_get())
        warnings.warn(message + where_to_get(), stacklevel=3)
    elif target == "unknown" and args is None and "_full" in path.name:
        warnings.warn(
            f"{path} does not say what it predicts; the MAE authors' files called *_full predict "
            f"per-patch normalized pixels, {why}; {where_to_get()}",
            stacklevel=3,
        )


def _empty(path: Path, config: MAEConfig) -> LoadedMAE:
    """Returns the model without storage: no memory, no draws from torch's default generator."""
    try:
        with torch.device("meta"):
            return LoadedMAE(config)
    except (ValueError, AssertionError, ArithmeticError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path} describes no masked autoencoder: {first_line(error)} for {config}; "
            f"{where_to_get()}"
        ) from error


def _check_keys(path: Path, weights: Weights, expected: Mapping[str, Tensor]) -> None:
    found = weights.state
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [weights.names.get(key, key) for key in found if key not in expected],
        "wrong shapes": [
            f"{weights.names.get(key, key)}: expected {tuple(expected[key].shape)}, found "
            f"{tuple(found[key].shape)}"
            for key in expected
            if key in found and found[key].shape != expected[key].shape
        ],
        "not floating point": [
            f"{weights.names.get(key, key)}: {value.dtype}"
            for key, value in found.items()
            if not value.is_floating_point()
        ],
    }
    parts = [f"{label}: {listed(keys)}" for label, keys in problems.items() if keys]
    if parts:
        raise CheckpointError(
            f"{path} is not the masked autoencoder its sizes say; {'; '.join(parts)}; "
            f"{where_to_get()}"
        )


def _sorted_header(data: bytes) -> bytes:
    """Returns safetensors `data` with its header in sorted order.

    The library writes metadata in an order that changes from run to run, and with it the hash.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to their largest element
    return len(header).to_bytes(8, "little") + header + data[start:]
