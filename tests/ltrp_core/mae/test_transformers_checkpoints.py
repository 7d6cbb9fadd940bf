"""ViTMAE of `transformers`: three generations of names, one reconstruction; and the hub."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_checks import (
    State,
    assert_refused,
    random_images,
    randomized,
)
from safetensors.torch import load_file, save_file

from ltrp_core.mae import MAE_CONFIGS, MAEConfig, MaskedAutoencoder, checkpoints, load_mae, save_mae
from ltrp_core.mae.files import WeightsFile
from ltrp_core.mae.formats import interpret

HEADS, DECODER_HEADS = 4, 2


@pytest.fixture(scope="module")
def vit_mae() -> Any:
    """A small ViTMAE of `transformers`, with heads that no rule on widths would give."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=192,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=96,
        image_size=64,
        patch_size=16,
        norm_pix_loss=False,
    )
    return randomized(transformers.ViTMAEForPreTraining(config)).eval()


@pytest.fixture
def hub_state(vit_mae: Any) -> State:
    return {_hub_name(key): value.contiguous() for key, value in vit_mae.state_dict().items()}


def _hub_name(key: str) -> str:
    """Returns how the files of the hub call a parameter, whatever the installed version does."""
    for pattern, name in (
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ):
        key = re.sub(pattern, name, key)
    return key


def _write_hub(folder: Path, vit_mae: Any, state: State, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    text = json.dumps(vit_mae.config.to_dict() | changed, default=str)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def _assert_agrees(mae: MaskedAutoencoder, vit_mae: Any) -> None:
    """Compares reconstructions of every position, and the loss, from the same visible patches."""
    images = random_images(64)
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = vit_mae(images, noise=noise)
        # Theirs keeps the visible patches in shuffled order, ours ascending: the same set.
        visible = (theirs.mask == 0).nonzero()[:, 1].view(3, 4)
        ours = mae.decode(mae.encode(images, visible), visible)
        loss = mae(images, visible)
    assert theirs.logits.std() > 0.1
    torch.testing.assert_close(ours, theirs.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-5)
    patches = vit_mae.patchify(images)
    assert torch.equal(mae.patchify(images), patches)
    assert torch.equal(mae.unpatchify(patches), images)


def _assert_is_vit_mae(source: str | Path, vit_mae: Any) -> None:
    mae = load_mae(source)
    assert mae.config == MAEConfig(
        width=64,
        depth=2,
        heads=HEADS,
        decoder_width=32,
        decoder_depth=3,
        decoder_heads=DECODER_HEADS,
        grid=4,
        mlp_ratio=3.0,
        norm_eps=1e-12,
    )
    assert (mae.source.format, mae.source.target) == ("transformers", "raw")
    _assert_agrees(mae, vit_mae)


def test_what_the_installed_transformers_saves_reconstructs_the_same(
    vit_mae: Any, tmp_path: Path
) -> None:
    vit_mae.save_pretrained(tmp_path)
    _assert_is_vit_mae(tmp_path, vit_mae)
    _assert_is_vit_mae(tmp_path / "model.safetensors", vit_mae)


def test_names_as_on_the_hub_reconstruct_the_same(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in hub_state
    assert "vit.encoder.layer.1.attention.output.dense.bias" in hub_state
    _assert_is_vit_mae(_write_hub(tmp_path, vit_mae, hub_state), vit_mae)


def test_the_size_of_the_published_base_model_fits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str), "utf-8")
    with torch.device("meta"):
        state = transformers.ViTMAEForPreTraining(config).state_dict()
        expected = MaskedAutoencoder(MAE_CONFIGS["mae_base"]).state_dict()
    file = WeightsFile(path=tmp_path / "model.safetensors", state=state)
    weights = interpret(file)
    assert weights.config == dataclasses.replace(MAE_CONFIGS["mae_base"], norm_eps=1e-12)
    checkpoints._check_keys(file.path, weights, expected)


def test_names_as_in_memory_reconstruct_the_same_also_from_a_torch_file(
    vit_mae: Any, tmp_path: Path
) -> None:
    _write_hub(tmp_path, vit_mae, {})
    (tmp_path / "model.safetensors").unlink()
    torch.save(vit_mae.state_dict(), tmp_path / "pytorch_model.bin")
    _assert_is_vit_mae(tmp_path, vit_mae)


