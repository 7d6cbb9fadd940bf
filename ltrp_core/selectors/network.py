"""A frozen network that a selector looks through, and the weights it is opened with.

`--weights` is a file, a folder, `hf-hub:ID`, `timm:NAME` (timm's own, from the hub) or `random`;
files of other authors are renamed to the words of our module and matched strictly.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ltrp_core.classifiers.normalization import NORMALIZATIONS, Normalization
from ltrp_core.classifiers.opening import declared_normalization, open_model, timm_entry
from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import CheckpointError, RequestError, first_line
from ltrp_core.kept_tokens import TokenGrid, square_token_grid
from ltrp_core.linear import frozen_weights, use_fast_linears
from ltrp_core.mae.files import find_weights, locate, read_file
from ltrp_core.precision import float32_kept
from ltrp_core.selection import check_keep
from ltrp_core.selectors.base import ScoreSelector, Selector, SelectorOptions
from ltrp_core.selectors.vit_blocks import check_class_token
from ltrp_core.weight_checks import check_finite, check_same
from ltrp_core.weight_sources import TIMM, UNTRAINED

IMAGENET = NORMALIZATIONS["imagenet"]
State = dict[str, Tensor]


class Network:
    """A module in evaluation mode, in float32, with the normalization of its weights.

    It sees one image after the other: how many stand together decides how products are summed up.
    """

    def __init__(
        self, module: nn.Module, normalization: Normalization = IMAGENET, device: str = "cpu"
    ) -> None:
        """Freezes `module` and moves it to the device."""
        self.module = module.float().eval().requires_grad_(False).to(device)
        self.normalization = normalization
        use_fast_linears(self.module)

    def of_each(
        self,
        images: Tensor,
        compute: Callable[[Tensor, int], Tensor],
        width: int,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Returns what `compute` makes of every image, (B, width) of a type.

        Args:
            images: (B, 3, S, S), normalized by ImageNet's mean and standard deviation.
            compute: from one image (1, 3, S, S), normalized as the network wants it, and its row
                to (1, width).
            width: of a row.
            dtype: of the result.
        """
        found = [torch.empty((0, width), dtype=dtype, device=images.device)]
        with torch.no_grad(), frozen_weights(), float32_kept():
            for row, image in enumerate(images.float().split(1) if len(images) else ()):
                found.append(compute(self._normalized(image), row).to(dtype))
        return torch.cat(found)

    def _normalized(self, images: Tensor) -> Tensor:
        if self.normalization == IMAGENET:
            return images
        std, mean = (images.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN))
        return self.normalization((images * std + mean) * 255.0)


class Opened(NamedTuple):
    """A network and the patches that it sees."""

    module: nn.Module
    normalization: Normalization
    image_size: int
    patch_size: int


