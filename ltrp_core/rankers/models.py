"""What ranking models are made of: vision transformers that can be sparse, and dense backbones.

Made by `ltrp_core.rankers.folder.create_ranker`, whose file says what heads and inputs there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, PatchEmbed
from timm.models import group_parameters
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.patches import model_images, model_pixels, patchify
from ltrp_core.positions import sincos_positions
from ltrp_core.rankers.mobile_former import MobileFormer, MobileFormerEmbedding

Head = Literal["cls", "token"]
Input = Literal["sparse", "dense"]


class _Size(NamedTuple):
    width: int
    depth: int
    heads: int


TRANSFORMERS = {
    "vit_tiny": _Size(192, 12, 3),
    "vit_small": _Size(384, 12, 6),
    "vit_base": _Size(768, 12, 12),
}
MOBILE_FORMER = "mobile_former_26m"


class Ranker(nn.Module):
    """A ranking model; made by `create_ranker`.

    Attributes:
        config: name, head, input, grid and patch_size; `create_ranker(**config)` builds it again.
        grid: g.
        patch_size: p, in pixels.
        sparse_input: whether the model sees only the visible patches when they are given.
    """

    sparse_input: bool = False

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.grid: int = config["grid"]
        self.patch_size: int = config["patch_size"]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Returns the ranker scores (B, n) of the `visible` patches, or (B, L) of all of them.

        Args:
            images: of a floating type, (B, 3, g*p, g*p), normalized; computed in the weights' type.
            visible: int64 (B, n), patch indices in any order, distinct; None for all L patches.

        Raises:
            RequestError: a shape or type is not as above.
        """
        images = model_images(images, self.grid, self.patch_size, self.dtype)
        if visible is not None:
            self._check_visible(visible, len(images))
        return self._score(images, visible)

    def score_patches(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Returns what `forward(images, visible)` does, (B, n), from the visible patches' pixels.

        Args:
            patches: float (B, n, 3p²), normalized, channel fastest: `patchify`'s rows at `visible`.
            visible: int64 (B, n), the position of each patch.

        Raises:
            RequestError: the ranker's input is dense, or a shape or type is not as above.
        """
        if not self.sparse_input:
            raise RequestError(
                f"ranker {self.config['name']!r} has dense input: it needs whole images, not "
                "patches. Call ranker(images, visible) or choose a vit_* ranker with sparse input."
            )
        expected = 3 * self.patch_size**2
        if patches.ndim != 3 or patches.shape[2] != expected:
            raise RequestError(f"patches must be (B, n, {expected}); got {tuple(patches.shape)}")
        patches = model_pixels(patches, self.dtype)
        self._check_visible(visible, len(patches))
        if visible.shape != patches.shape[:2]:
            raise RequestError(
                f"visible must be {tuple(patches.shape[:2])} as patches are; "
                f"got {tuple(visible.shape)}"
            )
        return self._score_patches(patches, visible)

    def depths(self) -> dict[str, int]:
        """Returns the depth of every parameter by its name: 0 at the pixels, most at the head.

        Raises:
            RequestError: the layers of this model are not known in their order.
        """
        raise NotImplementedError

    def _score(self, images: Tensor, visible: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _score_patches(self, patches: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_visible(self, visible: Tensor, batch: int) -> None:
        length = self.grid * self.grid
        if visible.ndim != 2 or len(visible) != batch or visible.dtype != torch.int64:
            raise RequestError(
                f"visible must be int64 (B, n) with B = {batch}; got {visible.dtype} "
                f"{tuple(visible.shape)}. Pass the indices from sample_visible()."
            )
        # On an accelerator the look at the values would make the host wait; gather checks there.
        if visible.device.type == "cpu" and visible.numel():
            low, high = (int(bound) for bound in visible.aminmax())
            if low < 0 or high >= length:
                raise RequestError(
                    f"visible must hold indices from 0 to {length - 1}; got {low} to {high}"
                )


class TransformerRanker(Ranker):
    """A plain vision transformer with fixed sine-cosine positions, laid out as MAE's encoder.

    Parameter names are MAE's and timm's: all but `head` load from an MAE encoder's state.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        size = TRANSFORMERS[config["name"]]
        self.sparse_input = config["input"] == "sparse"
        self.patch_embed = PatchEmbed(self.grid * self.patch_size, self.patch_size, 3, size.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        norm: Any = functools.partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)
            for _ in range(size.depth)
        )
        self.norm = norm(size.width)
        self.head = nn.Linear(size.width, _num_units(config))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(size.width, self.grid))
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        assert projection.bias is not None
        nn.init.xavier_uniform_(projection.weight.data.flatten(1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=0.02)

    def depths(self) -> dict[str, int]:
        """Returns BEiT's: the embedding 0, block i (from 0) i + 1, norm and head one more."""
        last = len(self.blocks) + 1
        of_part = {"cls_token": 0, "patch_embed": 0, "norm": last, "head": last}
        depths = {}
        for name, _ in self.named_parameters():
            part, *rest = name.split(".")
            depths[name] = int(rest[0]) + 1 if part == "blocks" else of_part[part]
        return depths

    def _score(self, images: Tensor, visible: Tensor | None) -> Tensor:
        patches = patchify(images, self.patch_size)
        if visible is None:
            return self._score_patches(patches, None)
        if self.sparse_input:
            index = visible.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
            return self._score_patches(patches.gather(1, index), visible)
        return self._score_patches(patches, None).gather(1, visible)

    def _score_patches(self, patches: Tensor, visible: Tensor | None) -> Tensor:
        """Returns the scores (B, n) of `patches` (B, n, 3p²); `visible` None: n = L, in order."""
        tokens = self.norm(self._trunk(patches, visible))
        if self.config["head"] == "token":
            return _linear32(self.head, tokens[:, 1:]).squeeze(-1)
        scores = _linear32(self.head, tokens[:, 0])
        return scores if visible is None else scores.gather(1, visible)

    def _trunk(self, patches: Tensor, visible: Tensor | None) -> Tensor:
        projection = self.patch_embed.proj
        # The convolution's kernel is (D, 3, p, p); ours are patches with the channel fastest.
        kernel = projection.weight.permute(0, 2, 3, 1).flatten(1)
        tokens = F.linear(patches, kernel, projection.bias)
        positions = self.pos_embed[:, 1:] if visible is None else self.pos_embed[0, 1:][visible]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        tokens = torch.cat([cls.to(tokens.dtype), tokens + positions.to(tokens.dtype)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class DenseRanker(Ranker):
    """A backbone that sees the whole image, with a head on its feature map or pooled features.

    The map of a `token` head is scored where the backbone has it (7 x 7 for a stride of 32) and
    resized to the grid, bilinear.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.backbone: _Backbone
        if config["name"] == MOBILE_FORMER:
            self.backbone = _MobileFormerBackbone(config["head"])
        else:
            self.backbone = _TimmBackbone(config["name"], self.grid * self.patch_size)
        self.head = nn.Linear(self._probe(), _num_units(config))

    def depths(self) -> dict[str, int]:
        """Returns those of the backbone's parameters, and one more for the head."""
        inner = self.backbone.depths()
        last = max(inner.values()) + 1
        return {
            name: inner.get(name.removeprefix("backbone."), last)
            for name, _ in self.named_parameters()
        }

    def _probe(self) -> int:
        """Returns the width of the features; freezes the parameters that they do not depend on.

        Such as the layers after the feature map when the head sits on the map: a parameter that
        never gets a gradient stops data-parallel training.
        """
        side = self.grid * self.patch_size
        self.backbone.eval()
        try:
            with torch.enable_grad():
                features = self._features(torch.zeros(1, 3, side, side))
            if features.shape[2:].numel() == 1 < self.grid and self.config["head"] == "token":
                raise ValueError("its feature map is 1 x 1: every patch would score the same")
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise RequestError(
                f"ranker {self.config['name']!r} with head {self.config['head']!r} does not work "
                f"on images of {side} x {side} px ({error}); choose another grid, head or name"
            ) from error
        finally:
            self.backbone.train()
        parameters = list(self.backbone.parameters())
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        return features.shape[1]

    def _features(self, images: Tensor) -> Tensor:
        if self.config["head"] == "cls":
            return self.backbone.pooled(images)
        return self.backbone.feature_map(images)

    def _score(self, images: Tensor, visible: Tensor | None) -> Tensor:
        features = self._features(images)
        if self.config["head"] == "cls":
            scores = _linear32(self.head, features)
        else:
            score_map = _linear32(self.head, features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if score_map.shape[-2:] != (self.grid, self.grid):
                size = (self.grid, self.grid)
                score_map = F.interpolate(score_map, size, mode="bilinear", align_corners=False)
            scores = score_map.flatten(1)
        return scores if visible is None else scores.gather(1, visible)


class _Backbone(nn.Module):
    """What a DenseRanker needs of a model, whatever its family."""

    def depths(self) -> dict[str, int]:
        """Returns the depth of every parameter by its name, from 0."""
        raise NotImplementedError

    def feature_map(self, images: Tensor) -> Tensor:
        """Returns the features (B, C, h, w) of `images`."""
        raise NotImplementedError

    def pooled(self, images: Tensor) -> Tensor:
        """Returns one vector (B, C) for each of `images`."""
        raise NotImplementedError


class _MobileFormerBackbone(_Backbone):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.trunk = MobileFormer()
        self.embedding = MobileFormerEmbedding() if head == "cls" else None

    def depths(self) -> dict[str, int]:
        """Returns tokens, stem and first layer as 0, block i (from 0) as i + 1, the rest after."""
        last = len(self.trunk.blocks) + 1
        depths = {}
        for name, _ in self.named_parameters():
            _, part, *rest = name.split(".")
            if name.startswith("trunk.blocks."):
                depths[name] = int(rest[0]) + 1
            else:
                depths[name] = 0 if part in ("tokens", "stem", "first") else last
        return depths

    def feature_map(self, images: Tensor) -> Tensor:
        return self.trunk.forward_features(images)[0]

    def pooled(self, images: Tensor) -> Tensor:
        assert self.embedding is not None
        pooled: Tensor = self.embedding(*self.trunk.forward_features(images))
        return pooled


class _TimmBackbone(_Backbone):
    """Any timm model; dropout and stochastic depth, on by default in some, are switched off."""

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        self.model = _create_timm_model(name, image_size)
        if hasattr(self.model, "drop_rate"):
            self.model.drop_rate = 0.0
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, DropPath):
                module.drop_prob = 0.0

    def depths(self) -> dict[str, int]:
        """Returns timm's."""
        matcher = getattr(self.model, "group_matcher", None)
        if matcher is None:
            raise RequestError(
                f"timm says nothing of the order of the layers of a {type(self.model).__name__}; "
                "leave out --layer-decay, or take another ranker"
            )
        known = group_parameters(self.model, matcher(coarse=False), reverse=True)
        return {f"model.{name}": int(depth) for name, depth in known.items()}

    def feature_map(self, images: Tensor) -> Tensor:
        features = self.model.forward_features(images)
        width: int = self.model.num_features
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise ValueError("its features are neither a map nor tokens")
        if features.ndim == 3:
            tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
            side = math.isqrt(tokens.shape[1])
            if side == 0 or side * side != tokens.shape[1]:
                raise ValueError(f"its {tokens.shape[1]} patch tokens do not form a square")
            return tokens.transpose(1, 2).unflatten(2, (side, side))
        if features.shape[1] == width:
            return features
        if features.shape[3] == width:
            return features.permute(0, 3, 1, 2)
        raise ValueError(f"no axis of its features {tuple(features.shape)} is {width} wide")

    def pooled(self, images: Tensor) -> Tensor:
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise ValueError("its pooled features are not (B, C)")
        return features


def _create_timm_model(name: str, image_size: int) -> Any:
    build = functools.partial(timm.create_model, name, pretrained=False, num_classes=0)
    try:
        return build(img_size=image_size)
    except TypeError:
        # A convolutional network: takes any size, and no such argument.
        return build()


def _num_units(config: Mapping[str, Any]) -> int:
    """Returns the width of the last layer: L for the cls head, 1 for the token head."""
    return config["grid"] ** 2 if config["head"] == "cls" else 1


def _linear32(layer: nn.Linear, features: Tensor) -> Tensor:
    """Returns `layer(features)` in the layer's own precision, also under autocast.

    Scores of one list lie close together: rounded to half precision many of them would tie.
    """
    with torch.autocast(features.device.type, enabled=False):
        scores: Tensor = layer(features.to(layer.weight.dtype))
    return scores
