"""The processes that train together: each one's number, and the few things they must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Processes:
    """One process of `size`; torch.distributed is up where there are more than one."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns `model`, its gradients averaged over the ranks where there are several."""
        if self.size == 1:
            return model
        index = torch.cuda.current_device() if device.type == "cuda" else None
        devices = None if index is None else [device.index if device.index is not None else index]
        return DistributedDataParallel(model, device_ids=devices)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over the ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def agree(self, decision: bool, device: torch.device) -> bool:
        """Returns what the first rank decided."""
        if self.size == 1:
            return decision
        flag = torch.tensor(int(decision), device=device)
        dist.broadcast(flag, src=0)
        return bool(flag)

    def broadcast_object(self, value: Any) -> Any:
        """Returns the first rank's `value`, whatever it is, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
