import copy

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3

import ltrp_core.linear
from ltrp_core.linear import frozen_weights, inference_linear, use_fast_linears


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


def test_a_layout_is_made_once_and_not_kept_longer_than_weights_are_frozen(monkeypatch):
    x, weight, bias = layer(2048)
    own, made = ltrp_core.linear._PACK, []
    monkeypatch.setattr(ltrp_core.linear, "_PACK", lambda *args: made.append(1) or own(*args))
    with torch.no_grad():
        plain = inference_linear(x, weight, bias)
        assert not made
        with frozen_weights():
            first = inference_linear(x, weight, bias)
            with frozen_weights():
                again = inference_linear(x, weight, bias)
            assert len(made) == 1
        weight.data.zero_()
        with frozen_weights():
            assert torch.equal(inference_linear(x, weight, bias), bias.expand(2, 1024, -1))
    assert torch.equal(first, plain), "it changes no bit"
    assert torch.equal(again, plain)


def halved(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def loaded(model):
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def swapped(model):
    for parameter in model.parameters():
        parameter.data = parameter.detach() + 1


def averaged(model):
    average, other = ModelEmaV3(model, decay=0.5), copy.deepcopy(model)
    halved(other)
    average.update(other)
    model.load_state_dict(average.module.state_dict())


def fused_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.ones(2, 48)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [halved, loaded, swapped, averaged, fused_step])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_that_change_unseen_are_never_taken_from_before(change, mode):
    x, _, _ = layer(2048)
    plain, fast = small_model(), small_model()
    use_fast_linears(fast)
    with mode():
        fast(x)
    change(fast)
    plain.load_state_dict(fast.state_dict())
    with mode():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-3)


def test_layers_are_replaced_and_keep_their_hooks_places_and_parameters():
    model = small_model()
    model.append(model[0])
    before, parameters, calls = model[0], list(model.parameters()), []
    before.register_forward_hook(lambda *_: calls.append(1))
    use_fast_linears(model)
    assert type(before) is torch.nn.Linear
    assert model[3] is model[0]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    model[0](torch.ones(1, 48))
    assert calls == [1]
    copied = copy.deepcopy(model)
    assert torch.equal(copied[0](torch.ones(1, 48)), before(torch.ones(1, 48)))


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(48, 96), torch.nn.GELU(), torch.nn.Linear(96, 3, bias=False)
    )


def with_gradients(model, x):
    x = x.clone().requires_grad_()
    result = model(x)
    return [result, *torch.autograd.grad(result.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("rows", [2, 40])
def test_a_model_with_fast_linears_computes_and_learns_what_it_did(rows):
    x, _, _ = layer(rows)
    plain, fast = small_model(), small_model()
    use_fast_linears(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for found, expected in zip(with_gradients(fast, x), with_gradients(plain, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)


def test_frozen_parts_of_such_a_model_get_no_gradient():
    x, _, _ = layer(40)
    model = small_model()
    use_fast_linears(model)
    model[0].requires_grad_(False)
    model(x).sum().backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


def test_such_a_model_under_autocast_computes_as_torch_does():
    x, _, _ = layer(40)
    plain, fast = small_model(), small_model()
    use_fast_linears(fast)
    with torch.autocast("cpu", torch.bfloat16):
        for found, expected in zip(with_gradients(fast, x), with_gradients(plain, x), strict=True):
            assert torch.equal(found, expected)


def test_it_learns_without_onednn_too(monkeypatch):
    x, _, _ = layer(40)
    plain, fast = small_model(), small_model()
    use_fast_linears(fast)
    monkeypatch.setattr(ltrp_core.linear, "_ONEDNN", None)
    for found, expected in zip(with_gradients(fast, x), with_gradients(plain, x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("learns", [True, False])
def test_of_many_rows_a_layer_takes_the_fast_product_and_of_few_it_does_not(learns, monkeypatch):
    x, _, _ = layer(40)
    model = torch.nn.Sequential(torch.nn.Linear(48, 96)).requires_grad_(learns)
    use_fast_linears(model)
    own, rows = ltrp_core.linear._ONEDNN, []
    monkeypatch.setattr(
        ltrp_core.linear, "_ONEDNN", lambda *args: rows.append(len(args[0])) or own(*args)
    )
    model(x.flatten(0, 1))
    assert rows == [40]
    model(x[0, :2])
    assert rows == [40]
