"""A frozen classifier: pixels and kept patches in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ltrp_core.classifiers.fillings import FILLINGS, fill
from ltrp_core.classifiers.normalization import Normalization
from ltrp_core.errors import RequestError, first_line, unknown_name
from ltrp_core.kept_tokens import can_drop_patches, kept_output, token_grid
from ltrp_core.linear import frozen_weights, use_fast_linears
from ltrp_core.precision import float32_kept

NOT_FILLED = "none"
"""The filling of a transformer that is given the kept patches alone."""
_AT_ONCE = {"cpu": 1}
_AT_ONCE_ELSEWHERE = 32
"""Images that the model sees together: constant, as in `ltrp_core.rankers.ranking`. The number of
rows decides how products are summed up, and figures would depend on the batch."""


class FrozenClassifier:
    """A timm classifier in evaluation mode, in float32, with the normalization of its weights.

    The logits of an image do not depend on the images beside it.

    Attributes:
        name: what tables call it.
        normalization: of the pixels.
        origin: who declared that normalization, in words.
        num_classes: C.
        classes: (C,) their names, where it knows them; else empty.
        device: where it computes.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        normalization: Normalization,
        *,
        num_classes: int,
        device: torch.device | str = "cpu",
        origin: str = "given",
        classes: Sequence[str] = (),
    ) -> None:
        """Freezes `model` and moves it to the device."""
        self.name, self.normalization, self.origin = name, normalization, origin
        self.num_classes, self.classes = num_classes, tuple(classes)
        self.device = torch.device(device)
        self.model = model.float().eval().requires_grad_(False).to(self.device)
        use_fast_linears(self.model)

    @property
    def at_once(self) -> int:
        """How many images the model sees together, whatever it is given."""
        return _AT_ONCE.get(self.device.type, _AT_ONCE_ELSEWHERE)

    @property
    def drops_tokens(self) -> bool:
        """Whether it can be given some patches only."""
        return can_drop_patches(self.model)

    def numbers_of(self, names: Sequence[str]) -> list[int] | None:
        """Returns the number of each class, found by its name among the classifier's.

        None where the classifier knows no names, or where names on either side are mere numbers.

        Raises:
            RequestError: a name is none of the classifier's classes.
        """
        if any(tuple(one) == _numbered(len(one)) for one in (names, self.classes)):
            return None
        place = {name: number for number, name in enumerate(self.classes)}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise RequestError(
                f"images are labeled {unknown[0]!r}, which is none of the {len(place)} classes of "
                f"{self.name} ({', '.join(map(repr, self.classes[:3]))}, ...); pass images of the "
                "classes that it was trained on"
            )
        return [place[name] for name in names]

    def check(self, filling: str, grid: int, patch_size: int) -> None:
        """Checks that it can be asked about patches of views, hidden by a filling.

        Args:
            filling: `none`, or one of `FILLINGS`.
            grid: g, patches along a side of the views.
            patch_size: p in px.

        Raises:
            RequestError: it takes no such views, or cannot do without the hidden patches.
        """
        if filling == NOT_FILLED:
            try:
                theirs = token_grid(self.model)
            except RequestError as error:
                names = " or ".join(f"--filling {name}" for name in FILLINGS)
                raise RequestError(f"{self.name}: {error}; or pass {names}") from error
            if not theirs.is_of(grid, patch_size):
                raise RequestError(
                    f"{self.name} has {theirs}, the selections {grid} x {grid} of {patch_size} x "
                    f"{patch_size} px; select with --image-size {theirs.grid[0] * theirs.patch[0]} "
                    f"--patch-size {theirs.patch[0]}, or take a model of the selections' patches"
                )
        elif filling not in FILLINGS:
            raise unknown_name("filling", filling, [NOT_FILLED, *FILLINGS])
        side = grid * patch_size
        try:
            found = self.logits(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape
        except (RuntimeError, AssertionError, ValueError) as error:
            raise RequestError(
                f"{self.name} takes no views of {side} x {side} px ({first_line(error)}); select "
                "with its --image-size, or take a model of that size"
            ) from error
        if found != (1, self.num_classes):
            raise RequestError(
                f"{self.name} gives {tuple(found)} for one image, not the logits of "
                f"{self.num_classes} classes; take a model with a classification head"
            )

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits, float32 (B, C), of whole views.

        Args:
            images: pixels from 0 to 255 (B, 3, S, S), of any type.
        """
        return self._in_groups(lambda pixels: self.model(self.normalization(pixels)), images)

    def seeing(self, images: Tensor, filling: str, patch_size: int) -> Callable[[Tensor], Tensor]:
        """Returns the function that gives the logits (B, C) of kept patches (B, k) of some views.

        Args:
            images: pixels from 0 to 255 (B, 3, S, S), of any type.
            filling: `none`: only the tokens of the kept patches; else one of `FILLINGS`, by which
                the rest is hidden. See `check`.
            patch_size: p in px.
        """
        if filling == NOT_FILLED:
            return lambda kept: self._in_groups(
                lambda pixels, some: kept_output(self.model, self.normalization(pixels), some),
                images,
                kept,
            )
        background = self._in_groups(
            lambda pixels: FILLINGS[filling](pixels.float(), self.normalization), images
        )
        return lambda kept: self._in_groups(
            lambda pixels, behind, some: self.model(
                self.normalization(fill(pixels.float(), behind, some, patch_size))
            ),
            images,
            background,
            kept,
        )

    @torch.no_grad()
    def _in_groups(self, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Returns `compute` of tensors with the same first axis, always as many rows at once.

        The last group is filled up with its first row. B must not be 0.
        """
        at_once = self.at_once
        results = []
        with frozen_weights(), float32_kept():
            for groups in zip(*(values.split(at_once) for values in inputs), strict=True):
                count = len(groups[0])
                filled = (
                    torch.cat([group, group[:1].expand(at_once - count, *group.shape[1:])])
                    for group in groups
                )
                found = compute(*(group.to(self.device) for group in filled))
                results.append(found[:count].float())
        return torch.cat(results)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))
