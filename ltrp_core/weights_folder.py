"""A model as a folder of two files: its weights, and a config.json that says how to build it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.weight_checks import check_finite


def write_weights(
    weights: Path, state: Mapping[str, Tensor], config: Path, described: Mapping[str, Any]
) -> None:
    """Writes weights and what they are of; earlier files are replaced, each in one step.

    Args:
        weights: file of the folder, which is there.
        state: on the CPU, contiguous.
        config: another file of it.
        described: anything JSON can hold.

    Raises:
        CheckpointError: a weight is not finite; nothing is written then.
    """
    text = json.dumps(described, indent=2, sort_keys=True)
    check_finite(weights, state)
    new_weights, new_config = (file.with_name(f"{file.name}.partial") for file in (weights, config))
    # Not save_file, which gives the file to its owner alone, whatever the umask says.
    new_weights.write_bytes(save(dict(state)))
    new_config.write_text(text + "\n", encoding="utf-8")
    new_weights.replace(weights)
    new_config.replace(config)


def described_input(image_size: int) -> dict[str, Any]:
    """Returns what config.json says of the pixels that a model wants.

    Args:
        image_size: side of the views in px.
    """
    return {
        "image_size": image_size,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bicubic",
        "antialias": True,
    }
