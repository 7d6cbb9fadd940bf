"""The loop that all training stages run: optimizer, schedule, precision, checkpoints, curves.

What is drawn in a step is a function of (seed, step, rank), the order of samples one of (seed,
epoch), so a run that was killed goes on from its last checkpoint, in the middle of an epoch too, as
if nothing had happened: bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.linear import frozen_weights, use_fast_linears
from ltrp_core.precision import float32_kept
from ltrp_core.weight_checks import listed, not_finite
from stages.protocols import Bar, Progress, TrainingFolder
from stages.training.config import (
    CURVE,
    TrainingConfig,
    precision,
    schedule,
    seed_step,
    spell_out_attention,
)
from stages.training.ddp import Processes

_STEPS_BETWEEN_LOOKS = 10
"""Several ranks decide together whether a checkpoint is due; not in every step."""
_STEPS_BETWEEN_LOGS = 50
_SMALLEST_SCALE = 2.0**-24
"""Of fp16 gradients: what is still too large then was never a number."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one rank computes of a step."""

    parts: Sequence[Any]
    """One or more batches, computed one after another"""
    count: int
    """Items of the step over all parts and ranks"""


@dataclass(slots=True)
class Task:
    """What is trained."""

    name: str
    model: nn.Module
    """On its device; `loss` is given it, or what wraps it"""
    steps_per_epoch: int
    batches: Callable[[int, int], Iterator[StepBatch]]
    """(epoch, step) -> the steps of the epoch from that one on"""
    loss: Callable[[nn.Module, Any], Tensor]
    """The sum over the items of a part"""
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    """Called on every rank after each epoch, with the model that would be kept"""
    keys: Callable[[int, int], Sequence[str]] = lambda epoch, step: ()
    """(epoch, step) -> the keys of its images, over all ranks, for a message"""
    after_epoch: Callable[[nn.Module, int], None] | None = None
    """Called on the first rank after each epoch, with the same model and the number of the epoch"""
    judged_by: str = ""
    """Measure whose largest value makes an epoch the best one; empty: the last is"""
    patience: int = 0
    """Epochs without a better one until training ends; 0 = it does not"""


@dataclass(slots=True)
class Trained:
    """What came out: one row per epoch (loss, learning rate, measures), and two sets of weights."""

    history: list[dict[str, float]]
    last: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    best_epoch: int
    """From 1"""
    stopped_early: bool = False
    notes: list[str] = field(default_factory=list)


def fit(
    task: Task,
    config: TrainingConfig,
    *,
    folder: TrainingFolder,
    progress: Progress,
    ranks: Processes,
) -> Trained:
    """Trains `task.model` in place; weights, curve and checkpoints are those of an undisturbed run.

    Method: AdamW with the config's betas, no decay on biases, norms, other 1-D parameters and what
    the model's `no_weight_decay` names; linear warm-up, then half a cosine over the rest, set
    before every update (MAE's). Gradients are clipped to norm 1, which neither MAE nor the paper
    does.

    Raises:
        RequestError: the loss, a gradient or what a checkpoint would hold is not finite, or a
            training with --layer-decay was begun when that did something else.
    """
    run = _Run(task, config, ranks)
    run.restore(ranks.broadcast_object(folder.resume() if ranks.is_first else None))
    total = config.epochs * task.steps_per_epoch
    with progress.task(task.name, total, "steps") if ranks.is_first else _no_bar() as bar:
        bar.advance(run.steps_done)
        while len(run.history) < config.epochs and not run.is_over:
            run.epoch(folder, bar)
            run.validate()
            row = run.history[-1]
            bar.advance(0, **row)
            if ranks.is_first:
                folder.log(run.steps_done, row)
                if task.after_epoch is not None:
                    task.after_epoch(run.kept, len(run.history))
            over = len(run.history) == config.epochs or run.is_over
            run.save(folder, over or folder.is_due())
    return Trained(
        history=run.history,
        last=_copied(run.kept),
        best=run.best,
        best_epoch=run.best_epoch,
        stopped_early=run.is_over and len(run.history) < config.epochs,
        notes=run.notes,
    )


