"""The files that masked autoencoders come in, read into our words: no code in a file is run.

Origins: the MAE authors' `.pth`, the ViTMAE of `transformers` (three generations of parameter
names) and our own safetensors. `checkpoints` is the way in; it checks what this file returns.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ltrp_core.errors import CheckpointError
from ltrp_core.mae import MAE_CONFIGS, MAEConfig
from ltrp_core.parsing import parse_json, parse_json_object
from ltrp_core.regular_files import open_regular
from ltrp_core.shipped_weights import shipped_folder, where_to_get
from ltrp_core.weight_checks import listed

Format = Literal["mae-authors", "transformers", "ltrp"]
Target = Literal["raw", "normalized", "unknown"]

_HUB_PREFIX = "hf-hub:"
OUR_FORMAT = "ltrp-mae"
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


def read_file(path: Path) -> WeightsFile:
    """Returns what the weights file at `path` holds, safetensors or torch's own, nothing executed.

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
    return _read_torch(path)


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return WeightsFile(path=path, state=state, metadata=file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> WeightsFile:
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
            f"{listed(str(key) for key in fields) or 'something else'}; {where_to_get()}"
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


def first_line(error: Exception) -> str:
    """Returns what `error` says in one sentence, without torch's advice to trust the file."""
    text = str(error)
    found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    line = found[1] if found else (text.strip().splitlines() or [""])[0]
    sentence = line.split(". ")[0][:200]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
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


def interpret(file: WeightsFile) -> Weights:
    """Returns the file in the words of `MaskedAutoencoder`: sizes, names and target.

    Raises:
        CheckpointError: of no known format, without a decoder, or of sizes that are not supported.
    """
    if file.metadata.get("format") == OUR_FORMAT:
        return _from_ours(file)
    if any(re.match(r"(vit|decoder|embeddings)\.", key) for key in file.state):
        return _from_transformers(file)
    if "patch_embed.proj.weight" in file.state:
        return _from_authors(file)
    raise CheckpointError(
        f"{file.path} is of no known format; its keys are {listed(sorted(file.state)) or 'none'}, "
        f"not a masked autoencoder's; {where_to_get()}"
    )


def _from_ours(file: WeightsFile) -> Weights:
    try:
        config = MAEConfig(**parse_json_object(file.metadata["config"], "its header"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.path}: its header does not hold the sizes of a masked autoencoder "
            f"({first_line(error)}); write it with save_mae() of this version"
        ) from error
    target = _TARGETS.get(file.metadata.get("target", ""), "unknown")
    return Weights(format="ltrp", state=file.state, config=config, target=target)


def _from_authors(file: WeightsFile) -> Weights:
    _require_decoder(file.path, file.state)
    return Weights(
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
        f"decoder; {where_to_get()}"
    )


_SIZED_BY = {
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "decoder_embed.weight": 2,
}
"""The keys that tell the sizes, with their number of axes."""


def _config_of_shapes(file: WeightsFile) -> MAEConfig:
    shapes = {key: tuple(file.state[key].shape) for key in _SIZED_BY if key in file.state}
    missing = [key for key in _SIZED_BY if key not in shapes]
    if missing:
        raise CheckpointError(f"{file.path} lacks {listed(missing)}; {where_to_get()}")
    wrong = [f"{key}: {shape}" for key, shape in shapes.items() if len(shape) != _SIZED_BY[key]]
    grid = math.isqrt(max(shapes["pos_embed"][1] - 1, 0)) if not wrong else 0
    if not wrong and (grid < 1 or shapes["pos_embed"][1] != grid * grid + 1):
        wrong = [f"pos_embed: {shapes['pos_embed']}, not a class token and a square of patches"]
    if wrong:
        raise CheckpointError(f"{file.path} has wrong shapes: {listed(wrong)}; {where_to_get()}")
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


def _from_transformers(file: WeightsFile) -> Weights:
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
    return Weights(format="transformers", state=state, config=config, target=target, names=names)


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
                f"{path} has wrong shapes: {listed(shapes)} should be equal; download it again"
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
    remedy = "copy it again"
    says = parse_json(path.read_bytes(), str(path), error=CheckpointError, remedy=remedy)
    found = says.get("model_type") if isinstance(says, dict) else None
    if found != "vit_mae":
        raise CheckpointError(
            f"{path} describes model_type {found!r}, not 'vit_mae'; {where_to_get()}"
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
            f"{path} describes no masked autoencoder that is supported: {listed(wrong)}; "
            f"{where_to_get()}"
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
