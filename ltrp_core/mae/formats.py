"""The files that masked autoencoders come in, read into our words: no code in a file is run.

Origins: the MAE authors' `.pth`, the ViTMAE of `transformers` (three generations of parameter
names) and our own safetensors. `checkpoints` is the way in; it checks what this file returns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from ltrp_core.errors import CheckpointError, first_line
from ltrp_core.mae.files import OUR_FORMAT, TARGETS, Weights, WeightsFile, require_decoder
from ltrp_core.mae.model import MAE_CONFIGS, MAEConfig
from ltrp_core.mae.transformers_format import from_transformers
from ltrp_core.parsing import parse_json_object
from ltrp_core.shipped_weights import where_to_get
from ltrp_core.weight_checks import listed


def interpret(file: WeightsFile) -> Weights:
    """Returns the file in the words of `MaskedAutoencoder`: sizes, names and target.

    Raises:
        CheckpointError: of no known format, without a decoder, or of sizes that are not supported.
    """
    if file.metadata.get("format") == OUR_FORMAT:
        return _from_ours(file)
    if any(re.match(r"(vit|decoder|embeddings)\.", key) for key in file.state):
        return from_transformers(file)
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
    target = TARGETS.get(file.metadata.get("target", ""), "unknown")
    return Weights(format="ltrp", state=file.state, config=config, target=target)


def _from_authors(file: WeightsFile) -> Weights:
    require_decoder(file.path, file.state)
    return Weights(
        format="mae-authors",
        state=file.state,
        config=_config_of_shapes(file),
        target=TARGETS.get((file.args or {}).get("norm_pix_loss"), "unknown"),
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
