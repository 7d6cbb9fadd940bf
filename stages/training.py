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

from stages.protocols import Progress, TrainingFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How long, how fast. Source of the defaults: the MAE recipe, which the paper follows."""

    epochs: int
    warmup_epochs: float
    base_lr: float
    """For a batch of 256; the rate in use is base_lr * batch / 256."""
    weight_decay: float
    batch_size: int

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.base_lr * self.batch_size / 256


def fit(
    model: nn.Module,
    recipe: Recipe,
    *,
    steps_per_epoch: int,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], Tensor],
    validate: Callable[[int], Mapping[str, float]] | None,
    folder: TrainingFolder,
    progress: Progress,
    name: str,
) -> list[dict[str, float]]:
    """Trains `model` in place; returns one row an epoch: loss, learning rate, validation.

    Method: AdamW with betas (0.9, 0.95), no decay on biases, norms and other 1-D parameters; linear
    warm-up, then a cosine to 0, stepped every update; gradients clipped to norm 1.
    """
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)
    )
    total = recipe.epochs * steps_per_epoch
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=total,
        warmup_t=min(int(recipe.warmup_epochs * steps_per_epoch), total - 1),
        warmup_prefix=False,
        t_in_epochs=False,
    )
    history: list[dict[str, float]] = []
    state = folder.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = [dict(row) for row in state["history"]]
    with progress.task(name, recipe.epochs, "epochs") as bar:
        bar.advance(len(history))
        for epoch in range(len(history), recipe.epochs):
            mean_loss = _one_epoch(
                model, optimizer, schedule, epoch * steps_per_epoch, batches(epoch), loss
            )
            row = {"epoch": float(epoch + 1), "loss": mean_loss}
            row["lr"] = float(optimizer.param_groups[0]["lr"])
            if validate is not None:
                row |= validate(epoch)
            history.append(row)
            bar.advance(1, **{key: value for key, value in row.items() if key != "epoch"})
            folder.checkpoint(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                },
                last=epoch + 1 == recipe.epochs,
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
