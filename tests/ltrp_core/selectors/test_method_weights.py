"""Weights of other authors: files in their layouts, and files that are not what is needed."""

import json

import pytest
import safetensors.torch
import timm
import torch
from hub_server import serve_hub
from small_networks import images_for

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.selectors import SELECTORS, create_selector, selector_spec
from ltrp_core.selectors.adavit import AdaViT
from ltrp_core.selectors.dge import DgeViT
from ltrp_core.selectors.dynamicvit import with_predictors
from ltrp_core.selectors.gfnet import GlanceAndFocus
from ltrp_core.selectors.ia_red2 import with_agents
from ltrp_core.selectors.network import untrained, weights_path

TINY = "timm:vit_tiny_patch16_224"
KEYS = ["a"]


def tiny(**options):
    return timm.create_model("vit_tiny_patch16_224", **options)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def a_head(state, prefix):
    return {**state, prefix + "mlp.0.weight": torch.zeros(2, 2)}


def kept(selector):
    return selector.select(images_for(selector, count=1), KEYS, [20])[0].tolist()


def with_groups(network):
    """IA-RED2's file: every block stands there under two names."""
    state = with_agents(network, network.embed_dim).state_dict()
    for number in range(12):
        group, place = divmod(number, 4)
        for key, value in list(state.items()):
            if key.startswith(f"blocks.{number}."):
                rest = key.split(".", 2)[2]
                state[f"groups.{group}.block_list.{place}.{rest}"] = value
    return state


