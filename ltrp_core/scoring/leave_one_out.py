"""Leave-one-out pseudo-scores of the visible patches: Eq. (2), Tab. 1c, 1g.

A score is the distance between the reconstruction R from all n visible patches and R_i from the
others. n + 1 decoder passes per partition are almost all of the pipeline's cost, so this file takes
every exact shortcut beside those of `blocks`:

- the removed token is absent instead of masked: sequences are one shorter, no attention mask;
- block 0 sees the same tokens in every pass: its queries, keys and values are computed once;
- R - R_i = W h + b - (W h_i + b) = W (h - h_i): subtracted before the projection.

`block` is one of timm's: norm1, attn (qkv, proj), norm2, mlp. Shape suffixes: R = (image,
partition) pairs of a chunk, J = the n passes of a pair, Q = compared tokens, S = sequence,
W = decoder width.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ltrp_core.distances import DISTANCES, DistanceSpec
from ltrp_core.errors import unknown_name
from ltrp_core.linear import frozen_weights, inference_linear
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.patches import model_images
from ltrp_core.precision import Precision, computing_in
from ltrp_core.scoring.blocks import (
    attend,
    check_visible,
    decoder_tokens,
    default_chunk,
    finish,
    last_block,
    latent,
    masked_patches,
    pair_chunks,
    qkv_of,
    whole_block,
    with_class,
)

Phase = Literal["decoder", "encoder"]
Region = Literal["masked", "all"]

PHASES: tuple[Phase, ...] = get_args(Phase)
REGIONS: tuple[Region, ...] = get_args(Region)

_ROWS_AT_A_TIME = 4096


@torch.no_grad()
def leave_one_out_scores(
    mae: MaskedAutoencoder,
    images: Tensor,
    visible: Tensor,
    *,
    phase: Phase = "decoder",
    metric: str = "l1",
    region: Region = "masked",
    precision: Precision = "float32",
    chunk: int | None = None,
) -> Tensor:
    """Returns the pseudo-score of every visible patch, float32 of `visible`'s shape: Eq. (2).

    Method: `decoder` (Tab. 1g, the default) encodes the n patches once and leaves token i out of
    the decoder's sequence. `encoder` encodes the other n - 1 patches and gives the decoder a mask
    token at i: an ordinary MAE forward. Differs from the released code there: in it the removed
    patch's own embedding still reaches the decoder.

    The distance is taken over the originally masked patches (`masked`: the decoder is never trained
    elsewhere), or over every position that both reconstructions have (`all`: all L in the encoder
    phase; all but i in the decoder phase). For distances of images (`ssim`) the other positions
    hold equal pixels: the image's own with `masked`, R's with `all`.

    A score depends on its image and partition alone. On a CPU a chunk is one pair, so it is
    bit-equal whatever the batch; elsewhere it agrees to rounding.

    Cost of a pair, MAE-B and n = 19: 208 billion operations (`ltrp_core.scoring.cost`).

    Args:
        mae: frozen, in eval mode, on the device of `images`.
        images: of a floating type, (B, 3, g*p, g*p), normalized; B may be 0.
        visible: int64 (B, n) or (B, P, n), distinct within a partition.
        precision: of the matrix products (`ltrp_core.precision`); what it does to the order of
            patches is in docs/speed.md.
        chunk: (image, partition) pairs at a time; None = 1 on a CPU, 32 elsewhere.

    Raises:
        RequestError: unknown phase, metric or region, a precision that the device does not compute
            in, or indices that are not a partition.
    """
    _check_names(phase, metric, region)
    images = model_images(images, mae.grid, mae.patch_size, mae.cls_token.dtype)
    check_visible(visible, images, mae.config.num_patches)
    if visible.numel() == 0:
        return visible.new_zeros(visible.shape, dtype=torch.float32)
    if chunk is None:
        chunk = default_chunk(images.device)
    with computing_in(precision, images.device), frozen_weights():
        scores = [
            _score_pairs(mae, part, given, phase, DISTANCES[metric], region)
            for part, given in pair_chunks(images, visible, chunk)
        ]
    return torch.cat(scores).view(visible.shape)


def _check_names(phase: str, metric: str, region: str) -> None:
    for kind, name, known in (
        ("phase", phase, PHASES),
        ("metric", metric, DISTANCES),
        ("region", region, REGIONS),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)


def _score_pairs(
    mae: MaskedAutoencoder,
    images: Tensor,
    visible: Tensor,
    phase: Phase,
    distance: DistanceSpec,
    region: Region,
) -> Tensor:
    masked = masked_patches(visible, mae.config.num_patches)
    hidden = _hidden_decoder if phase == "decoder" else _hidden_encoder
    anchor_RJQW, left_out_RJQW, places = hidden(mae, images, visible, masked, region)
    difference = inference_linear(anchor_RJQW - left_out_RJQW, mae.decoder_pred.weight, None)
    if distance.of_images:
        if region == "masked":
            predicted = mae.decoder_pred(anchor_RJQW[:, 0]).float()
            index = masked.unsqueeze(-1).expand_as(predicted)
            reference = mae.patchify(images).scatter(1, index, predicted)
        else:
            reference = mae.decode(latent(mae, images, visible), visible).float()
    # Distances are sums over thousands of values: in float32, whatever the products are in.
    difference = difference.float()
    with torch.autocast(images.device.type, enabled=False):
        if not distance.of_images:
            return distance.function(difference)
        # `places` count along [masked | visible]; the canvas is in grid order, 0 where not
        # compared.
        index = torch.cat([masked, visible], dim=1)[:, places].unsqueeze(-1).expand_as(difference)
        canvas = reference.new_zeros(*visible.shape, *reference.shape[1:])
        canvas = canvas.scatter(2, index, difference)
        changes = mae.unpatchify(canvas.flatten(0, 1)).unflatten(0, visible.shape)
        return distance.function(mae.unpatchify(reference), changes)


def _hidden_decoder(
    mae: MaskedAutoencoder, images: Tensor, visible: Tensor, masked: Tensor, region: Region
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what the projection reads, with all tokens and with token i absent.

    anchor (R, J or 1, q, W), left out (R, J, q, W), and places (J, q): where along
    [masked | visible] each of the q compared tokens stands.
    """
    m, n = masked.shape[1], visible.shape[1]
    tokens_RSW = decoder_tokens(mae, latent(mae, images, visible), visible, masked)
    # Row j of `kept` is the sequence [masked | class | visible] without the j-th visible patch.
    kept = _without_each(m + 1, n, tokens_RSW.device)
    anchor, left_out = tokens_RSW, tokens_RSW[:, kept].flatten(0, 1)
    if len(mae.decoder_blocks) > 1:
        anchor, left_out = _shared_first_block(mae.decoder_blocks[0], anchor, left_out, kept)
    anchor, left_out = _later_blocks(mae, anchor, left_out, m if region == "masked" else None)
    left_out = left_out.unflatten(0, visible.shape)
    if region == "masked":
        return anchor.unsqueeze(1), left_out, torch.arange(m, device=anchor.device).expand(n, -1)
    compared = _drop(kept, m, dim=1)
    places = torch.where(compared > m, compared - 1, compared)
    return anchor[:, compared], _drop(left_out, m, dim=2), places


