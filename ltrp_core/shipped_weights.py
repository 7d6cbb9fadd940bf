"""Weights that the package carries, and where those that it does not carry are to be had.

They were trained by the project's own stages; their folders hold model cards with data, recipe and
limits. docs/weights.md tells how they were made.
"""

from __future__ import annotations

from pathlib import Path

from ltrp_core.errors import CheckpointError

SHIPPED_MAE = "mae_tiny"
SHIPPED_RANKER = "ranker_tiny"
"""Trained on surprise mixed with priors: the one to take"""
SHIPPED_L1_RANKER = "ranker_tiny_l1"
"""Trained on the paper's label, for comparison"""
SHIPPED_RANKERS = (SHIPPED_RANKER, SHIPPED_L1_RANKER)
WEIGHTS_FOLDER = Path(__file__).with_name("weights")

_AUTHORS_SIZES = {"mae_base": "base", "mae_large": "large", "mae_huge": "huge"}


def shipped_folder(name: str) -> Path | None:
    """Returns the folder of the package's own weights called `name`; None: they are not its own.

    Raises:
        CheckpointError: there is such a file or folder here, too, so either may be meant.
    """
    if name not in (SHIPPED_MAE, *SHIPPED_RANKERS):
        return None
    if Path(name).exists():
        raise CheckpointError(
            f"{name!r} is both weights that the package carries and a path here; pass ./{name} "
            "for the path, or work in another folder"
        )
    return WEIGHTS_FOLDER / name


def shipped_sha256(name: str) -> str:
    """Returns the sha256 of the package's own weights called `name`, in hex."""
    lines = (WEIGHTS_FOLDER / "SHA256SUMS").read_text("utf-8").splitlines()
    return next(line.split()[0] for line in lines if line.split()[1].startswith(f"{name}/"))


def where_to_get(size: str = "mae_base") -> str:
    """Returns where weights of `size` are to be had, as advice in a sentence."""
    if size not in _AUTHORS_SIZES:
        return (
            "nobody publishes weights of that size: train them (ltrp-pipeline pretrain-mae "
            f"--model {size}), or take --mae {SHIPPED_MAE}, which the package carries"
        )
    name = _AUTHORS_SIZES[size]
    return (
        f"get mae_visualize_vit_{name}.pth from the MAE authors' repository (facebookresearch/mae)"
        f" and pass its path, or pass hf-hub:facebook/vit-mae-{name}"
    )
