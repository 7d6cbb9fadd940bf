"""Which patches of a view a classifier sees while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltrp_core.classifiers import Architecture
from ltrp_core.errors import RequestError
from ltrp_core.precision import float32_kept
from ltrp_core.selection import num_kept
from ltrp_core.selectors import Selector, SelectorOptions, create_selector, selector_spec
from stages.selectors import check_choices
from stages.training.classifier_config import TrainClassifierConfig
from stages.training.labeled_views import LabeledImages, LabeledViews
from stages.weights import check_same_file


@dataclass(frozen=True, slots=True)
class Chooser:
    """Which patches of a view are seen: the stored ones, a selector's, or all."""

    selector: Selector | None
    keep: int
    """k"""

    @classmethod
    def make(
        cls,
        config: TrainClassifierConfig,
        architecture: Architecture,
        data: LabeledImages,
        device: str,
        weights_sha256: str | None = None,
    ) -> Chooser:
        """Opens the selector, if there is one, and tries it on an image.

        Raises:
            CheckpointError: its weights cannot be used, or are others.
            RequestError: nothing says which patches are kept, or two do; or it is of another grid.
        """
        size, patch_size = architecture.image_size, architecture.patch_size
        length = (size // patch_size) ** 2
        keep = num_kept(config.keep_ratio, length)
        if data.stored is not None:
            check_stored(config)
            return cls(None, keep)
        if not config.selector:
            if keep < length:
                raise RequestError(
                    f"--keep-ratio {config.keep_ratio:g}, and nothing says which patches: pass "
                    "--selections or --selector"
                )
            return cls(None, length)
        spec = selector_spec(config.selector)
        if spec.weights_file is not None:
            file = spec.weights_file(config.weights)
            check_same_file("--weights", config.weights, file, weights_sha256)
        options = SelectorOptions(
            weights=config.weights,
            image_size=size,
            patch_size=patch_size,
            homogeneous=config.homogeneous,
            seed=config.seed,
            device=device,
        )
        selector = create_selector(config.selector, options)
        if (selector.image_size, selector.patch_size) != (size, patch_size):
            raise RequestError(
                f"selector {config.selector!r} takes {selector.image_size} px with patches of "
                f"{selector.patch_size} px, the classifier {size} px with {patch_size} px; take "
                "both of one grid (--image-size)"
            )
        found = cls(selector, keep)
        tried = found._select(torch.zeros(1, 3, size, size, device=device), ["a"])
        check_choices(selector, [tried.cpu().numpy()], 1, [keep])
        return found

    def __call__(self, images: Tensor, batch: LabeledViews) -> Tensor | None:
        """Returns the kept patches (b, k) of normalized images (b, 3, S, S); None: all."""
        if batch.kept is not None:
            return batch.kept.to(images.device, non_blocking=True)
        return None if self.selector is None else self._select(images, batch.keys)

    def _select(self, images: Tensor, keys: Sequence[str]) -> Tensor:
        assert self.selector is not None
        # As `select` chooses: in float32, whatever the training computes in.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), float32_kept():
            return self.selector.select(images, keys, [self.keep])[0]


def check_stored(config: TrainClassifierConfig) -> None:
    """Checks the options beside stored selections, whose patches are of one view each.

    Raises:
        RequestError: another option chooses patches, too, or changes the view.
    """
    if config.selector:
        raise RequestError("--selections and --selector exclude each other; pass one")
    if config.mixup or config.cutmix:
        raise RequestError(
            "--selections hold the patches of whole photographs, not of mixed ones; leave --mixup "
            "and --cutmix out, or pass --selector"
        )
