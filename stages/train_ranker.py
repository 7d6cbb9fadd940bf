"""Stage 2: a ranking model learns the cached pseudo-scores; the MAE is not touched (Sec. 3.3)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ltrp_core.errors import RequestError
from ltrp_core.losses import loss_by_name
from ltrp_core.rankers import Ranker, create_ranker
from ltrp_core.ranking_metrics import kendall_tau_b, ndcg, spearman_rho, top1_agreement
from ltrp_core.seeding import random_bits, random_permutation
from ltrp_core.views import normalize
from stages.devices import resolve_device
from stages.options import identity, option
from stages.protocols import Progress, RankedView, RecordStream, Summary, TrainingFolder
from stages.training import TrainingConfig, fit

Batch = tuple[Tensor, Tensor, Tensor]
"""uint8 images (B, 3, S, S), visible int64 (B, n), scores float32 (B, n)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRankerConfig(TrainingConfig):
    """Options of `train-ranker`; the defaults are the paper's recipe, scaled to the batch."""

    ranker: str = option(
        "vit_small", help="vit_tiny, vit_small, vit_base, mobile_former_26m, any timm name"
    )
    head: Literal["cls", "token"] = option(
        "token", help="token (a linear layer on each patch) or cls (the authors' code)"
    )
    input: Literal["auto", "sparse", "dense"] = option(
        "auto", help="visible patches only, or all; auto: sparse where the model can (Tab. 1h)"
    )
    loss: Literal["listmle", "listnet", "ranknet", "regression"] = option(
        "listmle", help="ranking loss (Tab. 1f)"
    )
    weight_decay: float = option(0.06, low=0.0, help="AdamW's; none on biases and norms")
    holdout: float = option(0.1, low=0.0, high=0.9, help="share of images kept for validation")


def run(
    config: TrainRankerConfig,
    *,
    records: RecordStream,
    folder: TrainingFolder,
    progress: Progress,
) -> tuple[Ranker, list[dict[str, float]], Summary]:
    """Trains a ranker on cached records; returns it in eval mode, its curve and the summary.

    Raises:
        RequestError: unknown ranker, nothing to train on, or a folder of another run.
    """
    started = time.monotonic()
    train, held_out = split_keys(records.keys, config.holdout, config.seed)
    torch.manual_seed(config.seed)
    grid = int(records.run["image_size"]) // int(records.run["patch_size"])
    ranker = create_ranker(
        config.ranker,
        head=config.head,
        input=None if config.input == "auto" else config.input,
        grid=grid,
        patch_size=int(records.run["patch_size"]),
    )
    device = resolve_device(config.device)
    compute_loss = loss_by_name(config.loss)
    folder.open({**identity(config), "cache": dict(records.run)})
    ranker.to(device)

    def loss(batch: Batch) -> Tensor:
        images, visible, score = (tensor.to(device) for tensor in batch)
        return compute_loss(ranker(normalize(images), visible), score)

    history = fit(
        ranker,
        config,
        steps_per_epoch=math.ceil(len(train) * records.records_per_key / config.batch_size),
        batches=lambda epoch: _batches(records, epoch, train, config.seed, config.batch_size),
        loss=loss,
        validate=lambda: validate(ranker, records, held_out, config.batch_size, device),
        folder=folder,
        progress=progress,
        name="train-ranker",
    )
    summary = Summary(stage="train-ranker", done=1, n_ok=len(records.keys))
    summary.seconds = time.monotonic() - started
    return ranker.cpu().eval(), history, summary


def split_keys(
    keys: Sequence[str], holdout: float, seed: int
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the keys to train on and the held-out ones: by hash, the same whatever else is there.

    Raises:
        RequestError: fewer than two images, or none left to train on.
    """
    ordered = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    count = max(1, round(len(ordered) * holdout)) if holdout > 0 else 0
    if len(ordered) - count < 1:
        raise RequestError(
            f"{len(ordered)} scored images are too few to hold out {count}; score more images, "
            "or pass --holdout 0"
        )
    return frozenset(ordered[count:]), frozenset(ordered[:count])


@torch.no_grad()
def validate(
    ranker: Ranker,
    records: RecordStream,
    keys: frozenset[str],
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Returns how well the ranker orders held-out partitions, means over lists.

    Kendall tau-b, Spearman's rho, NDCG@5 and how often the best patch is the teacher's best.
    """
    if not keys:
        return {}
    ranker.eval()
    predicted, target = [], []
    for images, visible, score in _batches(records, 0, keys, 0, batch_size):
        predicted.append(ranker(normalize(images.to(device)), visible.to(device)).float().cpu())
        target.append(score)
    scores, targets = torch.cat(predicted), torch.cat(target)
    measures = {
        "tau": kendall_tau_b(scores, targets),
        "rho": spearman_rho(scores, targets),
        "ndcg5": ndcg(scores, targets, top=5),
        "top1": top1_agreement(scores, targets),
    }
    return {name: float(values.double().nanmean()) for name, values in measures.items()}


def _batches(
    records: RecordStream, epoch: int, keys: frozenset[str], seed: int, batch_size: int
) -> Iterator[Batch]:
    """Yields the epoch's records in an order that is a pure function of (seed, epoch)."""
    batch: list[RankedView] = []
    count = 0
    for number, window in enumerate(records.windows(epoch, seed, keys)):
        order = random_permutation(len(window), seed=seed, key=f"{epoch}:{number}", purpose="order")
        for place in order.tolist():
            batch.append(window[place])
            if len(batch) == batch_size:
                yield _collate(batch, seed, f"{epoch}:{count}")
                count += 1
                batch = []
    if batch:
        yield _collate(batch, seed, f"{epoch}:{count}")


def _collate(batch: Sequence[RankedView], seed: int, name: str) -> Batch:
    """Stacks records; lists are shuffled, so that equal scores are in random order (Sec. 3.3)."""
    images = torch.from_numpy(np.stack([record.pixels for record in batch]))
    visible = torch.from_numpy(np.stack([record.visible for record in batch]))
    score = torch.from_numpy(np.stack([record.score for record in batch]))
    bits = random_bits(visible.numel(), seed=seed, key=name, purpose="ties")
    order = torch.from_numpy(bits.reshape(visible.shape).argsort(axis=1, kind="stable"))
    return images, visible.gather(1, order), score.gather(1, order)
