"""Weights from files: what loads is exactly what was trained, what cannot score is refused."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltrp_core import checkpoints
from ltrp_core.checkpoint_formats import WeightsFile, interpret
from ltrp_core.checkpoints import load_mae, save_mae, weights_sha256
from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import MAE_CONFIGS, MAEConfig, MaskedAutoencoder

SMALL = MAEConfig(
    width=64, depth=2, heads=1, decoder_width=32, decoder_depth=2, decoder_heads=1, grid=4
)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    """A small model in which no tensor is zero or one, so that a mix-up shows."""
    return _randomized(MaskedAutoencoder(SMALL)).eval()


@pytest.fixture
def state(mae: MaskedAutoencoder) -> State:
    return {key: value.clone() for key, value in mae.state_dict().items()}


def _randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def _images(side: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def _assert_equal(found: MaskedAutoencoder, expected: State) -> None:
    loaded = found.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


def _write_pth(path: Path, state: State, **rest: object) -> Path:
    torch.save({"model": state, **rest}, path)
    return path


def _refusal(source: str | Path, *words: str) -> str:
    """Returns the message with which `source` is refused: one line that holds all `words`."""
    with pytest.raises(CheckpointError) as caught:
        load_mae(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# ---- our own format ----------------------------------------------------------------------------


def test_saved_weights_come_back_bit_for_bit_and_frozen(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    save_mae(mae, tmp_path / "mae.safetensors")
    for source in (tmp_path / "mae.safetensors", str(tmp_path), tmp_path):
        loaded = load_mae(source)
        _assert_equal(loaded, mae.state_dict())
        assert isinstance(loaded, MaskedAutoencoder)
        assert loaded.config == mae.config
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert loaded.source.path == tmp_path / "mae.safetensors"
        assert (loaded.source.format, loaded.source.target) == ("ltrp", "raw")


def test_the_recorded_hash_is_that_of_the_weights_file(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "mae.safetensors"
    save_mae(mae, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_mae(tmp_path).source.sha256 == weights_sha256(path) == expected


def test_half_precision_files_load_as_float32_and_stay_close(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    save_mae(mae, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_mae(tmp_path / "half.safetensors")
    for key, value in mae.state_dict().items():
        assert loaded.state_dict()[key].dtype == torch.float32
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_equal_weights_give_equal_bytes_and_carry_their_sizes(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    extra = dict.fromkeys("abcdefgh", "x")
    for number in range(3):
        save_mae(mae, tmp_path / f"{number}.safetensors", extra=extra)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata.items() >= {"format": "ltrp-mae", "target": "raw", "a": "x"}.items()
    assert MAEConfig(**json.loads(metadata["config"])) == SMALL


def test_a_failed_save_leaves_the_earlier_file_and_nothing_else(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "mae.safetensors"
    save_mae(mae, path)
    before = path.read_bytes()
    diverged = _randomized(MaskedAutoencoder(SMALL))
    diverged.cls_token.data[0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"not finite.*cls_token"):
        save_mae(diverged, path)
    with pytest.raises(RequestError, match="target"):
        save_mae(mae, path, extra={"target": "raw"})
    with pytest.raises(OSError, match="nowhere"):
        save_mae(mae, tmp_path / "nowhere" / "mae.safetensors")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_loading_leaves_the_default_generator_alone(mae: MaskedAutoencoder, tmp_path: Path) -> None:
    save_mae(mae, tmp_path / "mae.safetensors")
    before = torch.get_rng_state()
    load_mae(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_no_longer_depend_on_the_file_once_loaded(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "mae.safetensors"
    save_mae(mae, path)
    loaded = load_mae(path)
    with open(path, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    _assert_equal(loaded, mae.state_dict())


@pytest.mark.parametrize("header", ['{"width": 64}', "not json", '{"width": 64, "color": 1}'])
def test_a_header_that_gives_no_sizes_is_refused(header: str, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors", {"format": "ltrp-mae", "config": header})
    _refusal(tmp_path, "x.safetensors", "header", "save_mae")


# ---- the MAE authors' files --------------------------------------------------------------------


def test_the_authors_files_load_with_the_options_of_their_run(
    mae: MaskedAutoencoder, state: State, tmp_path: Path
) -> None:
    path = _write_pth(
        tmp_path / "checkpoint-799.pth",
        state,
        optimizer={"state": {}, "param_groups": [{"lr": 1e-4}]},
        epoch=799,
        scaler={"scale": 65536.0},
        args=argparse.Namespace(norm_pix_loss=False, model="mae_vit_base_patch16"),
    )
    loaded = load_mae(path)
    _assert_equal(loaded, mae.state_dict())
    assert loaded.config == SMALL
    assert (loaded.source.format, loaded.source.target) == ("mae-authors", "raw")


@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: state])
def test_files_without_options_load_and_leave_the_target_open(
    wrap: Callable[[State], Any], mae: MaskedAutoencoder, state: State, tmp_path: Path
) -> None:
    torch.save(wrap(state), tmp_path / "mae_visualize.pth")
    loaded = load_mae(tmp_path / "mae_visualize.pth")
    _assert_equal(loaded, mae.state_dict())
    assert loaded.source.target == "unknown"


def test_files_of_old_torch_load(mae: MaskedAutoencoder, state: State, tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    _assert_equal(load_mae(tmp_path / "old.pth"), mae.state_dict())


@pytest.mark.parametrize("name", MAE_CONFIGS)
def test_sizes_and_heads_of_every_named_model_are_recognized(name: str) -> None:
    with torch.device("meta"):  # the real shapes without their gigabytes
        state = MaskedAutoencoder(MAE_CONFIGS[name]).state_dict()
    weights = interpret(WeightsFile(path=Path("x.pth"), state=state))
    assert weights.config == MAE_CONFIGS[name]
    checkpoints._check_keys(Path("x.pth"), weights, state)


def test_other_sizes_have_heads_64_and_32_wide(tmp_path: Path) -> None:
    config = MAEConfig(
        width=128, depth=1, heads=2, decoder_width=96, decoder_depth=1, decoder_heads=3, grid=2
    )
    _write_pth(tmp_path / "x.pth", MaskedAutoencoder(config).state_dict())
    assert load_mae(tmp_path / "x.pth").config == config


def test_widths_that_leave_the_heads_open_are_refused(tmp_path: Path) -> None:
    config = MAEConfig(
        width=48, depth=1, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=1, grid=2
    )
    _write_pth(tmp_path / "x.pth", MaskedAutoencoder(config).state_dict())
    _refusal(tmp_path / "x.pth", "heads", "48", "save_mae")


def test_weights_trained_on_normalized_pixels_are_refused_or_warned_of(
    mae: MaskedAutoencoder, state: State, tmp_path: Path
) -> None:
    args = argparse.Namespace(norm_pix_loss=True)
    path = _write_pth(tmp_path / "x.pth", state, args=args)
    _refusal(path, "normalised pixels", "83.3 -> 75.7", "mae_visualize_vit_base.pth")
    with pytest.warns(UserWarning, match="normalised pixels") as caught:
        loaded = load_mae(path, normalized_target="warn")
    assert caught[0].filename == __file__
    _assert_equal(loaded, mae.state_dict())
    assert loaded.source.target == "normalized"
    # Converting does not launder: the copy says what the original was.
    save_mae(loaded, tmp_path / "copy.safetensors")
    _refusal(tmp_path / "copy.safetensors", "normalised pixels")


def test_a_file_called_full_that_says_nothing_is_warned_of(state: State, tmp_path: Path) -> None:
    path = _write_pth(tmp_path / "mae_pretrain_vit_base_full.pth", state)
    with pytest.warns(UserWarning, match="_full predict per-patch normalised pixels"):
        assert load_mae(path).source.target == "unknown"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_without_a_decoder_are_refused(suffix: str, state: State, tmp_path: Path) -> None:
    encoder = {
        key: value
        for key, value in state.items()
        if not key.startswith("decoder_") and key != "mask_token"
    }
    path = tmp_path / f"mae_pretrain_vit_base{suffix}"
    if suffix == ".pth":
        _write_pth(path, encoder)
    else:
        save_file(encoder, path)
    _refusal(path, str(path), "encoder only", "scores need the decoder", "mae_visualize")


# ---- files that are damaged, unsafe or of something else ---------------------------------------


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    state: State, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    _write_pth(tmp_path / "x.pth", state, args=_Bomb(victim))
    _refusal(tmp_path / "x.pth", "x.pth", f"{os.mkdir.__module__}.mkdir")
    assert not victim.exists()


def test_only_the_options_namespace_is_allowed_and_only_while_loading(
    state: State, tmp_path: Path
) -> None:
    load_mae(_write_pth(tmp_path / "x.pth", state, args=argparse.Namespace()))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    _write_pth(tmp_path / "y.pth", state, args=argparse.Namespace(data=tmp_path))
    _refusal(tmp_path / "y.pth", "pathlib", "torch.save")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.5, 0.99])
def test_files_that_are_cut_short_are_refused(
    suffix: str, keep: float, mae: MaskedAutoencoder, state: State, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        _write_pth(path, state)
    else:
        save_mae(mae, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    _refusal(path, str(path), "again")


@pytest.mark.parametrize(
    "content", [b"hello world", b"<!DOCTYPE html><html></html>", b"version https://git-lfs\n" * 5]
)
def test_a_file_that_holds_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("x.pth", "x.safetensors", "x"):
        (tmp_path / name).write_bytes(content)
        _refusal(tmp_path / name, str(tmp_path / name), "download it again")


def test_a_name_that_is_no_path_says_which_file_to_get() -> None:
    for source in ("mae_base", "weights/none.pth"):
        _refusal(source, repr(source), "mae_visualize_vit_base.pth", "facebook/vit-mae-base")


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path: Path) -> None:
    _refusal(tmp_path, str(tmp_path), "mae.safetensors", "model.safetensors")


@pytest.mark.parametrize("content", [{"weights": {}}, {"model": {"a": 1}}, [1, 2], {"model": 3}])
def test_a_torch_file_without_parameters_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    _refusal(tmp_path / "x.pth", "holds no parameters")


def test_weights_of_another_kind_are_refused_with_their_keys(tmp_path: Path) -> None:
    path = _write_pth(tmp_path / "x.pth", {f"conv{n}.weight": torch.ones(1) for n in range(9)})
    _refusal(path, "no known format", "conv0.weight", "and 4 more")


def test_missing_and_unexpected_keys_are_listed_up_to_five_and_counted(
    state: State, tmp_path: Path
) -> None:
    for key in [key for key in state if key.startswith("blocks.0.") and "fc1.weight" not in key]:
        del state[key]
    state["head.weight"] = state["fc_norm.bias"] = torch.ones(2)
    message = _refusal(
        _write_pth(tmp_path / "x.pth", state),
        "missing: blocks.0.",
        "and 6 more",
        "unexpected: head.weight, fc_norm.bias",
    )
    assert len(re.findall(r"blocks\.0\.", message)) == 5


@pytest.mark.parametrize("key", ["pos_embed", "decoder_embed.weight", "blocks.0.mlp.fc1.weight"])
def test_a_missing_key_that_tells_a_size_is_named(key: str, state: State, tmp_path: Path) -> None:
    del state[key]
    _refusal(_write_pth(tmp_path / "x.pth", state), f"lacks {key}")


def test_wrong_shapes_are_named_with_what_was_expected(state: State, tmp_path: Path) -> None:
    state["blocks.1.attn.qkv.weight"] = torch.ones(192, 63)
    state["decoder_pred.bias"] = torch.ones(768, 1)
    _refusal(
        _write_pth(tmp_path / "x.pth", state),
        "blocks.1.attn.qkv.weight: expected (192, 64), found (192, 63)",
        "decoder_pred.bias: expected (768,), found (768, 1)",
    )


@pytest.mark.parametrize("shape", [(1, 16, 64), (1, 1, 64), (17, 64), ()])
def test_position_tables_of_no_square_grid_are_refused(
    shape: tuple[int, ...], state: State, tmp_path: Path
) -> None:
    state["pos_embed"] = torch.ones(shape)
    _refusal(_write_pth(tmp_path / "x.pth", state), "wrong shapes", f"pos_embed: {shape}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    value: float, state: State, tmp_path: Path
) -> None:
    state["norm.weight"][3] = value
    _refusal(_write_pth(tmp_path / "x.pth", state), "not finite", "norm.weight")


def test_integer_weights_are_refused(state: State, tmp_path: Path) -> None:
    state["norm.weight"] = torch.ones(64, dtype=torch.int8)
    _refusal(_write_pth(tmp_path / "x.pth", state), "norm.weight: torch.int8")


# ---- transformers ------------------------------------------------------------------------------

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
    return _randomized(transformers.ViTMAEForPreTraining(config)).eval()


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
    images = _images(64)
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
    _refusal(folder, "missing: blocks.0.attn.qkv.bias", "decoder_blocks.0.attn.qkv.bias")


def test_normalized_pixels_in_config_json_are_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, norm_pix_loss=True)
    _refusal(folder, "model.safetensors", "normalised pixels", "83.3 -> 75.7")


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
    _refusal(folder, "config.json", word)


def test_heads_that_do_not_divide_the_width_are_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    _refusal(_write_hub(tmp_path, vit_mae, hub_state, num_attention_heads=5), "heads=5")


def test_a_config_of_other_sizes_than_the_weights_is_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, image_size=[96, 96], num_hidden_layers=1)
    _refusal(
        folder,
        "vit.embeddings.position_embeddings: expected (1, 37, 64), found (1, 17, 64)",
        "unexpected: vit.encoder.layer.1.",
    )


def test_a_config_of_another_model_or_none_is_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    folder = _write_hub(tmp_path, vit_mae, hub_state, model_type="vit")
    _refusal(folder, "config.json", "model_type 'vit'")
    (folder / "config.json").write_text("{", encoding="utf-8")
    _refusal(folder, "config.json is not JSON")
    (folder / "config.json").unlink()
    _refusal(folder, "model.safetensors", "no config.json")


def test_queries_keys_and_values_that_do_not_match_are_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    name = "vit.encoder.layer.0.attention.attention.{}.weight"
    hub_state[name.format("query")] = torch.ones(63, 64)
    hub_state[name.format("key")] = torch.ones(65, 64)  # 192 rows again when put together
    _refusal(_write_hub(tmp_path, vit_mae, hub_state), name.format("query") + ": (63, 64)")


def test_a_parameter_under_two_names_is_refused(
    vit_mae: Any, hub_state: State, tmp_path: Path
) -> None:
    hub_state["vit.layers.0.mlp.fc1.bias"] = torch.ones(192)
    _refusal(_write_hub(tmp_path, vit_mae, hub_state), "twice", "vit.layers.0.mlp.fc1.bias")


def test_an_encoder_of_transformers_is_refused(vit_mae: Any, tmp_path: Path) -> None:
    vit_mae.vit.save_pretrained(tmp_path)
    assert "embeddings.cls_token" in load_file(tmp_path / "model.safetensors")
    _refusal(tmp_path, "encoder only")


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
    _refusal("hf-hub:someone/vit-mae", "'someone/vit-mae'", "pass the folder")
    _refusal("hf-hub:not/an/id", "'not/an/id'", "pass the folder")
