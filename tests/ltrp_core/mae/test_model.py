import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.mae import MAE_CONFIGS, MAEConfig, MaskedAutoencoder, create_mae

SMALL = MAEConfig(
    width=32,
    depth=2,
    heads=2,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
    patch_size=8,
    grid=4,
)


@pytest.fixture
def mae():
    torch.manual_seed(0)
    return MaskedAutoencoder(SMALL).eval()


def test_contract_shapes(mae):
    images, visible = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 9], [1, 2, 15]])
    latent = mae.encode(images, visible)
    assert latent.shape == (2, 4, 32)
    assert mae.decode(latent, visible).shape == (2, 16, 192)
    assert (mae.grid, mae.patch_size) == (4, 8)
    assert torch.equal(mae.unpatchify(mae.patchify(images)), images)


@pytest.mark.parametrize(
    ("name", "millions"), [("mae_base", 111.9), ("mae_large", 329.5), ("mae_huge", 657.1)]
)
def test_published_sizes_have_the_published_number_of_parameters(name, millions):
    with torch.device("meta"):
        mae = create_mae(name)
    count = sum(p.numel() for p in mae.parameters()) + sum(b.numel() for b in mae.buffers())
    assert count / 1e6 == pytest.approx(millions, abs=0.2)


def test_the_projection_equals_the_convolution(mae):
    images, visible = torch.randn(2, 3, 32, 32), torch.arange(16).repeat(2, 1)
    convolved = mae.patch_embed(images) + mae.pos_embed[:, 1:]
    torch.testing.assert_close(mae.embed(images, visible)[:, 1:], convolved)


def test_masked_pixels_do_not_reach_the_reconstruction(mae):
    images, visible = torch.randn(1, 3, 32, 32), torch.tensor([[0, 5, 9]])
    changed = images.clone()
    changed[:, :, 24:, :] += 1.0  # patches 12..15, masked
    before = mae.decode(mae.encode(images, visible), visible)
    after = mae.decode(mae.encode(changed, visible), visible)
    assert torch.equal(before, after)


def test_the_loss_is_over_masked_patches_only(mae):
    images, visible = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 9], [1, 2, 15]])
    predicted = mae.decode(mae.encode(images, visible), visible)
    errors = []
    for image in range(2):
        for patch in range(16):
            if patch not in visible[image]:
                difference = predicted[image, patch] - mae.patchify(images)[image, patch]
                errors.append(difference.square().mean())
    torch.testing.assert_close(mae(images, visible), torch.stack(errors).mean())


def test_every_parameter_learns():
    torch.manual_seed(0)
    mae = MaskedAutoencoder(SMALL)
    mae(torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 9], [1, 2, 15]])).backward()
    without = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_wrong_input_is_refused_with_what_was_expected(mae):
    with pytest.raises(RequestError, match=r"\(B, 3, 32, 32\).*got \(1, 3, 64, 64\)"):
        mae.encode(torch.randn(1, 3, 64, 64), torch.tensor([[0]]))
    with pytest.raises(RequestError, match="visible must be int64"):
        mae.encode(torch.randn(1, 3, 32, 32), torch.tensor([[0.0]]))
    with pytest.raises(RequestError, match="did you mean mae_base"):
        create_mae("mae_bse")
    assert set(MAE_CONFIGS) >= {"mae_tiny", "mae_small", "mae_base", "mae_large", "mae_huge"}
