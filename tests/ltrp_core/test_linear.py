import pytest
import torch
import torch.nn.functional as F

import ltrp_core.linear
from ltrp_core.linear import inference_linear, use_inference_linears


def layer(rows, inner=48, outer=96):
    torch.manual_seed(0)
    x = torch.randn(2, rows // 2, inner)
    return x, torch.nn.Parameter(torch.randn(outer, inner)), torch.nn.Parameter(torch.randn(outer))


@pytest.mark.parametrize("rows", [2, 40, 2048])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_the_linear_layer_of_torch(rows, activation, has_bias):
    x, weight, bias = layer(rows)
    expected = F.linear(x, weight, bias if has_bias else None)
    if activation == "gelu":
        expected = F.gelu(expected)
    with torch.no_grad():
        found = inference_linear(x, weight, bias if has_bias else None, activation)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-4)


def test_it_is_so_without_onednn(monkeypatch):
    x, weight, bias = layer(40)
    monkeypatch.setattr(ltrp_core.linear, "_ONEDNN", None)
    assert torch.equal(inference_linear(x, weight, bias, "gelu"), F.gelu(F.linear(x, weight, bias)))


def test_under_autocast_it_computes_in_its_type():
    x, weight, bias = layer(2048)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = inference_linear(x, weight, bias)
        expected = F.linear(x, weight, bias)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)


def test_a_layout_is_not_kept_longer_than_its_weight():
    x, weight, bias = layer(2048)
    before = len(ltrp_core.linear._PACKED)
    with torch.no_grad():
        inference_linear(x, weight, bias)
    assert len(ltrp_core.linear._PACKED) == before + 1
    del weight
    assert len(ltrp_core.linear._PACKED) == before


@pytest.mark.parametrize("rows", [2, 40])
def test_a_model_with_inference_linears_computes_what_it_did(rows):
    x, _, _ = layer(rows)
    model = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.GELU(), torch.nn.Linear(96, 3))
    names = list(model.state_dict())
    expected = model(x)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), model[0].bias)
    use_inference_linears(model)
    assert list(model.state_dict()) == names
    found = model(x)
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), model[0].bias)
    assert torch.equal(gradient, expected_gradient)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_of_many_rows_without_gradients_a_layer_takes_the_fast_product(monkeypatch):
    x, _, _ = layer(40)
    model = torch.nn.Linear(48, 96)
    use_inference_linears(model)
    taken = []
    monkeypatch.setattr(ltrp_core.linear, "inference_linear", lambda *args: taken.append(args[0]))
    with torch.no_grad():
        model(x)
        assert len(taken) == 1
        model(x[:, :1])
    model(x)
    assert len(taken) == 1
