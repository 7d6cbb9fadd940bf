"""The loop that both training stages run: optimizer, schedule, checkpoints, curves.

The order of samples is a pure function of (seed, epoch) and every epoch starts from the state of
the one before, so a run that was stopped goes on from its last checkpoint as if nothing had
happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from stages.options import check_ranges, option
from stages.protocols import Progress, TrainingFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Options that both training stages have; the defaults are MAE's, which the paper follows."""

    epochs: int = option(400, low=1, help="passes over the data")
    batch_size: int = option(256, low=1, help="views or records a step")
    base_lr: float = option(
        1.5e-4, low=0.0, help="learning rate for a batch of 256; scaled to the batch"
    )
    warmup_epochs: float = option(
        40.0, low=0.0, help="epochs of linear warm-up, at most a quarter of all"
    )
    weight_decay: float = option(0.05, low=0.0, help="AdamW's; none on biases and norms")
    seed: int = option(0, help="of weights, order and everything else that is drawn")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.base_lr * self.batch_size / 256


def fit(
    model: nn.Module,
    config: TrainingConfig,
    *,
    steps_per_epoch: int,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], Tensor],
    validate: Callable[[], Mapping[str, float]] | None,
    folder: TrainingFolder,
    progress: Progress,
    name: str,
) -> list[dict[str, float]]:
    """Trains `model` in place; returns one row an epoch: loss, learning rate, validation.

    Method: AdamW with betas (0.9, 0.95), no decay on biases, norms and other 1-D parameters; linear
    warm-up, then a cosine to 0, stepped every update; gradients clipped to norm 1.
    """
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.95)
    )
    total = config.epochs * steps_per_epoch
    warmup_epochs = min(config.warmup_epochs, config.epochs / 4)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=total,
        warmup_t=int(warmup_epochs * steps_per_epoch),
        warmup_prefix=False,
        t_in_epochs=False,
    )
    history: list[dict[str, float]] = []
    state = folder.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = [dict(row) for row in state["history"]]
    with progress.task(name, config.epochs, "epochs") as bar:
        bar.advance(len(history))
        for epoch in range(len(history), config.epochs):
            mean_loss = _one_epoch(
                model, optimizer, schedule, epoch * steps_per_epoch, batches(epoch), loss
            )
            row = {"epoch": float(epoch + 1), "loss": mean_loss}
            row["lr"] = float(optimizer.param_groups[0]["lr"])
            if validate is not None:
                row |= validate()
            history.append(row)
            bar.advance(1, **{key: value for key, value in row.items() if key != "epoch"})
            folder.checkpoint(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                },
                last=epoch + 1 == config.epochs,
            )
    return history


def _one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: CosineLRScheduler,
    step: int,
    batches: Iterator[Any],
    loss: Callable[[Any], Tensor],
) -> float:
    model.train()
    losses: list[Tensor] = []
    for batch in batches:
        schedule.step_update(step)
        value = loss(batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        losses.append(value.detach())
        step += 1
    return float(torch.stack(losses).mean())