def test_the_decoders_older_saved_names_reconstruct_the_same(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    renamed = {
        key.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."): value
        for key, value in hub_state.items()
    }
    assert renamed.keys() != hub_state.keys()
    _assert_is_vit_mae(_write_hub(tmp_path, vit_mae, renamed), vit_mae)


def test_converting_to_our_format_keeps_every_number(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    loaded = load_mae(_write_hub(tmp_path / "hub", vit_mae, hub_state))
    save_mae(loaded, tmp_path / "ours.safetensors")
    again = load_mae(tmp_path / "ours.safetensors")
    assert again.config == loaded.config
    _assert_agrees(again, vit_mae)


def test_models_without_query_key_value_biases_get_zeros(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    is_bias = re.compile(r"attention\.(query|key|value)\.bias$")
    without = {key: value for key, value in hub_state.items() if not is_bias.search(key)}
    assert len(without) == len(hub_state) - 15
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(**vit_mae.config.to_dict() | {"qkv_bias": False})
    expected = transformers.ViTMAEForPreTraining(config).eval()
    state = vit_mae.state_dict()
    expected.load_state_dict({key: state[key] for key in expected.state_dict()})
    folder = _write_hub(tmp_path / "free", vit_mae, without, qkv_bias=False)
    _assert_agrees(load_mae(folder), expected)
    folder = _write_hub(tmp_path / "lost", vit_mae, without)
    assert_refused(folder, "missing: blocks.0.attn.qkv.bias", "decoder_blocks.0.attn.qkv.bias")


def test_normalized_pixels_in_config_json_are_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, norm_pix_loss=True)
    assert_refused(folder, "model.safetensors", "normalized pixels", "83.3 -> 75.7")


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_act": "relu"},
        {"num_channels": 1},
        {"patch_size": [16, 8]},
        {"image_size": 60},
        {"decoder_intermediate_size": 128},
        {"num_attention_heads": None},
        {"layer_norm_eps": "small"},
    ],
)
def test_settings_that_are_not_supported_are_named(
    changed: dict[str, Any], vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, **changed)
    word = "ratios" if "decoder_intermediate_size" in changed else next(iter(changed))
    assert_refused(folder, "config.json", word)


def test_heads_that_do_not_divide_the_width_are_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    assert_refused(_write_hub(tmp_path, vit_mae, hub_state, num_attention_heads=5), "heads=5")


def test_a_config_of_other_sizes_than_the_weights_is_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, image_size=[96, 96], num_hidden_layers=1)
    assert_refused(
        folder,
        "vit.embeddings.position_embeddings: expected (1, 37, 64), found (1, 17, 64)",
        "unexpected: vit.encoder.layer.1.",
    )


def test_a_config_of_another_model_or_none_is_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, model_type="vit")
    assert_refused(folder, "config.json", "model_type 'vit'")
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert_refused(folder, "config.json is not JSON")
    (folder / "config.json").unlink()
    assert_refused(folder, "model.safetensors", "no config.json")


def test_queries_keys_and_values_that_do_not_match_are_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    name = "vit.encoder.layer.0.attention.attention.{}.weight"
    hub_state[name.format("query")] = torch.ones(63, 64)
    hub_state[name.format("key")] = torch.ones(65, 64)  # 192 rows again when put together
    assert_refused(_write_hub(tmp_path, vit_mae, hub_state), name.format("query") + ": (63, 64)")


def test_a_parameter_under_two_names_is_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    hub_state["vit.layers.0.mlp.fc1.bias"] = torch.ones(192)
    assert_refused(_write_hub(tmp_path, vit_mae, hub_state), "twice", "vit.layers.0.mlp.fc1.bias")


def test_an_encoder_of_transformers_is_refused(vit_mae: Any, tmp_path: Path) -> None:
    vit_mae.vit.save_pretrained(tmp_path)
    assert "embeddings.cls_token" in load_file(tmp_path / "model.safetensors")
    assert_refused(tmp_path, "encoder only")


# ---- the hub -----------------------------------------------------------------------------------


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the hub's own layout, and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_hub_id_loads_from_the_cache(vit_mae: Any, hub_state: State, offline_hub: Path) -> None:
    repository, commit = offline_hub / "models--someone--vit-mae", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    _write_hub(repository / "snapshots" / commit, vit_mae, hub_state)
    _assert_is_vit_mae("hf-hub:someone/vit-mae", vit_mae)


def test_a_download_that_fails_says_how_to_go_on_without(offline_hub: Path) -> None:
    assert_refused("hf-hub:someone/vit-mae", "'someone/vit-mae'", "pass the folder")
    assert_refused("hf-hub:not/an/id", "'not/an/id'", "pass the folder")
