"""IA-RED2: agents before three groups of blocks say which tokens go on (Pan et al., NeurIPS 2021).

An agent asks how far the class token's query fits a patch's key, sigmoid, mean over heads; a patch
at or below 0.5 is out from there on. Score: agents passed, plus the last agent's answer. The code
that the LTRP authors compared with takes the first agent's answer alone, which sees no context.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltrp_core.errors import CheckpointError
from ltrp_core.selectors.base import SelectorOptions, SelectorSpec
from ltrp_core.selectors.network import (
    DEIT_LAYOUT,
    DEIT_SMALL,
    NetworkScores,
    Opened,
    State,
    open_extended,
    weights_path,
)
from ltrp_core.selectors.vit_blocks import STAGES, after_mlp, attend, first_tokens

_PASSES = 0.5


class Agent(nn.Module):
    """How far each patch fits what the class token asks for; called as upstream's."""

    def __init__(self, width: int, heads: int) -> None:
        """Makes the layer; the last third of its output is not used, as upstream."""
        super().__init__()
        self.qk = nn.Linear(width, 3 * width)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns (B, N), 0 to 1, of tokens (B, 1 + N, D)."""
        batch, count, width = tokens.shape
        found = self.qk(F.layer_norm(tokens, (width,)))
        queries, keys, _ = found.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scale = (width // self.heads) ** -0.5
        fits = (queries[:, :, :1] @ keys[:, :, 1:].transpose(-2, -1)) * scale
        return fits.sigmoid().mean(dim=1)[:, 0]


class Group(nn.Module):
    """An agent, under the name that it has upstream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.agent = Agent(width, heads)


class IARed2Selector(NetworkScores):
    """Patches by how many agents let them pass."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network."""
        super().__init__(opened, options)
        self.faithful = options.faithful

    def score(self, image: Tensor) -> Tensor:
        """Returns agents passed + the answer of the last one that was asked."""
        vit: Any = self.network.module
        tokens = first_tokens(vit, image)
        if self.faithful:
            first: Tensor = vit.groups[0].agent(tokens)
            return first
        is_in = torch.ones(1, self.grid**2, dtype=torch.bool, device=image.device)
        score = torch.zeros(is_in.shape, device=image.device)
        for number, group in enumerate(vit.groups):
            answer = group.agent(tokens)
            score = torch.where(is_in, number + answer, score)
            is_in = is_in & (answer > _PASSES)
            # One passed is worth more than any answer.
            score = torch.where(is_in, score + 1, score)
            stays = F.pad(is_in, (1, 0), value=True)
            tokens = tokens * stays[..., None]
            bias = torch.zeros(stays.shape, device=image.device).masked_fill(~stays, -torch.inf)
            for block in _blocks_of(vit, number):
                tokens = after_mlp(block, attend(block, tokens, bias[:, None, None]).tokens)
                tokens = tokens * stays[..., None]
        return score


def _blocks_of(vit: Any, group: int) -> list[nn.Module]:
    depth = len(vit.blocks)
    bounds = [depth * number // STAGES for number in range(STAGES + 1)]
    return list(vit.blocks[bounds[group] : bounds[group + 1]])


def with_agents(vit: nn.Module, width: int) -> nn.Module:
    """Returns the transformer with three untrained agents, `groups` as upstream."""
    model: Any = vit
    heads = model.blocks[0].attn.num_heads
    model.groups = nn.ModuleList(Group(width, heads) for _ in range(STAGES))
    return vit


def without_copies(state: State) -> State:
    """Returns a state without upstream's second names of the blocks.

    Raises:
        CheckpointError: one of them has other values under its two names.
    """
    kept: State = {}
    sizes = _sizes(state)
    for name, value in state.items():
        found = re.fullmatch(r"groups\.(\d+)\.block_list\.(\d+)\.(.+)", name)
        if found is None:
            kept[name] = value
            continue
        number = sum(sizes[: int(found[1])]) + int(found[2])
        first = f"blocks.{number}.{found[3]}"
        if first in state and not torch.equal(state[first], value):
            raise CheckpointError(
                f"ia-red2: {name} and {first} are one block and have other values; the file is "
                "damaged, or its blocks are shared out in another way"
            )
        kept.setdefault(first, value)
    return kept


def _sizes(state: State) -> list[int]:
    """Returns how many blocks each group has."""
    found = [re.match(r"groups\.(\d+)\.block_list\.(\d+)\.", name) for name in state]
    pairs = {(int(match[1]), int(match[2])) for match in found if match}
    groups = {group for group, _ in pairs}
    return [sum(group == of for of, _ in pairs) for group in range(max(groups, default=-1) + 1)]


def make(options: SelectorOptions) -> IARed2Selector:
    """Returns IA-RED2; errors as of `open_extended`."""
    return IARed2Selector(open_extended(options, "ia-red2", _LAYOUT, with_agents), options)


_LAYOUT = DEIT_LAYOUT._replace(renamed=without_copies)

IA_RED2 = SelectorSpec(
    make=make,
    help="let pass by most of IA-RED2's agents",
    weights_file=weights_path,
    paper="Pan et al., NeurIPS 2021",
    uses_labels=True,
    takes="IA-RED2's checkpoint of DeiT-S",
    model=DEIT_SMALL,
    faithful="the first agent's answer alone",
    keeps_homogeneous=False,
)
