"""Options that every training has, and what they set up: schedule, precision, random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ltrp_core.errors import unknown_name
from stages.options import check_ranges, option

CURVE = 2
"""Which learning rates: 1, of checkpoints without the number, dropped where warm-up ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Options that all training stages have; the defaults are MAE's, which the paper follows."""

    epochs: int = option(400, low=1, help="passes over the images")
    batch_size: int = option(256, low=1, help="views or records per step, over all workers")
    base_lr: float = option(
        1.5e-4, low=0.0, help="learning rate for a batch of 256; scaled to the batch"
    )
    min_lr: float = option(0.0, low=0.0, help="learning rate at the end")
    warmup_epochs: float = option(
        40.0, low=0.0, help="epochs of linear warm-up, at most a quarter of all"
    )
    sched: Literal["cosine", "poly", "tanh"] = option("cosine", help="timm's name of the schedule")
    opt: str = option("adamw", help="timm's name of the optimizer")
    weight_decay: float = option(0.05, low=0.0, help="the optimizer's; none on biases and norms")
    layer_decay: float = option(
        1.0, low=0.01, high=1.0, help="learning rate of a layer relative to the next one"
    )
    clip_grad: float = option(1.0, low=0.0, help="largest norm of the gradient; 0 = any")
    accumulate: int = option(1, low=1, help="parts a step is computed in, to fit the memory")
    ema: float = option(
        0.0, low=0.0, high=0.99999, help="decay of averaged weights, which are then kept; 0 = off"
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = option(
        "auto", help="of the products; auto: bf16 on a GPU that has it, else float32"
    )
    compile: Literal["auto", "yes", "no"] = option(
        "auto", help="torch.compile; auto: on a GPU", changes_numbers=False
    )
    seed: int = option(0, help="of weights, order and everything else that is drawn")
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", changes_numbers=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        known = [str(name) for name in list_optimizers()]
        if self.opt not in known:
            raise unknown_name("--opt", self.opt, known)

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam and its relatives: MAE's pre-training, which the paper follows."""
        return 0.9, 0.95

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.base_lr * self.batch_size / 256


def schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int, curve: int
) -> Scheduler:
    """Returns the learning rates: linear warm-up, then the curve over the epochs that are left."""
    warmup = min(config.warmup_epochs, config.epochs / 4)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        # Parts of an epoch will do: they become updates.
        num_epochs=config.epochs - (warmup if curve == CURVE else 0),  # type: ignore[arg-type]
        warmup_epochs=warmup,  # type: ignore[arg-type]
        warmup_prefix=curve == CURVE,
        warmup_lr=0.0,
        min_lr=config.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    assert schedule is not None
    return schedule


def precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the type that a `--precision` computes in; `auto`: bf16 on GPUs that have it."""
    if name == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def spell_out_attention(model: nn.Module) -> None:
    """Makes timm's blocks compute attention as products and a softmax.

    On a CPU the backward pass of torch's fused attention takes 40 % of a bf16 step: it multiplies
    in float32, where plain products use the processor's bf16 instructions.
    """
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False  # type: ignore[assignment]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch for one step of one process: what is drawn depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{step}\0{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little", signed=True))
