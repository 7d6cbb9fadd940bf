import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltrp_core.rankers.mobile_former import EMBEDDING_WIDTH, MobileFormer, MobileFormerEmbedding


class _Classifier(nn.Module):
    """The whole network of the paper: trunk, embedding and a 1000-way linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = MobileFormer()
        self.embedding = MobileFormerEmbedding()
        self.classes = nn.Linear(EMBEDDING_WIDTH, 1000)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classes(self.embedding(*self.trunk.forward_features(images)))
        return scores


@pytest.fixture(scope="module")
def classifier() -> _Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _Classifier()
        # One pass in training mode gives batch normalization the statistics of real activations.
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
                layer.momentum = 1.0
        with torch.no_grad():
            network(torch.randn(8, 3, 96, 96))
    return network.eval()


def test_parameters_are_the_papers_3_2_million(classifier: _Classifier) -> None:
    total = sum(parameter.numel() for parameter in classifier.parameters())
    assert total == pytest.approx(3.2e6, rel=0.015)


def test_multiply_adds_at_224_px_are_about_26_million() -> None:
    network = _Classifier().eval().requires_grad_(False)
    values = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values
        values += output.numel()

    for module in network.modules():
        if type(module).__name__ in {"BatchNorm2d", "LayerNorm", "ReLU6", "GELU", "_DynamicReLU"}:
            module.register_forward_hook(count)
    # The counter knows matrix products, not the fused attention kernels of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 224, 224))
    products = counter.get_total_flops() / 2
    assert products == pytest.approx(23.6e6, rel=0.01)
    assert products + values == pytest.approx(26e6, rel=0.02)


@pytest.mark.parametrize("side", [96, 112, 224])
def test_map_is_a_32nd_of_the_image_with_three_tokens(classifier: _Classifier, side: int) -> None:
    with torch.no_grad():
        features, tokens = classifier.trunk.forward_features(torch.zeros(2, 3, side, side))
    assert features.shape == (2, 96, -(-side // 32), -(-side // 32))
    assert tokens.shape == (2, 3, 128)


def test_tokens_and_map_influence_each_other(classifier: _Classifier) -> None:
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    trunk = classifier.trunk
    with torch.no_grad():
        features, tokens = trunk.forward_features(images)
        _, other_tokens = trunk.forward_features(images.flip(-1))
        kept = trunk.tokens.clone()
        trunk.tokens.neg_()
        other_features, _ = trunk.forward_features(images)
        trunk.tokens.copy_(kept)
    assert not torch.allclose(tokens, other_tokens, atol=1e-3)
    assert not torch.allclose(features, other_features, atol=1e-3)


def test_an_image_scores_the_same_alone_and_in_a_batch(classifier: _Classifier) -> None:
    images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = classifier(images)
        alone = torch.cat([classifier(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.std(dim=0).max() > 1e-3


def test_gradients_reach_every_parameter() -> None:
    network = _Classifier()
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    network(images).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_dynamic_relu_starts_as_the_plain_one() -> None:
    trunk = MobileFormer()
    activation = trunk.blocks[0].mobile.expand_act
    for parameter in activation.parameters():
        nn.init.zeros_(parameter)
    features = torch.randn(2, 36, 5, 5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(activation(features, torch.ones(2, 128)), features.relu())
