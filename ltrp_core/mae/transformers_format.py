"""The ViTMAE of `transformers`, three generations of parameter names, read into our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltrp_core.errors import CheckpointError
from ltrp_core.mae.files import (
    TARGETS,
    Weights,
    WeightsFile,
    require_decoder,
)
from ltrp_core.mae.model import MAEConfig
from ltrp_core.parsing import parse_json
from ltrp_core.shipped_weights import where_to_get
from ltrp_core.weight_checks import listed

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


def from_transformers(file: WeightsFile) -> Weights:
    """Returns what a file of `transformers` holds; its config.json lies beside it.

    Raises:
        CheckpointError: it lies not, describes another model, or keys are missing or twice there.
    """
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
    require_decoder(file.path, names)
    path = file.path.with_name("config.json")
    says = _transformers_json(path, file.path)
    config = _config_of_json(path, says)
    state = {ours: file.state[theirs] for ours, theirs in names.items()}
    _fuse_qkv(file.path, state, names)
    if not says.get("qkv_bias", True):
        _add_zero_biases(state)
    target = TARGETS.get(says.get("norm_pix_loss"), "unknown")
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
