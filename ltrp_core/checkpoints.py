"""Weights of masked autoencoders: reads three origins, writes one, refuses what cannot score.

Origins: the MAE authors' `.pth`, the ViTMAE of `transformers` (three generations of parameter
names) and our own safetensors. Every tensor of a file is used or named in an error; nothing in a
file is executed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import MAE_CONFIGS, MAEConfig, MaskedAutoencoder

Format = Literal["mae-authors", "transformers", "ltrp"]
Target = Literal["raw", "normalized", "unknown"]

_HUB_PREFIX = "hf-hub:"
_OUR_FORMAT = "ltrp-mae"
_WEIGHTS_NAMES = ("mae.safetensors", "model.safetensors", "pytorch_model.bin")
_SHOWN_KEYS = 5
_WHERE_TO_GET = (
    "get mae_visualize_vit_base.pth from the MAE authors' repository (facebookresearch/mae), or "
    "facebook/vit-mae-base of the hub (hf-hub:facebook/vit-mae-base)"
)


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
        source: a weights file, a folder that holds one, or `hf-hub:` and a repository id, which
            is downloaded into the cache of `huggingface_hub`.
        normalized_target: what to do with weights that say they predict per-patch normalised
            pixels, whose scores rank patches worse (Tab. 1i: 83.3 -> 75.7).

    Raises:
        CheckpointError: nothing there, unreadable, unsafe, without a decoder, of another model,
            not finite, or trained on normalised pixels; one line with the file and the remedy.
    """
    path = _weights_file(_local(source))
    file = _read(path)
    weights = _interpret(file)
    _check_target(path, weights.target, file.args, normalized_target)
    mae = _empty(path, weights.config)
    _check_keys(path, weights, mae.state_dict())
    state = {
        key: weights.state[key].to(torch.float32, copy=True).contiguous()
        for key in mae.state_dict()
    }
    _check_finite(path, state)
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
        "format": _OUR_FORMAT,
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
    _check_finite(path, state)
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
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path") from error


# ---- finding and reading files -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """What a weights file holds, not interpreted yet."""

    path: Path
    state: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, Any] | None = None
    """The options of the training run, which only the MAE authors' files may hold."""


def _local(source: str | os.PathLike[str]) -> Path:
    """Returns where `source` is on the disk, downloaded if it is a hub id."""
    text = os.fspath(source)
    if not text.startswith(_HUB_PREFIX):
        return Path(text).expanduser()
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
            f"cannot download {repository!r} from the hub ({_first_line(error)}); download "
            "config.json and model.safetensors elsewhere and pass the folder that holds them"
        ) from error
    return folder


def _weights_file(path: Path) -> Path:
    """Returns `path`, or the weights file in it if it is a folder."""
    if path.is_file():
        return path
    if not path.exists():
        what = "a size, not weights" if str(path) in MAE_CONFIGS else "no file and no folder"
        raise CheckpointError(f"{str(path)!r} is {what}; {_WHERE_TO_GET}, and pass its path")
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


def _read(path: Path) -> _File:
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    # Eight bytes of length, then JSON; neither of torch's two formats has a brace there.
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> _File:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _File(path=path, state=state, metadata=file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> _File:
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
    fields = content if isinstance(content, Mapping) else {}
    state = fields.get("model", fields or None)
    if not isinstance(state, Mapping) or not all(_is_entry(item) for item in state.items()):
        raise CheckpointError(
            f"{path} holds no parameters (a dict of tensors, alone or under 'model'), but "
            f"{_listed(str(key) for key in fields) or 'something else'}; {_WHERE_TO_GET}"
        )
    args = fields.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    return _File(
        path=path,
        state=dict(state),
        args=options if isinstance(options, Mapping) else None,
    )


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged, cut short or no weights file ({_first_line(error)}); "
        "copy or download it again"
    )


def _first_line(error: Exception) -> str:
    """Returns what `error` says in one sentence, without torch's advice to trust the file."""
    text = str(error)
    found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    line = found[1] if found else (text.strip().splitlines() or [""])[0]
    sentence = line.split(". ")[0][:200]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