class NetworkScores(ScoreSelector):
    """Scores of a network that is asked image by image."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network."""
        super().__init__(opened.image_size, opened.patch_size, options.homogeneous)
        self.network = Network(opened.module, opened.normalization, options.device)

    @abstractmethod
    def score(self, image: Tensor) -> Tensor:
        """Returns the scores (1, L) of one image (1, 3, S, S), normalized for the network."""

    def scores(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        """Returns the scores, each as if its image had been alone."""
        del keys
        return self.network.of_each(images, lambda image, _: self.score(image), self.grid**2)


class NetworkChoices(Selector):
    """Choices of a network that is asked image by image, and that depend on k."""

    def __init__(self, opened: Opened, options: SelectorOptions) -> None:
        """Freezes the network."""
        super().__init__(opened.image_size, opened.patch_size)
        self.network = Network(opened.module, opened.normalization, options.device)
        self.seed = options.seed

    def look(self, image: Tensor) -> Tensor:
        """Returns what is known of one image (1, 3, S, S), whatever k: what `choose` is given.

        The image itself, normalized for the network, unless a method says otherwise.
        """
        return image

    @abstractmethod
    def choose(self, seen: Tensor, key: str, keep: int) -> Tensor:
        """Returns the kept patches (k,) of an image by what `look` has made of it."""

    def select(self, images: Tensor, keys: Sequence[str], keeps: Sequence[int]) -> list[Tensor]:
        """Returns the choices, each as if its image had been alone."""
        for keep in keeps:
            check_keep(keep, self.grid**2)

        def of_one(image: Tensor, row: int) -> Tensor:
            seen, key = self.look(image), keys[row]
            return torch.cat([self.choose(seen, key, keep) for keep in keeps])[None]

        chosen = self.network.of_each(images, of_one, sum(keeps), torch.int64)
        return list(chosen.split(list(keeps), dim=1))


class Layout(NamedTuple):
    """How files of other authors call the parameters of a module."""

    wrapped_as: Sequence[str] = ("model", "state_dict")
    """Keys that they may lie under"""
    prefixes: Sequence[str] = ("module.",)
    """The first one that a name begins with says which names are taken, without it"""
    heads: Sequence[str] = ()
    """Beginnings of names that are of a training's head, and not needed"""
    renamed: Callable[[State], State] = lambda state: state
    """What is left to do"""


DEIT_SMALL = "timm:deit_small_patch16_224"
DEIT_LAYOUT = Layout(heads=("head.",))
"""DeiT's names are timm's; a method that asks for no class needs no head."""


def open_vit(
    options: SelectorOptions,
    default: str,
    layout: Layout | None = None,
    *,
    method: str = "",
    **arguments: Any,
) -> Opened:
    """Returns a plain vision transformer of timm's.

    Args:
        options: weights, model, sizes.
        default: `timm:NAME`, where neither model nor weights name one.
        layout: of a file of weights; None: timm's names.
        method: that needs a class token, and no other beside the patches; empty: does not.
        arguments: of timm's factory, for a file or untrained weights.

    Raises:
        CheckpointError: the weights cannot be used.
        RequestError: another kind of model, or sizes that are not its own.
    """
    found = open_timm(options, default, layout, _check_is_vit, **arguments)
    opened = opened_vit(*found, options)
    if method:
        check_class_token(opened.module, method)
    return opened


def opened_vit(module: nn.Module, normalization: Normalization, options: SelectorOptions) -> Opened:
    """Returns a vision transformer with its sizes.

    Raises:
        RequestError: another kind of model, or sizes that are not its own.
    """
    sizes = _check_is_vit(module)
    side, patch_size = sizes.grid[0] * sizes.patch[0], sizes.patch[0]
    check_sizes(options, side, patch_size)
    return Opened(module, normalization, side, patch_size)


def open_extended(
    options: SelectorOptions,
    method: str,
    layout: Layout,
    extend: Callable[[nn.Module, int], nn.Module],
) -> Opened:
    """Returns a vision transformer of timm's to which a method adds modules, with all weights.

    Args:
        options: weights, model, sizes, seed.
        method: what messages call it.
        layout: of its files.
        extend: from the transformer and its width D to the transformer with the modules.

    Raises:
        CheckpointError: the weights cannot be used, or lack the modules.
        RequestError: another kind of model, or sizes that are not its own.
    """
    plain = dataclasses.replace(options, weights=UNTRAINED)
    opened = open_vit(plain, DEIT_SMALL, method=method, num_classes=0)
    vit: Any = opened.module
    with untrained(options.seed):
        module = extend(vit, vit.embed_dim)
    _load_unless_untrained(module, method, options, layout)
    return opened._replace(module=module)


def open_own(
    options: SelectorOptions,
    method: str,
    layout: Layout,
    make: Callable[[], nn.Module],
    image_size: int,
    patch_size: int,
) -> Opened:
    """Returns a network that a method brings itself, with all weights.

    Args:
        options: weights, sizes, seed.
        method: what messages call it.
        layout: of its files.
        make: makes it with weights from torch's default generator.
        image_size: side of the views that it takes, in px.
        patch_size: p in px.

    Raises:
        CheckpointError: the weights cannot be used.
        RequestError: sizes that are not its own.
    """
    check_sizes(options, image_size, patch_size)
    with untrained(options.seed):
        module = make()
    _load_unless_untrained(module, method, options, layout)
    return Opened(module, IMAGENET, image_size, patch_size)


def _load_unless_untrained(
    module: nn.Module, method: str, options: SelectorOptions, layout: Layout
) -> None:
    if options.weights != UNTRAINED:
        load_strictly(module, method, weights_path(options.weights), layout)


def _check_is_vit(module: nn.Module) -> TokenGrid:
    try:
        return square_token_grid(module)
    except RequestError as error:
        raise RequestError(f"--model: {error}") from error


def open_timm(
    options: SelectorOptions,
    default: str,
    layout: Layout | None = None,
    check: Callable[[nn.Module], object] = lambda module: None,
    **arguments: Any,
) -> tuple[nn.Module, Normalization]:
    """Returns a model of timm's and the normalization of its pixels; see `open_vit`.

    Args:
        options: weights, model, seed.
        default: `timm:NAME`, where neither model nor weights name one.
        layout: of a file of weights.
        check: raises where the architecture is not what is needed, before weights are read.
        arguments: of timm's factory, for a file or untrained weights.
    """
    name = options.model or default
    if options.weights.startswith(TIMM):
        if options.model:
            raise RequestError("--weights timm:NAME names its model itself; leave --model out")
        return open_model(options.weights)[:2]
    normalization = declared_normalization(timm_entry(name))
    if options.weights == UNTRAINED:
        with untrained(options.seed):
            return timm.create_model(name.removeprefix(TIMM), **arguments), normalization
    path = weights_path(options.weights)
    if layout is None:
        return open_model(name, str(path))[:2]
    module: nn.Module = timm.create_model(name.removeprefix(TIMM), **arguments)
    check(module)
    load_strictly(module, name, path, layout)
    return module, normalization


def check_sizes(options: SelectorOptions, image_size: int, patch_size: int) -> None:
    """Checks that no other sizes are asked for than a network's own.

    Raises:
        RequestError: they are.
    """
    for name, own in (("image_size", image_size), ("patch_size", patch_size)):
        if getattr(options, name) not in (0, own):
            raise RequestError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, and the network takes "
                f"{own}; leave the option out, or take a --model of that size"
            )