class _Run:
    """The state of a training run, between two steps."""

    def __init__(self, task: Task, config: TrainingConfig, ranks: Processes) -> None:
        self.task, self.config, self.ranks = task, config, ranks
        self.device = next(task.model.parameters()).device
        use_fast_linears(task.model)
        extra: dict[str, Any] = {"betas": config.betas} if "adam" in config.opt else {}
        if config.opt in ("adam", "adamw"):
            # One kernel for all parameters: a third of the time on a CPU, no wait for the host of
            # an accelerator.
            extra["fused"] = True
        self.optimizer = create_optimizer_v2(
            task.model,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay if config.layer_decay < 1 else None,
            **extra,
        )
        self.curve = CURVE
        self.schedule = schedule(self.optimizer, config, task.steps_per_epoch, self.curve)
        self.dtype = precision(config.precision, self.device)
        if self.device.type == "cpu" and self.dtype is torch.bfloat16:
            spell_out_attention(task.model)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.dtype is torch.float16 and self.device.type == "cuda"
        )
        self.ema = ModelEmaV3(task.model, decay=config.ema) if config.ema else None
        compiled = task.model
        if config.compile == "yes" or (config.compile == "auto" and self.device.type == "cuda"):
            compiled = torch.compile(task.model)  # type: ignore[assignment]
        self.model = ranks.wrap(compiled, self.device)
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.best: Mapping[str, Tensor] = {}
        self.best_epoch = 0
        self.notes: list[str] = []
        self.bad_step = torch.full((), -1, device=self.device)
        """The first step whose loss or gradient was not finite; looked at where the host waits"""

    @property
    def kept(self) -> nn.Module:
        """The model whose weights come out."""
        return self.task.model if self.ema is None else self.ema.module

    @property
    def steps_done(self) -> int:
        return len(self.history) * self.task.steps_per_epoch + self.step

    @property
    def is_over(self) -> bool:
        """Whether the last epochs were no better than the best one."""
        patience = self.task.patience
        return 0 < patience <= len(self.history) - self.best_epoch

    def epoch(self, folder: TrainingFolder, bar: Bar) -> None:
        """Runs the steps of the epoch that are left."""
        self.model.train()
        epoch, steps = len(self.history), self.task.steps_per_epoch
        between_looks = 1 if self.ranks.size == 1 else _STEPS_BETWEEN_LOOKS
        for batch in self.task.batches(epoch, self.step):
            self._step(batch)
            self.step += 1
            bar.advance(1)
            if self.ranks.is_first and self.steps_done % _STEPS_BETWEEN_LOGS == 0:
                mean = float(self.loss) * self.ranks.size / self.step
                folder.log(self.steps_done, {"running_loss": mean})
            if self.step % _STEPS_BETWEEN_LOOKS == 0:
                self._check_finite(self.loss)
            if self.step < steps and self.step % between_looks == 0:
                self.save(folder, folder.is_due())
        total = self.ranks.all_reduce_sum(self.loss)
        self._check_finite(total)
        # Of the last layers, where --layer-decay scales that of others.
        lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.history.append({"epoch": epoch + 1.0, "loss": float(total) / steps, "lr": lr})
        self.step, self.loss = 0, torch.zeros_like(self.loss)

    def validate(self) -> None:
        """Adds the measures of the epoch that ended to its row, and keeps the best weights."""
        row = self.history[-1]
        if self.task.validate is not None:
            # No step is taken meanwhile. A copy of weights that outlived it would be an old one.
            with float32_kept(), frozen_weights():
                row |= self.task.validate(self.kept)
        judged = self.task.judged_by
        best = self.history[self.best_epoch - 1] if self.best_epoch else None
        if not judged or best is None or row[judged] > best[judged]:
            self.best_epoch = len(self.history)
            self.best = _copied(self.kept)

    def save(self, folder: TrainingFolder, is_due: bool) -> None:
        """Writes a checkpoint if the first rank finds that one is due."""
        if not self.ranks.agree(is_due, self.device):
            return
        losses = torch.zeros(self.ranks.size, dtype=self.loss.dtype, device=self.device)
        losses[self.ranks.rank] = self.loss
        losses = self.ranks.all_reduce_sum(losses)
        self._check_finite(losses)
        if self.ranks.is_first:
            state = {**self.state(), "losses": losses}
            if broken := not_finite(state):
                raise RequestError(
                    f"{listed(broken)} are not finite after {self._place(self.steps_done - 1)}; "
                    f"{_DIVERGED}"
                )
            folder.checkpoint(state)

    def state(self) -> dict[str, Any]:
        """Returns what a new process goes on from, beside the ranks' losses."""
        return {
            "curve": self.curve,
            "model": self.task.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "step": self.step,
            "best": dict(self.best),
            "best_epoch": self.best_epoch,
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from what `state` returned."""
        if state is None:
            return
        self._take_curve(state.get("curve", 1))
        self.task.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [dict(row) for row in state["history"]]
        self.step, self.best_epoch = state["step"], state["best_epoch"]
        self.best = state["best"]
        losses = state["losses"].to(self.device)
        if len(losses) == self.ranks.size:
            self.loss = losses[self.ranks.rank]
        elif self.ranks.is_first:
            self.loss = losses.sum()

    def _take_curve(self, number: int) -> None:
        """Goes on with the learning rates that a checkpoint was begun with."""
        if number == self.curve:
            return
        if self.config.layer_decay < 1:
            raise RequestError(
                "this training was begun by a version in which --layer-decay changed nothing for "
                "most rankers; go on with that version, or pass another --out"
            )
        self.curve = number
        self.schedule = schedule(self.optimizer, self.config, self.task.steps_per_epoch, number)
        self.notes.append(
            "this training was begun by a version whose learning rate dropped at the end of "
            "warm-up, and goes on with that curve; another --out has the paper's"
        )

    def _step(self, batch: StepBatch) -> None:
        seed_step(self.config.seed, self.steps_done, self.ranks.rank)
        self.schedule.step_update(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        with float32_kept():
            for number, part in enumerate(batch.parts, 1):
                wait = number < len(batch.parts) and self.ranks.size > 1
                with self.model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
                    with torch.autocast(
                        self.device.type, self.dtype, enabled=self.dtype is not torch.float32
                    ):
                        value = self.task.loss(self.model, part)
                    # The ranks' gradients are averaged: each stands for its share of the step.
                    share = self.ranks.size / batch.count
                    self.scaler.scale(value * share).backward()
                    self.loss += value.detach().double() / batch.count
        self.scaler.unscale_(self.optimizer)
        self._look_at_gradient()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.task.model, step=self.steps_done)

    def _look_at_gradient(self) -> None:
        """Clips the gradient, and notes the first step at which it or the loss is not finite."""
        parameters = list(self.task.model.parameters())
        norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        if self.config.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        is_bad = ~self.loss.isfinite()
        if not self.scaler.is_enabled():  # a scaler skips such a step by itself
            is_bad = is_bad | ~norm.isfinite()
        first = is_bad & (self.bad_step < 0)
        self.bad_step = torch.where(first, self.steps_done, self.bad_step)
        if self.device.type == "cpu":
            self._check_finite(self.loss)

    def _check_finite(self, losses: Tensor) -> None:
        """Checks what the steps left, before anything is kept of it.

        Raises:
            RequestError: a loss or a gradient was not finite.
        """
        bad = int(self.bad_step)
        if bad >= 0 or not bool(losses.isfinite().all()):
            place = self._place(bad if bad >= 0 else self.steps_done - 1)
            raise RequestError(f"the loss or its gradient is not finite in {place}; {_DIVERGED}")
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE:
            place = self._place(self.steps_done - 1)
            raise RequestError(f"fp16 holds no gradient any more in {place}; {_DIVERGED}")

    def _place(self, step: int) -> str:
        epoch, number = divmod(max(step, 0), self.task.steps_per_epoch)
        keys = listed(self.task.keys(epoch, number))
        return f"step {number + 1} of epoch {epoch + 1}" + (f" (images {keys})" if keys else "")


_DIVERGED = (
    "lower --base-lr, pass --precision float32 or look at these images; no checkpoint was written "
    "since, the last one is whole"
)


@contextlib.contextmanager
def _no_bar() -> Iterator[Bar]:
    class Nothing:
        def advance(self, amount: int = 1, **facts: float | str) -> None: ...

    yield Nothing()


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