# ---- from names and sizes of others to ours ----------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weights:
    """A file in the words of `MaskedAutoencoder`, not checked against it yet."""

    format: Format
    state: dict[str, Tensor]
    config: MAEConfig
    target: Target
    names: Mapping[str, str] = field(default_factory=dict)
    """How the file calls a key of `state`, where that differs."""


_TARGETS: dict[object, Target] = {
    "raw": "raw",
    False: "raw",
    "normalized": "normalized",
    True: "normalized",
}
"""By what our header, or the `norm_pix_loss` of the others, says."""


def _interpret(file: _File) -> _Weights:
    if file.metadata.get("format") == _OUR_FORMAT:
        return _from_ours(file)
    if any(re.match(r"(vit|decoder|embeddings)\.", key) for key in file.state):
        return _from_transformers(file)
    if "patch_embed.proj.weight" in file.state:
        return _from_authors(file)
    raise CheckpointError(
        f"{file.path} is of no known format; its keys are {_listed(sorted(file.state)) or 'none'}, "
        f"not a masked autoencoder's; {_WHERE_TO_GET}"
    )


def _from_ours(file: _File) -> _Weights:
    try:
        config = MAEConfig(**json.loads(file.metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path}: its header does not hold the sizes of a masked autoencoder "
            f"({_first_line(error)}); write it with save_mae() of this version"
        ) from error
    target = _TARGETS.get(file.metadata.get("target", ""), "unknown")
    return _Weights(format="ltrp", state=file.state, config=config, target=target)


def _from_authors(file: _File) -> _Weights:
    _require_decoder(file.path, file.state)
    return _Weights(
        format="mae-authors",
        state=file.state,
        config=_config_of_shapes(file),
        target=_TARGETS.get((file.args or {}).get("norm_pix_loss"), "unknown"),
    )


def _require_decoder(path: Path, state: Iterable[str]) -> None:
    if any(key == "mask_token" or key.startswith("decoder_") for key in state):
        return
    raise CheckpointError(
        f"{path} holds an encoder only (no decoder_* keys, no mask_token), and scores need the "
        f"decoder; {_WHERE_TO_GET}"
    )


_SIZED_BY = {
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "decoder_embed.weight": 2,
}
"""The keys that tell the sizes, with their number of axes."""


def _config_of_shapes(file: _File) -> MAEConfig:
    shapes = {key: tuple(file.state[key].shape) for key in _SIZED_BY if key in file.state}
    missing = [key for key in _SIZED_BY if key not in shapes]
    if missing:
        raise CheckpointError(f"{file.path} lacks {_listed(missing)}; {_WHERE_TO_GET}")
    wrong = [f"{key}: {shape}" for key, shape in shapes.items() if len(shape) != _SIZED_BY[key]]
    grid = math.isqrt(max(shapes["pos_embed"][1] - 1, 0)) if not wrong else 0
    if not wrong and (grid < 1 or shapes["pos_embed"][1] != grid * grid + 1):
        wrong = [f"pos_embed: {shapes['pos_embed']}, not a class token and a square of patches"]
    if wrong:
        raise CheckpointError(f"{file.path} has wrong shapes: {_listed(wrong)}; {_WHERE_TO_GET}")
    width, _, _, patch_size = shapes["patch_embed.proj.weight"]
    decoder_width = shapes["decoder_embed.weight"][0]
    depth, decoder_depth = _depth(file.state, "blocks"), _depth(file.state, "decoder_blocks")
    sizes = (width, depth, decoder_width, decoder_depth)
    heads = _heads(file.path, sizes)
    return MAEConfig(
        width=width,
        depth=depth,
        heads=heads[0],
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=heads[1],
        patch_size=patch_size,
        grid=grid,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / width,
    )


