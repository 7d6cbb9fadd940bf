import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ltrp_core.linear
from ltrp_core.mae import MAEConfig, MaskedAutoencoder, mae_config
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.scoring.cost import scoring_operations, scoring_products


@pytest.mark.parametrize("decoder_depth", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_the_operations_are_those_that_torch_counts(decoder_depth, n, monkeypatch):
    # torch counts its own operators, not oneDNN's; the products are the same.
    monkeypatch.setattr(ltrp_core.linear, "_ONEDNN", None)
    config = MAEConfig(
        width=32,
        depth=2,
        heads=2,
        decoder_width=16,
        decoder_depth=decoder_depth,
        decoder_heads=2,
        patch_size=8,
        grid=6,
    )
    mae = MaskedAutoencoder(config).eval()
    images = torch.randn(1, 3, config.image_size, config.image_size)
    visible = torch.randperm(config.num_patches)[:n].sort().values[None]
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        leave_one_out_scores(mae, images, visible)
    assert scoring_operations(config, n) == counter.get_total_flops()


def test_a_pair_of_mae_base_takes_208_billion_operations():
    assert scoring_operations(mae_config("mae_base"), 19) == pytest.approx(208e9, rel=0.005)


def test_attention_is_a_small_part_of_it():
    products = scoring_products(mae_config("mae_base"), 19)
    attention = sum(product.operations for product in products if product.kind == "attention")
    assert 0.03 < attention / sum(product.operations for product in products) < 0.08
