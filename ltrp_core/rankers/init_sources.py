"""Where a ranker's first weights are read from: an MAE, timm, a file, an earlier ranker."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import CheckpointError, RequestError, first_line
from ltrp_core.mae.checkpoints import LoadedMAE, weights_sha256
from ltrp_core.mae.files import OUR_FORMAT, find_weights, locate, read_file
from ltrp_core.mae.formats import interpret
from ltrp_core.mae.model import MaskedAutoencoder
from ltrp_core.rankers.folder import HUB_PREFIX, WEIGHTS, load_ranker, locate_ranker
from ltrp_core.rankers.models import TRANSFORMERS, Ranker
from ltrp_core.shipped_weights import shipped_folder
from ltrp_core.weight_sources import TIMM

Kind = Literal["mae", "timm", "ranker"]
Source = str | os.PathLike[str] | MaskedAutoencoder | Ranker | Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundWeights:
    """A source, read: its state in the ranker's names, but for the prefix of a backbone."""

    source: str
    kind: Kind
    state: dict[str, Tensor]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    heads: int | None = None
    norm_eps: float | None = None
    notes: tuple[str, ...] = ()
    sha256: str = ""


def read_source(source: Source) -> FoundWeights:
    """Returns what `source` holds: the kinds of `initialize_ranker`.

    Raises:
        CheckpointError: it is missing, unsafe or damaged.
        RequestError: timm has no model of that name.
    """
    match source:
        case MaskedAutoencoder():
            return _from_mae(source)
        case Ranker():
            return _from_ranker(source, f"a ranker {source.config['name']}")
        case Mapping():
            return _from_state("a state dict", source)
    text = os.fspath(source)
    if text.startswith(TIMM):
        return _from_timm(text)
    folder = _ranker_folder(text)
    if folder is None:
        return _from_file(text)
    found = _from_ranker(load_ranker(folder), text)
    return dataclasses.replace(found, sha256=weights_sha256(folder / WEIGHTS))


def _ranker_folder(text: str) -> Path | None:
    """Returns the folder of the ranker at `text`, or None if it is none."""
    if text.startswith(HUB_PREFIX):
        try:
            return locate_ranker(text)
        except CheckpointError:
            return None  # perhaps a masked autoencoder, whose reader says what is wrong if not
    path = shipped_folder(text) or Path(text).expanduser()
    folder = path.parent if path.name == WEIGHTS else path
    return folder if (folder / WEIGHTS).is_file() else None


def _from_mae(mae: MaskedAutoencoder) -> FoundWeights:
    known = mae.source if isinstance(mae, LoadedMAE) else None
    return FoundWeights(
        source=str(known.path) if known else "a masked autoencoder",
        kind="mae",
        state=dict(mae.state_dict()),
        heads=mae.config.heads,
        norm_eps=mae.config.norm_eps,
        sha256=known.sha256 if known else "",
    )


def _from_ranker(ranker: Ranker, source: str) -> FoundWeights:
    attention = TRANSFORMERS.get(ranker.config["name"])
    return FoundWeights(
        source=source,
        kind="ranker",
        state=dict(ranker.state_dict()),
        heads=attention.heads if attention else None,
    )


def _from_timm(source: str) -> FoundWeights:
    name = source.removeprefix(TIMM)
    if not timm.is_model(name):
        close = timm.list_models(f"{name.split('.')[0][:8]}*")[:3]
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_pretrained()"
        raise RequestError(f"unknown timm model {name!r}; {hint}")
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm's, the hub's and the network's own, by version
        raise CheckpointError(
            f"cannot get the weights of {source!r} ({first_line(error)}); download them elsewhere "
            "and pass the path of their model.safetensors"
        ) from error
    config: Any = model.pretrained_cfg
    blocks = getattr(model, "blocks", None)
    attention = getattr(blocks[0], "attn", None) if blocks is not None and len(blocks) else None
    return FoundWeights(
        source=source,
        kind="timm",
        state=dict(model.state_dict()),
        mean=tuple(config.get("mean", IMAGENET_MEAN)),
        std=tuple(config.get("std", IMAGENET_STD)),
        heads=getattr(attention, "num_heads", None),
    )


def _from_file(source: str) -> FoundWeights:
    path = find_weights(locate(source))
    file = read_file(path)
    sha256 = weights_sha256(path)
    is_transformers = any(re.match(r"(vit|decoder|embeddings)\.", key) for key in file.state)
    if file.metadata.get("format") == OUR_FORMAT or is_transformers:
        weights = interpret(file)
        return FoundWeights(
            source=source,
            kind="mae",
            state=dict(weights.state),
            heads=weights.config.heads,
            norm_eps=weights.config.norm_eps,
            sha256=sha256,
        )
    return _from_state(source, file.state, sha256=sha256)


def _from_state(source: str, state: Mapping[str, Tensor], *, sha256: str = "") -> FoundWeights:
    kind = _kind(state)
    note = "it does not say how its pixels were scaled: ImageNet's mean and deviation assumed"
    notes = (note,) if kind == "timm" else ()
    return FoundWeights(source=source, kind=kind, state=dict(state), notes=notes, sha256=sha256)


def _kind(state: Iterable[str]) -> Kind:
    state = list(state)
    if any(key.startswith("backbone.") for key in state):
        return "ranker"
    is_mae = any(key == "mask_token" or key.startswith("decoder_") for key in state)
    return "mae" if is_mae else "timm"