def _depth(state: Iterable[str], blocks: str) -> int:
    found = (re.match(rf"{blocks}\.(\d+)\.", key) for key in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _heads(path: Path, sizes: tuple[int, int, int, int]) -> tuple[int, int]:
    """Returns the heads of encoder and decoder: of a known size, else 64 and 32 wide."""
    for known in MAE_CONFIGS.values():
        if sizes == (known.width, known.depth, known.decoder_width, known.decoder_depth):
            return known.heads, known.decoder_heads
    width, _, decoder_width, _ = sizes
    if width % 64 or decoder_width % 32 or not width or not decoder_width:
        raise CheckpointError(
            f"{path} does not say how many heads it has, and widths {width} and {decoder_width} "
            "are no multiples of 64 and 32; build its MAEConfig and write it with save_mae()"
        )
    return width // 64, decoder_width // 32


_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(?:vit\.)?embeddings\.cls_token$", "cls_token"),
        (r"^(?:vit\.)?embeddings\.position_embeddings$", "pos_embed"),
        (r"^(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:vit\.)?layernorm\.", "norm."),
        (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(?=\d)", "blocks."),
        (r"^decoder\.mask_token$", "mask_token"),
        (r"^decoder\.decoder_(?:encoder\.layer|layers)\.(?=\d)", "decoder_blocks."),
        (r"^decoder\.decoder_", "decoder_"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    )
)
"""Names of `transformers`, all generations, to ours; applied in this order."""


def _from_transformers(file: _File) -> _Weights:
    names: dict[str, str] = {}
    for theirs in file.state:
        ours = theirs
        for pattern, name in _RENAMED:
            ours = pattern.sub(name, ours)
        if ours in names:
            raise CheckpointError(
                f"{file.path} holds one parameter twice, as {names[ours]} and as {theirs}; "
                "write it again with one version of transformers"
            )
        names[ours] = theirs
    _require_decoder(file.path, names)
    path = file.path.with_name("config.json")
    says = _transformers_json(path, file.path)
    config = _config_of_json(path, says)
    state = {ours: file.state[theirs] for ours, theirs in names.items()}
    _fuse_qkv(file.path, state, names)
    if not says.get("qkv_bias", True):
        _add_zero_biases(state)
    target = _TARGETS.get(says.get("norm_pix_loss"), "unknown")
    return _Weights(format="transformers", state=state, config=config, target=target, names=names)


def _fuse_qkv(path: Path, state: dict[str, Tensor], names: Mapping[str, str]) -> None:
    """Replaces the separate query, key and value of each block by their concatenation."""
    for query in [key for key in state if ".attn.q." in key]:
        keys = [query.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if not all(key in state for key in keys):
            continue  # reported as missing, with the ones left over as unexpected
        parts = [state.pop(key) for key in keys]
        if len({part.shape for part in parts}) > 1 or parts[0].ndim == 0:
            shapes = [
                f"{names[key]}: {tuple(part.shape)}" for key, part in zip(keys, parts, strict=True)
            ]
            raise CheckpointError(
                f"{path} has wrong shapes: {_listed(shapes)} should be equal; download it again"
            )
        state[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)


def _add_zero_biases(state: dict[str, Tensor]) -> None:
    """Adds the biases of models trained without: zeros give exactly the same numbers."""
    for key in [key for key in state if key.endswith(".attn.qkv.weight")]:
        state.setdefault(key.removesuffix("weight") + "bias", state[key].new_zeros(len(state[key])))


def _transformers_json(path: Path, weights: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{weights} has the names of transformers, but no config.json lies beside it; "
            "put the one it was saved with there"
        )
    try:
        says = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not JSON ({_first_line(error)}); copy it again"
        ) from error
    found = says.get("model_type") if isinstance(says, dict) else None
    if found != "vit_mae":
        raise CheckpointError(
            f"{path} describes model_type {found!r}, not 'vit_mae'; {_WHERE_TO_GET}"
        )
    return dict(says)


_JSON_NAMES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "patch_size": "patch_size",
}
"""Fields of `MAEConfig` that config.json holds as they are."""