LAYOUTS = {
    "dino": lambda net: {
        "student": {},
        "teacher": a_head(prefixed(net.state_dict(), "backbone."), "head."),
        "epoch": 100,
    },
    "moco": lambda net: {
        "state_dict": a_head(prefixed(net.state_dict(), "module.base_encoder."), "module.head.")
        | prefixed(net.state_dict(), "module.momentum_encoder.")
    },
    "evit": lambda net: {"model": a_head(net.state_dict(), "head.")},
    "tome": lambda net: {"model": a_head(net.state_dict(), "head.")},
    "attention-rollout": lambda net: net.state_dict(),
    "dpc-knn-tokens": lambda net: net.state_dict(),
    "dynamicvit": lambda net: {"model": with_predictors(net, net.embed_dim).state_dict()},
    "ia-red2": with_groups,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_in_its_authors_layout_is_read_whole(name, tmp_path) -> None:
    """The file says what the weights are: another seed of the untrained network changes nothing."""
    with untrained(7):
        heads = {"num_heads": 12} if name == "moco" else {}
        content = LAYOUTS[name](tiny(num_classes=0, **heads))
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    first = kept(create_selector(name, weights=str(path), model=TINY))
    assert first == kept(create_selector(name, weights=str(path), model=TINY, seed=1))
    other = create_selector(name, weights="random", model=TINY)
    assert first != kept(other)
    assert weights_path(str(path)) == path


def test_grad_cam_wants_a_head_and_says_so(tmp_path) -> None:
    with untrained(7):
        network = tiny(num_classes=3)
    path = tmp_path / "weights.pth"
    torch.save({"model": network.state_dict()}, path)
    selector = create_selector("grad-cam", weights=str(path), model=TINY)
    assert len(set(kept(selector)[0])) == 20
    torch.save(tiny(num_classes=0).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"2 missing \(head.weight, head.bias\)"):
        create_selector("grad-cam", weights=str(path), model=TINY)
    with pytest.raises(RequestError, match="no classification head"):
        create_selector("grad-cam", weights="random", model="timm:vit_small_patch16_224.dino")


@pytest.mark.parametrize(("name", "make"), [("adavit", AdaViT), ("dge", DgeViT)])
def test_a_network_of_its_own_is_read_strictly(name, make, tmp_path) -> None:
    with untrained(7):
        network = make()
    path = tmp_path / "weights.pth"
    key = "state_dict" if name == "adavit" else "model"
    torch.save({key: network.state_dict()}, path)
    assert kept(create_selector(name, weights=str(path))) != kept(
        create_selector(name, weights="random")
    )
    state = network.state_dict()
    state["blocks.0.gate"] = state.pop("blocks.0.norm1.weight")
    torch.save({key: state}, path)
    with pytest.raises(CheckpointError, match=r"1 missing .*norm1.weight.* 1 unknown .*0.gate"):
        create_selector(name, weights=str(path))


def test_gfnet_reads_its_four_parts(tmp_path) -> None:
    with untrained(7):
        network = GlanceAndFocus(64, 3)
    content = {
        "model_name": "resnet50",
        "patch_size": 64,
        "flops": [1.0, 2.0, 3.0],
        "model_prime_state_dict": prefixed(network.glance.state_dict(), "module."),
        "model_state_dict": prefixed(network.focus.state_dict(), "module."),
        "policy": network.policy.state_dict(),
        "fc": {},
    }
    path = tmp_path / "gfnet.pth"
    torch.save(content, path)
    selector = create_selector("gfnet", weights=str(path))
    assert len(set(kept(selector)[0])) == 20
    assert selector.network.module.window == 64
    assert len(selector.network.module(images_for(selector, 1))) == 2, "a glance and two windows"
    del content["policy"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="has no policy"):
        create_selector("gfnet", weights=str(path))
    torch.save(tiny().state_dict(), path)
    with pytest.raises(CheckpointError, match="no checkpoint of GFNet"):
        create_selector("gfnet", weights=str(path))


def test_two_names_of_one_block_with_other_values_are_refused(tmp_path) -> None:
    content = with_groups(tiny(num_classes=0))
    content["groups.1.block_list.0.norm1.bias"] = torch.ones(192)
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"blocks.4.norm1.bias are one block"):
        create_selector("ia-red2", weights=str(path), model=TINY)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dino", {"model": "timm:resnet18"}, "cannot be given some patches only"),
        ("evit", {"model": "timm:swin_tiny_patch4_window7_224"}, "cannot be given some patches"),
        ("evit", {"model": "timm:deit_small_distilled_patch16_224"}, "cannot be given|no other"),
        ("dino", {"grid": 16}, "--image-size is 256, and the network takes 224"),
        ("dge", {"grid": 16}, "--image-size is 256, and the network takes 224"),
        ("adavit", {"model": TINY}, "has one architecture; leave --model out"),
        ("evit", {"faithful": True}, "has no other rule"),
        ("dino", {"model": "timm:vit_smal_patch16_224"}, "did you mean"),
        ("dino", {"model": "vit_small_patch16_224"}, "pass timm:NAME"),
        ("grad-cam", {"model": "timm:gcvit_xxtiny", "grid": 3, "patch_size": 7}, "grad-cam needs"),
    ],
)
def test_what_a_method_cannot_take_is_said_in_one_line(name, options, message) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        create_selector(name, weights="random", **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_another_models_weights_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no file and no folder"):
        create_selector("dino", weights=str(tmp_path / "none.pth"))
    path = tmp_path / "weights.pth"
    torch.save(tiny().state_dict(), path)
    for name in ("dino", "evit", "dynamicvit", "ia-red2", "adavit", "dge", "moco"):
        with pytest.raises(CheckpointError, match="of its parameters"):
            create_selector(name, weights=str(path))
    with pytest.raises(RequestError, match="untrained networks"):
        weights_path("random")


def test_every_method_has_its_row_filled_in() -> None:
    others = {name for name, spec in SELECTORS.items() if spec.paper}
    assert {"grad-cam", "dino", "moco", "evit", "ia-red2", "dynamicvit", "adavit", "dge", "tome",
            "gfnet", "dpc-knn", "dpc-knn-tokens", "attention-rollout"} <= others  # fmt: skip
    for name in others:
        spec = selector_spec(name)
        assert bool(spec.takes) == (spec.weights_file is not None), name
        assert not spec.keeps_homogeneous, name


def test_timms_own_weights_come_from_the_hub_and_their_file_is_named(tmp_path) -> None:
    name = "deit_tiny_patch16_224.fb_in1k"
    with untrained(7):
        network = timm.create_model("deit_tiny_patch16_224")
    content = safetensors.torch.save(network.state_dict())
    with serve_hub(tmp_path / "cache") as hub:
        config = {"architecture": "deit_tiny_patch16_224", "num_classes": 1000}
        hub.repositories[f"timm/{name}", "main"] = {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": content,
        }
        selector = create_selector("evit", weights=f"timm:{name}")
        file = weights_path(f"timm:{name}")
        assert file.read_bytes() == content
        path = tmp_path / "copy.safetensors"
        path.write_bytes(content)
        same = create_selector("evit", weights=str(path), model=f"timm:{name}")
        assert kept(selector) == kept(same)
        with pytest.raises(RequestError, match="leave --model out"):
            create_selector("evit", weights=f"timm:{name}", model=TINY)
        with pytest.raises(CheckpointError, match="cannot be had from the hub"):
            weights_path("timm:deit_base_patch16_224.fb_in1k")
