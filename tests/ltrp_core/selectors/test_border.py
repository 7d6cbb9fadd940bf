"""Border contrast against its oracle, and what it is there for."""

import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.mae import load_mae
from ltrp_core.selectors import ScoreSelector, SelectorOptions, create_selector
from ltrp_core.selectors.border import border_contrast
from ltrp_core.selectors.border_features import feature_contrast
from oracles import border as oracle


@pytest.mark.parametrize(("side", "patch"), [(24, 4), (16, 8), (9, 3), (8, 8)])
def test_every_patch_is_as_far_from_the_edge_as_the_oracle_says(side, patch) -> None:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(side))
    found = border_contrast(images, patch)
    assert found.dtype == torch.float32
    for image, scores in zip(images, found, strict=True):
        torch.testing.assert_close(scores, torch.tensor(oracle.border_contrast(image, patch)))


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_features_are_as_far_from_the_edge_as_the_oracle_says(grid) -> None:
    features = torch.randn(2, grid**2, 7, generator=torch.Generator().manual_seed(grid))
    for own, scores in zip(features, feature_contrast(features), strict=True):
        torch.testing.assert_close(scores, torch.tensor(oracle.feature_contrast(own.tolist())))


def test_features_are_the_encoders_with_every_patch_visible() -> None:
    selector = create_selector("border-features", SelectorOptions(weights="mae_tiny"))
    assert isinstance(selector, ScoreSelector)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mae = load_mae("mae_tiny")
    with torch.no_grad():
        latent = mae.encode(images, torch.arange(196).expand(2, -1))[:, 1:]
    for own, scores in zip(latent, selector.scores(images, ["a", "b"]), strict=True):
        expected = torch.tensor(oracle.feature_contrast(own.tolist()))
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_an_object_away_from_the_edge_comes_first_and_one_at_the_edge_does_not() -> None:
    image = 0.01 * torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    inside, touching = image.clone(), image.clone()
    inside[..., 16:32, 16:32] += 2
    touching[..., 16:32, :16] += 2
    best = border_contrast(inside, 8)[0].topk(4).indices.sort().values
    assert best.tolist() == [14, 15, 20, 21]
    assert float(border_contrast(touching, 8)[0][[12, 18]].max()) == 0.0


def test_the_images_beside_it_change_nothing() -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = border_contrast(images, 8)
    for row, image in enumerate(images):
        assert torch.equal(border_contrast(image[None], 8)[0], whole[row])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(RequestError, match="square"):
        border_contrast(torch.zeros(1, 3, 16, 32), 8)
    with pytest.raises(RequestError):
        border_contrast(torch.zeros(1, 3, 20, 20), 8)
    with pytest.raises(RequestError, match="8 patches are no square grid"):
        feature_contrast(torch.zeros(1, 8, 3))