def _hidden_encoder(
    mae: MaskedAutoencoder, images: Tensor, visible: Tensor, masked: Tensor, region: Region
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same as `_hidden_decoder` where the encoder does not see patch i."""
    m, n = masked.shape[1], visible.shape[1]
    tokens_RSD = mae.embed(images, visible)
    kept = _without_each(1, n, tokens_RSD.device)
    anchor, left_out = tokens_RSD, tokens_RSD[:, kept].flatten(0, 1)
    anchor, left_out = _shared_first_block(mae.blocks[0], anchor, left_out, kept)
    for block in mae.blocks[1:]:
        anchor, left_out = whole_block(block, anchor), whole_block(block, left_out)
    anchor_RSW = decoder_tokens(mae, mae.norm(anchor), visible, masked)
    tails = _tails(mae, mae.norm(left_out), visible, kept)
    head = anchor_RSW[:, :m].repeat_interleave(n, dim=0)
    anchor, left_out = anchor_RSW, torch.cat([head, tails], dim=1)
    if len(mae.decoder_blocks) > 1:
        first = mae.decoder_blocks[0]
        anchor_qkv, tail_qkv = (
            qkv_of(first, anchor_RSW),
            qkv_of(first, tails),
        )
        joined = (
            torch.cat([whole[:, :, :m].repeat_interleave(n, dim=0), tail], dim=2)
            for whole, tail in zip(anchor_qkv, tail_qkv, strict=True)
        )
        anchor = finish(first, anchor, attend(*anchor_qkv))
        left_out = finish(first, left_out, attend(*joined))
    anchor, left_out = _later_blocks(mae, anchor, left_out, m if region == "masked" else None)
    if region == "all":
        anchor, left_out = _drop(anchor, m, dim=1), _drop(left_out, m, dim=1)
    places = torch.arange(anchor.shape[1], device=anchor.device).expand(n, -1)
    return anchor.unsqueeze(1), left_out.unflatten(0, visible.shape), places


def _shared_first_block(
    block: Any, anchor: Tensor, left_out: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the block's outputs of the full pass and of the passes over the `kept` tokens.

    Row norms and projections do not depend on the other tokens, so one set serves all passes.
    """
    qkv = qkv_of(block, anchor)
    anchor = finish(block, anchor, attend(*qkv))
    at_a_time = _passes_at_a_time(left_out)
    passes = left_out.unflatten(0, (-1, len(kept))).split(at_a_time, dim=1)
    made = []
    for tokens, places in zip(passes, kept.split(at_a_time), strict=True):
        attended = attend(*(t[:, :, places].transpose(1, 2).flatten(0, 1) for t in qkv))
        made.append(finish(block, tokens.flatten(0, 1), attended).view(tokens.shape))
    return anchor, torch.cat(made, dim=1).flatten(0, 1)


def _later_blocks(
    mae: MaskedAutoencoder, anchor: Tensor, left_out: Tensor, reads: int | None
) -> tuple[Tensor, Tensor]:
    """Returns the normed hidden states of the first `reads` tokens after the last block."""
    *between, last = mae.decoder_blocks[1:] if len(mae.decoder_blocks) > 1 else mae.decoder_blocks

    def behind(tokens: Tensor) -> Tensor:
        for block in between:
            tokens = whole_block(block, tokens)
        return mae.decoder_norm(last_block(last, tokens, reads))

    passes = left_out.split(_passes_at_a_time(left_out))
    return behind(anchor), torch.cat([behind(tokens) for tokens in passes])


def _passes_at_a_time(tokens: Tensor) -> int:
    """Returns how many of the passes `tokens` (R*J, S, W) go through a block together.

    On a CPU about as many rows as at L = 196 and n = 19: more fall out of its caches, and take
    memory that the system has to hand out anew each time.
    """
    if tokens.device.type != "cpu":
        return len(tokens)
    return max(1, _ROWS_AT_A_TIME // tokens.shape[1])


def _tails(mae: MaskedAutoencoder, latent: Tensor, visible: Tensor, kept: Tensor) -> Tensor:
    """Returns the decoder's [class | visible] tokens (R*J, 1+n, W) of the encoder phase.

    Pass j holds a mask token at its removed patch and `latent` (R*J, n, D) at the `kept` places.
    """
    n = visible.shape[1]
    masks = mae.mask_token.expand(len(latent), 1 + n, -1)
    index = kept.repeat(len(visible), 1).unsqueeze(-1)
    embedded = mae.decoder_embed(latent).to(masks.dtype)
    content = masks.scatter(1, index.expand_as(embedded), embedded)
    return content + mae.decoder_pos_embed[0][with_class(visible)].repeat_interleave(n, dim=0)


def _without_each(fixed: int, n: int, device: torch.device) -> Tensor:
    """Returns (n, fixed + n - 1) places: row j is 0 .. fixed+n-1 without fixed + j."""
    places = torch.arange(fixed + n, device=device)
    removed = fixed + torch.arange(n, device=device).unsqueeze(1)
    return places.expand(n, -1)[places != removed].view(n, -1)


def _drop(tensor: Tensor, place: int, *, dim: int) -> Tensor:
    """Returns `tensor` without entry `place` of dimension `dim`: the class token's."""
    before, _, after = tensor.tensor_split((place, place + 1), dim=dim)
    return torch.cat([before, after], dim=dim)
