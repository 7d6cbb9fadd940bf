"""The masked autoencoder, and the weights it comes with. Start at `load_mae`."""

from ltrp_core.mae.checkpoints import (
    CheckpointInfo,
    LoadedMAE,
    load_mae,
    save_mae,
    weights_sha256,
)
from ltrp_core.mae.model import (
    MAE_CONFIGS,
    MAEConfig,
    MaskedAutoencoder,
    create_mae,
    mae_config,
)

__all__ = [
    "MAE_CONFIGS",
    "CheckpointInfo",
    "LoadedMAE",
    "MAEConfig",
    "MaskedAutoencoder",
    "create_mae",
    "load_mae",
    "mae_config",
    "save_mae",
    "weights_sha256",
]
