"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): two images become one, and their classes.

Off in MAE's recipe for small models and in the authors' fine-tuning on kept patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mixes each image with one other of its part of the step, all by one share.

    What is drawn comes from torch's default generator on the CPU, which training seeds by step.
    """

    mixup: float
    """Alpha of the Beta distribution of the share; 0: off"""
    cutmix: float
    """Alpha of the Beta distribution of the area; 0: off"""
    num_classes: int

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mixed images and the share of each class in them, float32 (b, C).

        Args:
            images: (b, 3, S, S).
            label: int64 (b,).
        """
        takes_cutmix = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
        alpha = torch.tensor(self.cutmix if takes_cutmix else self.mixup)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        others = torch.randperm(len(images)).to(images.device)
        if takes_cutmix:
            images, share = _pasted(images, images[others], share)
        else:
            images = images * share + images[others] * (1 - share)
        target = F.one_hot(label, self.num_classes).float()
        return images, target * share + target[others] * (1 - share)


def _pasted(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Returns the images with a rectangle of others, and the share of the area that is left."""
    side = images.shape[-1]
    cut = round(side * (1 - share) ** 0.5)
    middle = torch.randint(side, (2,)).tolist()
    (top, bottom), (left, right) = (
        (max(at - cut // 2, 0), min(at - cut // 2 + cut, side)) for at in middle
    )
    pasted = images.clone()
    pasted[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / side**2