def load_strictly(module: nn.Module, name: str, path: Path, layout: Layout) -> None:
    """Puts the parameters of a file into a module: all of them, and no others.

    Raises:
        CheckpointError: the file cannot be read, or is of another model; names the difference.
    """
    advice = "pass a file that holds the parameters"
    state = renamed(read_file(path, advice, layout.wrapped_as).state, layout)
    put_into(module, name, path, state)


def put_into(module: nn.Module, name: str, path: Path, state: Mapping[str, Tensor]) -> None:
    """Puts a state into a module; see `load_strictly`."""
    check_same(name, path, module.state_dict(), state)
    check_finite(path, state)
    module.load_state_dict(state)


def renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    """Returns the parameters of a file by the names of our module."""
    prefix = next((p for p in layout.prefixes if any(k.startswith(p) for k in state)), "")
    taken = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    kept = {k: v for k, v in taken.items() if not k.startswith(tuple(layout.heads))}
    return layout.renamed(kept)


@contextmanager
def untrained(seed: int) -> Iterator[None]:
    """Within it, modules that are made have the weights of a seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"untrained:{seed}".encode()).digest()[:7]))
        yield


def weights_path(source: str) -> Path:
    """Returns the file that the weights of a selector come from, downloaded if they are a hub's.

    Its sha256 says which weights they are.

    Raises:
        CheckpointError: there is none.
    """
    if source == UNTRAINED:
        raise RequestError(
            "--weights random is of untrained networks, for trials in Python; pass trained ones"
        )
    if not source.startswith(TIMM):
        return find_weights(locate(source))
    repository = timm_entry(source).get("hf_hub_id")
    if not isinstance(repository, str):
        raise CheckpointError(
            f"timm has no weights of {source} on the hub; pass a file of them with --model {source}"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # requests', httpx's and the hub's own, by version
        raise CheckpointError(
            f"the weights of {source} cannot be had from the hub ({first_line(error)}); download "
            f"them where there is a network and pass the file with --weights and --model {source}"
        ) from error
