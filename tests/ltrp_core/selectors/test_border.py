"""Border contrast against its oracle, and what it is there for."""

import pytest
import torch

from ltrp_core.errors import RequestError
from ltrp_core.selectors.border import border_contrast
from oracles import border as oracle


@pytest.mark.parametrize(("side", "patch"), [(24, 4), (16, 8), (9, 3), (8, 8)])
def test_every_patch_is_as_far_from_the_edge_as_the_oracle_says(side, patch) -> None:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(side))
    found = border_contrast(images, patch)
    assert found.dtype == torch.float32
    for image, scores in zip(images, found, strict=True):
        torch.testing.assert_close(scores, torch.tensor(oracle.border_contrast(image, patch)))


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
