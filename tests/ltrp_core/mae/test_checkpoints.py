"""Weights from files: what loads is exactly what was trained, what cannot score is refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_checks import (
    SMALL,
    State,
    assert_equal,
    assert_refused,
    randomized,
)
from safetensors import safe_open
from safetensors.torch import save_file

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import (
    MAE_CONFIGS,
    MAEConfig,
    MaskedAutoencoder,
    checkpoints,
    load_mae,
    save_mae,
    weights_sha256,
)
from ltrp_core.mae.files import WeightsFile
from ltrp_core.mae.formats import interpret


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    """A small model in which no tensor is zero or one, so that a mix-up shows."""
    return randomized(MaskedAutoencoder(SMALL)).eval()


@pytest.fixture
def state(mae: MaskedAutoencoder) -> State:
    return {key: value.clone() for key, value in mae.state_dict().items()}


def _write_pth(path: Path, state: State, **rest: object) -> Path:
    torch.save({"model": state, **rest}, path)
    return path


# ---- our own format ----------------------------------------------------------------------------


def test_saved_weights_come_back_bit_for_bit_and_frozen(
    mae: MaskedAutoencoder, tmp_path: Path
) -> None:
    save_mae(mae, tmp_path / "mae.safetensors")
    for source in (tmp_path / "mae.safetensors", str(tmp_path), tmp_path):
        loaded = load_mae(source)
        assert_equal(loaded, mae.state_dict())
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
    diverged = randomized(MaskedAutoencoder(SMALL))
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
    assert_equal(loaded, mae.state_dict())


@pytest.mark.parametrize("header", ['{"width": 64}', "not json", '{"width": 64, "color": 1}'])
def test_a_header_that_gives_no_sizes_is_refused(header: str, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors", {"format": "ltrp-mae", "config": header})
    assert_refused(tmp_path, "x.safetensors", "header", "save_mae")


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
    assert_equal(loaded, mae.state_dict())
    assert loaded.config == SMALL
    assert (loaded.source.format, loaded.source.target) == ("mae-authors", "raw")


@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: state])
def test_files_without_options_load_and_leave_the_target_open(
    wrap: Callable[[State], Any], mae: MaskedAutoencoder, state: State, tmp_path: Path
) -> None:
    torch.save(wrap(state), tmp_path / "mae_visualize.pth")
    loaded = load_mae(tmp_path / "mae_visualize.pth")
    assert_equal(loaded, mae.state_dict())
    assert loaded.source.target == "unknown"


def test_files_of_old_torch_load(mae: MaskedAutoencoder, state: State, tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_equal(load_mae(tmp_path / "old.pth"), mae.state_dict())


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
    assert_refused(tmp_path / "x.pth", "heads", "48", "save_mae")


def test_weights_trained_on_normalized_pixels_are_refused_or_warned_of(
    mae: MaskedAutoencoder, state: State, tmp_path: Path
) -> None:
    args = argparse.Namespace(norm_pix_loss=True)
    path = _write_pth(tmp_path / "x.pth", state, args=args)
    assert_refused(path, "normalized pixels", "83.3 -> 75.7", "mae_visualize_vit_base.pth")
    with pytest.warns(UserWarning, match="normalized pixels") as caught:
        loaded = load_mae(path, normalized_target="warn")
    assert caught[0].filename == __file__
    assert_equal(loaded, mae.state_dict())
    assert loaded.source.target == "normalized"
    # Converting does not launder: the copy says what the original was.
    save_mae(loaded, tmp_path / "copy.safetensors")
    assert_refused(tmp_path / "copy.safetensors", "normalized pixels")


def test_a_file_called_full_that_says_nothing_is_warned_of(state: State, tmp_path: Path) -> None:
    path = _write_pth(tmp_path / "mae_pretrain_vit_base_full.pth", state)
    with pytest.warns(UserWarning, match="_full predict per-patch normalized pixels"):
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
    assert_refused(path, str(path), "encoder only", "scores need the decoder", "mae_visualize")


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
    assert_refused(tmp_path / "x.pth", "x.pth", f"{os.mkdir.__module__}.mkdir")
    assert not victim.exists()


def test_only_the_options_namespace_is_allowed_and_only_while_loading(
    state: State, tmp_path: Path
) -> None:
    load_mae(_write_pth(tmp_path / "x.pth", state, args=argparse.Namespace()))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    _write_pth(tmp_path / "y.pth", state, args=argparse.Namespace(data=tmp_path))
    assert_refused(tmp_path / "y.pth", "pathlib", "torch.save")


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
    assert_refused(path, str(path), "again")


@pytest.mark.parametrize(
    "content", [b"hello world", b"<!DOCTYPE html><html></html>", b"version https://git-lfs\n" * 5]
)
def test_a_file_that_holds_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("x.pth", "x.safetensors", "x"):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, str(tmp_path / name), "download it again")


def test_a_name_that_is_no_path_says_which_file_to_get() -> None:
    for source in ("mae_base", "weights/none.pth"):
        assert_refused(source, repr(source), "mae_visualize_vit_base.pth", "facebook/vit-mae-base")


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path: Path) -> None:
    assert_refused(tmp_path, str(tmp_path), "mae.safetensors", "model.safetensors")


@pytest.mark.parametrize("content", [{"weights": {}}, {"model": {"a": 1}}, [1, 2], {"model": 3}])
def test_a_torch_file_without_parameters_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "holds no parameters")


def test_weights_of_another_kind_are_refused_with_their_keys(tmp_path: Path) -> None:
    path = _write_pth(tmp_path / "x.pth", {f"conv{n}.weight": torch.ones(1) for n in range(9)})
    assert_refused(path, "no known format", "conv0.weight", "and 4 more")


def test_missing_and_unexpected_keys_are_listed_up_to_five_and_counted(
    state: State, tmp_path: Path
) -> None:
    for key in [key for key in state if key.startswith("blocks.0.") and "fc1.weight" not in key]:
        del state[key]
    state["head.weight"] = state["fc_norm.bias"] = torch.ones(2)
    message = assert_refused(
        _write_pth(tmp_path / "x.pth", state),
        "missing: blocks.0.",
        "and 6 more",
        "unexpected: head.weight, fc_norm.bias",
    )
    assert len(re.findall(r"blocks\.0\.", message)) == 5


@pytest.mark.parametrize("key", ["pos_embed", "decoder_embed.weight", "blocks.0.mlp.fc1.weight"])
def test_a_missing_key_that_tells_a_size_is_named(key: str, state: State, tmp_path: Path) -> None:
    del state[key]
    assert_refused(_write_pth(tmp_path / "x.pth", state), f"lacks {key}")


def test_wrong_shapes_are_named_with_what_was_expected(state: State, tmp_path: Path) -> None:
    state["blocks.1.attn.qkv.weight"] = torch.ones(192, 63)
    state["decoder_pred.bias"] = torch.ones(768, 1)
    assert_refused(
        _write_pth(tmp_path / "x.pth", state),
        "blocks.1.attn.qkv.weight: expected (192, 64), found (192, 63)",
        "decoder_pred.bias: expected (768,), found (768, 1)",
    )


@pytest.mark.parametrize("shape", [(1, 16, 64), (1, 1, 64), (17, 64), ()])
def test_position_tables_of_no_square_grid_are_refused(
    shape: tuple[int, ...], state: State, tmp_path: Path
) -> None:
    state["pos_embed"] = torch.ones(shape)
    assert_refused(_write_pth(tmp_path / "x.pth", state), "wrong shapes", f"pos_embed: {shape}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    value: float, state: State, tmp_path: Path
) -> None:
    state["norm.weight"][3] = value
    assert_refused(_write_pth(tmp_path / "x.pth", state), "not finite", "norm.weight")


def test_integer_weights_are_refused(state: State, tmp_path: Path) -> None:
    state["norm.weight"] = torch.ones(64, dtype=torch.int8)
    assert_refused(_write_pth(tmp_path / "x.pth", state), "norm.weight: torch.int8")