def _config_of_json(path: Path, says: Mapping[str, Any]) -> MAEConfig:
    names = (*_JSON_NAMES.values(), "image_size", "intermediate_size", "decoder_intermediate_size")
    sizes = {name: _side(says.get(name)) for name in names}
    wrong = [f"{name} = {says.get(name)!r}" for name, size in sizes.items() if size < 1]
    if says.get("hidden_act", "gelu") != "gelu":
        wrong.append(f"hidden_act = {says['hidden_act']!r}")
    if says.get("num_channels", 3) != 3:
        wrong.append(f"num_channels = {says['num_channels']!r}")
    eps = says.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, int | float) or not 0 <= eps < 1:
        wrong.append(f"layer_norm_eps = {eps!r}")
    if not wrong and sizes["image_size"] % sizes["patch_size"]:
        wrong.append(f"image_size = {says['image_size']!r} with patch_size = {sizes['patch_size']}")
    if not wrong and (
        sizes["intermediate_size"] * sizes["decoder_hidden_size"]
        != sizes["decoder_intermediate_size"] * sizes["hidden_size"]
    ):
        wrong.append("other ratios of intermediate to hidden size in encoder and decoder")
    if wrong:
        raise CheckpointError(
            f"{path} describes no masked autoencoder that is supported: {_listed(wrong)}; "
            f"{_WHERE_TO_GET}"
        )
    return MAEConfig(
        **{ours: sizes[theirs] for ours, theirs in _JSON_NAMES.items()},
        grid=sizes["image_size"] // sizes["patch_size"],
        mlp_ratio=sizes["intermediate_size"] / sizes["hidden_size"],
        norm_eps=float(eps),
    )


def _side(value: object) -> int:
    """Returns `value` as a size, taking [224, 224] for 224; 0 if it is none."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


# ---- checks ------------------------------------------------------------------------------------


def _check_target(
    path: Path,
    target: Target,
    args: Mapping[str, Any] | None,
    normalized_target: Literal["refuse", "warn"],
) -> None:
    """Refuses or warns of weights that predict normalised pixels: Tab. 1i."""
    why = "whose scores rank patches worse (Tab. 1i: 83.3 -> 75.7 % at keep ratio 0.5)"
    if target == "normalized":
        message = f"{path} was trained to predict per-patch normalised pixels, {why}; "
        if normalized_target == "refuse":
            raise CheckpointError(message + _WHERE_TO_GET)
        warnings.warn(message + _WHERE_TO_GET, stacklevel=3)
    elif target == "unknown" and args is None and "_full" in path.name:
        warnings.warn(
            f"{path} does not say what it predicts; the MAE authors' files called *_full predict "
            f"per-patch normalised pixels, {why}; {_WHERE_TO_GET}",
            stacklevel=3,
        )


def _empty(path: Path, config: MAEConfig) -> LoadedMAE:
    """Returns the model without storage: no memory, no draws from torch's default generator."""
    try:
        with torch.device("meta"):
            return LoadedMAE(config)
    except (ValueError, AssertionError, ArithmeticError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path} describes no masked autoencoder: {_first_line(error)} for {config}; "
            f"{_WHERE_TO_GET}"
        ) from error


def _check_keys(path: Path, weights: _Weights, expected: Mapping[str, Tensor]) -> None:
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
    parts = [f"{label}: {_listed(keys)}" for label, keys in problems.items() if keys]
    if parts:
        raise CheckpointError(
            f"{path} is not the masked autoencoder its sizes say; {'; '.join(parts)}; "
            f"{_WHERE_TO_GET}"
        )


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: not finite as {state[broken[0]].dtype}: {_listed(broken)}; the training "
            "diverged or the file is damaged: use an earlier checkpoint or another copy"
        )


def _listed(keys: Iterable[str]) -> str:
    """Returns the first keys, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more


def _sorted_header(data: bytes) -> bytes:
    """Returns safetensors `data` with its header in sorted order.

    The library writes metadata in an order that changes from run to run, and with it the hash.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to their largest element
    return len(header).to_bytes(8, "little") + header + data[start:]
