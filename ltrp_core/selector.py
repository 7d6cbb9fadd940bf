"""Selection in memory: images in, kept patches out, and a vision transformer that sees only those.

`LTRPSelector` is what `select` runs on every batch; `SelectedPatches` puts it before a timm model.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.kept_tokens import kept_output, token_grid
from ltrp_core.linear import frozen_weights, use_fast_linears
from ltrp_core.patches import model_images, patchify
from ltrp_core.precision import float32_kept
from ltrp_core.rankers import Ranker
from ltrp_core.selection import num_kept, select_patches

_AT_ONCE = {"cpu": 1}
_AT_ONCE_ELSEWHERE = 32
"""Images that the ranker sees together. It is constant, for the number of rows decides how a matrix
product is summed up, and scores would depend on the batch. On a CPU one image keeps all cores busy;
an accelerator would idle."""


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


@torch.no_grad()
def rank_images(ranker: Ranker, images: Tensor) -> Tensor:
    """Returns the ranker scores, float32 (B, L), each as if its image had been alone.

    The ranker always sees the same number of images together, the last group filled up with its
    first image: one on a CPU, 32 elsewhere.

    Args:
        ranker: in evaluation mode, on the device of `images`.
        images: of a floating type, (B, 3, g*p, g*p), normalized; B may be 0.

    Raises:
        RequestError: another shape.
    """
    at_once = _AT_ONCE.get(images.device.type, _AT_ONCE_ELSEWHERE)
    images = model_images(images, ranker.grid, ranker.patch_size, ranker.dtype)
    scores = [torch.empty((0, ranker.grid**2), device=images.device)]
    with frozen_weights(), float32_kept():
        for group in images.split(at_once) if len(images) else ():
            missing = at_once - len(group)
            filled = torch.cat([group, group[:1].expand(missing, -1, -1, -1)]) if missing else group
            scores.append(ranker(filled)[: len(group)].float())
    return torch.cat(scores)


class SelectedPatches(nn.Module):
    """A timm vision transformer that is given only the kept patches, each with its true position.

    With all patches kept it returns what the transformer alone does. The transformer trains as
    usual, the selector does not.
    """

    def __init__(self, vit: VisionTransformer, selector: LTRPSelector, keep: int | float) -> None:
        """Keeps `vit` and `selector` as they are.

        Args:
            vit: with learned or fixed absolute positions, of the selector's grid and patch size.
            selector: which patches.
            keep: as `LTRPSelector` takes it.

        Raises:
            RequestError: such a transformer, or one of another grid, is not supported.
        """
        super().__init__()
        _check_fits(vit, selector)
        self.vit, self.selector, self.keep = vit, selector, keep

    def forward(self, images: Tensor) -> Tensor:
        """Returns the transformer's output, (B, classes), of images (B, 3, g*p, g*p).

        The images are normalized as the ranker's: by ImageNet's mean and standard deviation.
        """
        return kept_output(self.vit, images, self.selector(images, self.keep))


def _check_fits(vit: nn.Module, selector: LTRPSelector) -> None:
    theirs, ranker = token_grid(vit), selector.ranker
    if not theirs.is_of(ranker.grid, ranker.patch_size):
        grid, size = ranker.grid, ranker.patch_size
        raise RequestError(
            f"the transformer has {theirs}, the ranker {grid} x {grid} of {size} x {size} px; "
            "load the ranker for its grid: load_ranker(..., grid=)"
        )
