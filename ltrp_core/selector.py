"""Selection in memory: images in, kept patches out, and a vision transformer that sees only those.

`LTRPSelector` is what `select` runs on every batch; `SelectedPatches` puts it before a timm model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import kept_features, layer_depth, token_grid
from ltrp_core.linear import use_fast_linears
from ltrp_core.patches import model_images, patchify
from ltrp_core.rankers import Ranker
from ltrp_core.rankers.ranking import rank_images
from ltrp_core.selection import num_kept, select_patches
from ltrp_core.selectors.base import Selector


class LTRPSelector(nn.Module):
    """A frozen ranker and the selection of its best patches (Sec. 3.4), always in evaluation mode.

    What is kept of an image does not depend on the images beside it.

    Attributes:
        ranker: in evaluation mode, without gradients; the very object that was given.
        homogeneous: the share of k that stands for homogeneous regions (Tab. 1e).
    """

    def __init__(self, ranker: Ranker, homogeneous: float = 0.2) -> None:
        """Freezes `ranker` (`load_ranker`).

        Raises:
            RequestError: `homogeneous` is no share from 0 to 1.
        """
        super().__init__()
        if not 0.0 <= homogeneous <= 1.0:
            raise RequestError(f"homogeneous must be a share from 0 to 1; got {homogeneous}")
        self.ranker = ranker.requires_grad_(False)
        use_fast_linears(ranker)
        self.homogeneous = homogeneous
        self.eval()

    def train(self, mode: bool = True) -> LTRPSelector:
        """Does nothing: a model around it that is being trained does not train it."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, keep: int | float) -> Tensor:
        """Returns the kept patches, int64 (B, k): best first, then the homogeneous ones.

        Args:
            images: of a floating type, (B, 3, g*p, g*p), normalized; B may be 0.
            keep: k if an integer; a share of the L patches if a float (1 is one patch, 1.0 all).

        Raises:
            RequestError: another shape, or k is not from 1 to L.

        >>> from ltrp_core.rankers import create_ranker
        >>> selector = LTRPSelector(create_ranker("vit_tiny", grid=2, patch_size=4))
        >>> selector(torch.zeros(1, 3, 8, 8), 0.5).shape
        torch.Size([1, 2])
        """
        ranker = self.ranker
        length = ranker.grid**2
        images = model_images(images, ranker.grid, ranker.patch_size, ranker.dtype)
        count = num_kept(keep, length) if isinstance(keep, float) else keep
        scores = rank_images(self.ranker, images)
        patches = patchify(images, self.ranker.patch_size)
        return select_patches(scores, count, patches=patches, homogeneous=self.homogeneous)


class SelectedPatches(nn.Module):
    """A timm vision transformer that is given only the kept patches, each with its true position.

    With all patches kept it returns what the transformer alone does. The transformer trains as
    usual, the selector does not. It can be used as a model of timm's: `forward_features`,
    `forward_head`, `reset_classifier`, `pretrained_cfg` and what timm's optimizers ask for are
    there. Its layer decay counts as MAE's fine-tuning does: `ltrp_core.kept_tokens.layer_depth`.
    """

    def __init__(
        self, vit: VisionTransformer, selector: LTRPSelector | Selector, keep: int | float
    ) -> None:
        """Keeps `vit` and `selector` as they are.

        Args:
            vit: with learned or fixed absolute positions, of the selector's grid and patch size.
            selector: which patches: an `LTRPSelector`, or any of `ltrp_core.selectors`, whose
                network does not become a part of this module.
            keep: as `LTRPSelector` takes it.

        Raises:
            RequestError: such a transformer, or one of another grid, is not supported.
        """
        super().__init__()
        _check_fits(vit, selector)
        self.vit, self.selector, self.keep = vit, selector, keep

    def forward(self, images: Tensor) -> Tensor:
        """Returns the transformer's output, (B, classes), of images (B, 3, g*p, g*p).

        The images are normalized as the ranker's: by ImageNet's mean and standard deviation. A
        selector that draws does so by the content of an image.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the tokens (B, prefix + k, D) of images (B, 3, g*p, g*p) after the last norm.

        The kept patches stand in the grid's order.
        """
        return kept_features(self.vit, images, self._kept(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the output (B, classes) of features, or what the last layer is given of them."""
        return self.vit.forward_head(features, pre_logits=pre_logits)

    @property
    def num_classes(self) -> int:
        """Of the transformer; 0 where it has no head."""
        return int(self.vit.num_classes)

    @property
    def num_features(self) -> int:
        """D, of the features."""
        return int(self.vit.num_features)

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.vit.head

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm asks of a model's input: that of this one, with the classes of its head."""
        theirs = dict(getattr(self.vit, "pretrained_cfg", None) or {})
        grid, patch = token_grid(self.vit)
        size = (3, grid[0] * patch[0], grid[1] * patch[1])
        own = {"input_size": size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        return theirs | own | {"num_classes": self.num_classes, "classifier": "vit.head"}

    def get_classifier(self) -> nn.Module:
        """Returns the last layer."""
        return self.vit.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the transformer a fresh last layer, and another pooling if it is said."""
        self.vit.reset_classifier(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Returns at which depth a parameter is, by its name: what timm's layer decay asks for."""
        del coarse
        blocks = len(self.vit.blocks)

        def depth(name: str) -> int:
            # The selector's own are frozen: their depth says nothing.
            owner, _, rest = name.partition(".")
            return layer_depth(rest, blocks) if owner == "vit" else 0

        return depth

    def no_weight_decay(self) -> set[str]:
        """Returns the parameters that timm's optimizers do not decay: positions and tokens."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes blocks again in the backward pass, which saves their memory, or does not."""
        self.vit.set_grad_checkpointing(enable)

    def _kept(self, images: Tensor) -> Tensor:
        if isinstance(self.selector, LTRPSelector):
            kept: Tensor = self.selector(images, self.keep)
            return kept
        length = self.selector.grid**2
        count = num_kept(self.keep, length) if isinstance(self.keep, float) else self.keep
        with torch.no_grad():
            return self.selector.select(images, _ContentKeys(images), [count])[0]


class _ContentKeys(Sequence[str]):
    """A key for each image that depends on nothing but its values; made when it is asked for.

    Most selectors look at none, and a hash brings the image to the host.
    """

    def __init__(self, images: Tensor) -> None:
        self._images = images.detach()

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        content = self._images[place].float().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()


def _check_fits(vit: nn.Module, selector: LTRPSelector | Selector) -> None:
    theirs = token_grid(vit)
    own = selector.ranker if isinstance(selector, LTRPSelector) else selector
    if not theirs.is_of(own.grid, own.patch_size):
        raise RequestError(
            f"the transformer has {theirs}, the selector {own.grid} x {own.grid} of "
            f"{own.patch_size} x {own.patch_size} px; take both of one grid: "
            "load_ranker(..., grid=), create_selector(..., grid=)"
        )
