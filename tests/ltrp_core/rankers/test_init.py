"""Where a ranker starts: after loading, its trunk computes what the source did."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import serve_hub
from safetensors.torch import save, save_file
from torch import Tensor, nn

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import MAE_CONFIGS, MaskedAutoencoder, load_mae, save_mae
from ltrp_core.patches import patchify
from ltrp_core.positions import sincos_positions
from ltrp_core.rankers import (
    InitReport,
    Ranker,
    create_ranker,
    initialize_ranker,
    load_ranker,
    save_ranker,
)

GRID = 4
SIDE = GRID * 16
TINY_MAE = dataclasses.replace(MAE_CONFIGS["mae_tiny"], depth=12, grid=GRID, decoder_depth=1)
"""The encoder of a vit_tiny, in front of a decoder that nobody asks for."""
HEAD = {"head.weight", "head.bias"}


def _make(name: str = "vit_tiny", seed: int = 0, **options: Any) -> Ranker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_ranker(name, **{"grid": GRID, **options}).eval()


def _randomized(model: nn.Module) -> nn.Module:
    """Gives every parameter values of its own, so that one that is not loaded shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def mae() -> MaskedAutoencoder:
    with torch.random.fork_rng(devices=[]):
        model = MaskedAutoencoder(TINY_MAE)
    return _randomized(model)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def vit() -> Any:
    """A vision transformer of timm with learned positions, for images of the rankers here."""
    with torch.random.fork_rng(devices=[]):
        return _randomized(timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=5))


def _images(batch: int, side: int = SIDE) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _tokens(ranker: Any, images: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the class token and patch tokens (B, 1 + n, D) that the head would see."""
    patches = patchify(images, ranker.patch_size)
    if visible is not None:
        patches = patches.gather(1, visible.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    tokens: Tensor = ranker.norm(ranker._trunk(patches, visible))
    return tokens


class TestMaskedAutoencoders:
    def test_the_trunk_gives_the_encoders_tokens_on_the_same_visible_patches(self, mae) -> None:
        ranker, visible = _make(), torch.tensor([[3, 0, 9, 14], [15, 2, 7, 1]])
        report = initialize_ranker(ranker, mae)
        with torch.no_grad():
            expected = mae.encode(_images(2), visible)
        torch.testing.assert_close(
            _tokens(ranker, _images(2), visible), expected, rtol=1e-4, atol=1e-5
        )
        assert report.kind == "mae"
        assert set(report.missing) == HEAD
        assert all(key.startswith("decoder_") or key == "mask_token" for key in report.unexpected)
        assert len(report.loaded) + len(report.unexpected) == len(mae.state_dict())
        assert (report.interpolated, report.notes) == ({}, ())

    @pytest.mark.parametrize("kind", ["ours", "loaded", "authors", "encoder alone", "state"])
    def test_every_form_of_it_gives_the_same_ranker(self, kind: str, mae, tmp_path: Path) -> None:
        state = mae.state_dict()
        encoder = {k: v for k, v in state.items() if not k.startswith(("decoder_", "mask_"))}
        path = tmp_path / "mae.pth"
        source: Any = path
        if kind in ("ours", "loaded"):
            save_mae(mae, tmp_path / "mae.safetensors")
            source = tmp_path if kind == "ours" else load_mae(tmp_path)
        elif kind == "authors":
            torch.save({"model": state, "epoch": 3}, path)
        elif kind == "encoder alone":
            torch.save({"model": encoder}, path)
        else:
            source = dict(state)
        expected, ranker = _make(), _make()
        initialize_ranker(expected, mae)
        report = initialize_ranker(ranker, source)
        for key, value in expected.state_dict().items():
            assert torch.equal(ranker.state_dict()[key], value), key
        assert set(report.missing) == HEAD
        assert (report.sha256 == "") == (kind == "state")

    def test_weights_for_normalized_pixels_are_welcome_here(self, mae, tmp_path: Path) -> None:
        header = {"format": "ltrp-mae", "config": json.dumps(dataclasses.asdict(TINY_MAE))}
        state = {key: value.clone() for key, value in mae.state_dict().items()}
        save_file(state, tmp_path / "x.safetensors", {**header, "target": "normalized"})
        with pytest.raises(CheckpointError, match="normalized pixels"):
            load_mae(tmp_path / "x.safetensors")
        assert initialize_ranker(_make(), tmp_path / "x.safetensors").kind == "mae"

    def test_another_width_or_depth_is_refused_naming_both(self) -> None:
        shallow = MaskedAutoencoder(dataclasses.replace(TINY_MAE, depth=3))
        ranker = _make()
        before = {key: value.clone() for key, value in ranker.state_dict().items()}
        with pytest.raises(
            RequestError,
            match=r"width 192 and depth 3, ranker 'vit_tiny' has width 192 and depth 12",
        ):
            initialize_ranker(ranker, shallow)
        assert all(torch.equal(value, before[key]) for key, value in ranker.state_dict().items())

    def test_the_ranker_that_would_fit_is_named(self, mae) -> None:
        with pytest.raises(RequestError, match=r"width 192 .*width 384 .*ranker 'vit_tiny' fits"):
            initialize_ranker(_make("vit_small"), mae)

    def test_other_attention_heads_are_refused_though_the_shapes_agree(self) -> None:
        other = MaskedAutoencoder(dataclasses.replace(TINY_MAE, heads=6))
        with pytest.raises(RequestError, match=r"has 6 attention heads, ranker 'vit_tiny' has 3"):
            initialize_ranker(_make(), other)

    def test_its_fixed_positions_are_stretched_over_another_grid(self, mae) -> None:
        ranker = _make(grid=6)
        report = initialize_ranker(ranker, mae)
        expected = sincos_positions(192, 6, learned_grid=GRID)
        assert torch.equal(ranker.state_dict()["pos_embed"], expected)
        assert report.interpolated == {
            "pos_embed": "1 x 17 x 192 -> 1 x 37 x 192, sine-cosine, stretched"
        }

    def test_other_norms_are_noted(self) -> None:
        model = MaskedAutoencoder(dataclasses.replace(TINY_MAE, norm_eps=1e-12))
        (note,) = initialize_ranker(_make(), model).notes
        assert note == "its norms have eps 1e-12, the ranker's 1e-06"


class TestTimm:
    def test_the_trunk_gives_its_features_and_keeps_its_learned_positions(
        self, vit, tmp_path: Path
    ) -> None:
        save_file(vit.state_dict(), tmp_path / "vit.safetensors")
        ranker = _make()
        report = initialize_ranker(ranker, tmp_path / "vit.safetensors")
        with torch.no_grad():
            expected = vit.forward_features(_images(2))
        torch.testing.assert_close(_tokens(ranker, _images(2)), expected, rtol=1e-4, atol=1e-5)
        assert (report.kind, set(report.unexpected)) == ("timm", HEAD)
        assert any("ImageNet's mean and deviation assumed" in note for note in report.notes)
        # The positions are saved, and are no parameter.
        save_ranker(ranker, tmp_path / "ranker", {})
        table = load_ranker(tmp_path / "ranker").state_dict()["pos_embed"]
        assert torch.equal(table, vit.pos_embed)
        assert "pos_embed" not in dict(ranker.named_parameters())

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet"])
    @pytest.mark.parametrize("head", ["token", "cls"])
    def test_a_dense_ranker_gives_its_features(self, name: str, head: str, tmp_path: Path) -> None:
        options = {"img_size": SIDE} if name.startswith("vit") else {}
        model = _randomized(timm.create_model(name, num_classes=3, **options))
        torch.save(model.state_dict(), tmp_path / "x.pth")
        ranker: Any = _make(name, head=head)
        report = initialize_ranker(ranker, tmp_path / "x.pth")
        with torch.no_grad():
            features = model.forward_features(_images(2))
            torch.testing.assert_close(ranker.backbone.model.forward_features(_images(2)), features)
        assert set(report.missing) == HEAD
        assert all(key.startswith(("head.", "fc.")) for key in report.unexpected)

    @pytest.mark.parametrize("name", ["vit_tiny", "vit_tiny_patch16_224"])
    def test_learned_positions_of_another_grid_are_interpolated_as_timm_does(
        self, name: str, vit
    ) -> None:
        theirs = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=5)
        # timm's own loading, which resizes positions.
        from timm.models.vision_transformer import checkpoint_filter_fn

        theirs.load_state_dict(checkpoint_filter_fn(vit.state_dict(), theirs))
        ranker: Any = _make(name, grid=6)
        report = initialize_ranker(ranker, vit.state_dict())
        (key,) = report.interpolated
        assert report.interpolated[key] == "1 x 17 x 192 -> 1 x 37 x 192, bicubic"
        assert torch.equal(ranker.state_dict()[key], theirs.pos_embed)

    def test_another_patch_size_sees_the_same_picture_in_larger_patches(self, vit) -> None:
        ranker: Any = _make(patch_size=32)
        report = initialize_ranker(ranker, vit.state_dict())
        assert (
            "192 x 3 x 16 x 16 -> 192 x 3 x 32 x 32"
            in report.interpolated["patch_embed.proj.weight"]
        )
        images = _images(1)
        larger = nn.functional.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)
        with torch.no_grad():
            small, large = vit.patch_embed(images), ranker.patch_embed(larger)
        similar = nn.functional.cosine_similarity(small.flatten(), large.flatten(), dim=0)
        assert float(similar) > 0.95

    def test_a_model_without_a_position_of_its_class_token_gets_a_row_of_zeros(self) -> None:
        model: Any = _randomized(
            timm.create_model(
                "vit_tiny_patch16_224", img_size=SIDE, num_classes=0, no_embed_class=True
            )
        )
        ranker = _make()
        report = initialize_ranker(ranker, model.state_dict())
        with torch.no_grad():
            expected = model.forward_features(_images(1))
        torch.testing.assert_close(_tokens(ranker, _images(1)), expected, rtol=1e-4, atol=1e-5)
        assert "zeros" in report.interpolated["pos_embed"]

    @pytest.mark.parametrize(
        ("options", "key"),
        [({"reg_tokens": 4}, "reg_token"), ({"init_values": 1e-5}, r"blocks\.0\.ls1\.gamma")],
    )
    def test_parts_that_a_ranker_lacks_are_refused(self, options: dict, key: str) -> None:
        model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=0, **options)
        with pytest.raises(RequestError, match=rf"which has no .*{key}"):
            initialize_ranker(_make(), model.state_dict())

    def test_parts_that_the_source_lacks_are_refused(self, vit) -> None:
        state = {k: v for k, v in vit.state_dict().items() if k != "blocks.3.norm1.weight"}
        with pytest.raises(RequestError, match=r"lacks blocks\.3\.norm1\.weight of ranker"):
            initialize_ranker(_make(), state)

    def test_another_architecture_is_refused(self) -> None:
        model = timm.create_model("test_resnet", num_classes=0)
        with pytest.raises(RequestError, match="is not the model of ranker 'vit_tiny'"):
            initialize_ranker(_make(), model.state_dict())

    def test_weights_that_are_not_finite_are_refused(self, vit) -> None:
        state = {key: value.clone() for key, value in vit.state_dict().items()}
        state["norm.bias"][0] = float("nan")
        with pytest.raises(CheckpointError, match=r"not finite as .*: norm\.bias"):
            initialize_ranker(_make(), state)

    def test_an_unknown_name_gets_the_nearest_ones(self) -> None:
        with pytest.raises(RequestError, match="unknown timm model 'vit_tinny_patch16_224'"):
            initialize_ranker(_make(), "timm:vit_tinny_patch16_224")

    def test_a_download_that_fails_says_what_to_do(self, tmp_path: Path) -> None:
        with (
            serve_hub(tmp_path),
            pytest.raises(CheckpointError, match=r"cannot get the weights of 'timm:vit_tiny.*path"),
        ):
            initialize_ranker(_make(), "timm:vit_tiny_patch16_224.augreg_in21k")

    @pytest.mark.parametrize("dense", [False, True])
    def test_pretrained_weights_for_other_pixel_scales_see_what_they_were_trained_on(
        self, dense: bool, tmp_path: Path
    ) -> None:
        name = "vit_tiny_patch16_224.augreg_in21k"  # mean and deviation of 0.5
        model: Any = _randomized(timm.create_model(name, num_classes=21843))
        with serve_hub(tmp_path) as hub:
            hub.repositories[f"timm/{name}", "main"] = {
                "model.safetensors": save(model.state_dict())
            }
            ranker: Any = _make("vit_tiny_patch16_224" if dense else "vit_tiny", grid=14)
            report = initialize_ranker(ranker, f"timm:{name}")
        pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        images = (pixels - mean) / std
        with torch.no_grad():
            expected = model.forward_features((pixels - 0.5) / 0.5)
            if dense:
                got = ranker.backbone.model.forward_features(images)
            else:
                got = _tokens(ranker, images)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        (note,) = report.notes
        assert note.startswith("patch_embed.proj rescaled: trained on pixels scaled by mean (0.5,")


class TestEarlierRankers:
    def test_everything_is_taken_head_included(self, tmp_path: Path) -> None:
        earlier = _make(seed=1)
        save_ranker(earlier, tmp_path, {})
        ranker = _make()
        report = initialize_ranker(ranker, tmp_path)
        with torch.no_grad():
            assert torch.equal(ranker(_images(2)), earlier(_images(2)))
        assert (report.kind, report.missing, report.unexpected) == ("ranker", (), ())
        assert len(report.sha256) == 64

    @pytest.mark.parametrize("name", ["vit_tiny", "mobile_former_26m"])
    def test_a_head_of_another_kind_starts_fresh(self, name: str, tmp_path: Path) -> None:
        save_ranker(_make(name, seed=1, head="token"), tmp_path, {})
        ranker = _make(name, head="cls")
        before = ranker.state_dict()["head.weight"].clone()
        report = initialize_ranker(ranker, tmp_path)
        assert set(report.missing) >= HEAD
        assert all(key.startswith(("head.", "backbone.embedding.")) for key in report.missing)
        assert set(report.unexpected) == HEAD
        assert torch.equal(ranker.state_dict()["head.weight"], before)

    @pytest.mark.parametrize("head", ["token", "cls"])
    def test_another_grid_equals_loading_on_that_grid(self, head: str, tmp_path: Path) -> None:
        save_ranker(_make(seed=1, head=head), tmp_path, {})
        ranker = _make(head=head, grid=6)
        report = initialize_ranker(ranker, tmp_path)
        with torch.no_grad():
            expected = load_ranker(tmp_path, grid=6)(_images(1, 96))
            assert torch.equal(ranker(_images(1, 96)), expected)
        assert ("head.weight" in report.interpolated) == (head == "cls")

    def test_a_damaged_one_is_refused_as_load_ranker_does(self, tmp_path: Path) -> None:
        save_ranker(_make(), tmp_path, {})
        (tmp_path / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"config\.json is missing"):
            initialize_ranker(_make(), tmp_path)

    def test_another_backbone_is_refused(self, tmp_path: Path) -> None:
        save_ranker(_make("test_resnet"), tmp_path, {})
        with pytest.raises(RequestError, match="is not the model of ranker 'vit_tiny'"):
            initialize_ranker(_make(), tmp_path)

    def test_the_hub_is_asked_for_a_ranker_first_and_for_an_mae_next(
        self, mae, tmp_path: Path
    ) -> None:
        save_ranker(_make(seed=1), tmp_path / "ranker", {})
        save_mae(mae, tmp_path / "model.safetensors")
        names = ("config.json", "ranker.safetensors")
        with serve_hub(tmp_path / "cache") as hub:
            hub.repositories["me/ranker", "main"] = {
                name: (tmp_path / "ranker" / name).read_bytes() for name in names
            }
            hub.repositories["me/mae", "main"] = {
                "config.json": b"{}",
                "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
            }
            assert initialize_ranker(_make(), "hf-hub:me/ranker").kind == "ranker"
            assert initialize_ranker(_make(), "hf-hub:me/mae").kind == "mae"


def test_a_file_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "ran",)

    torch.save({"model": Bomb()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="was not loaded"):
        initialize_ranker(_make(), tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_the_summary_names_what_was_interpolated_fresh_and_left_over(mae) -> None:
    report = initialize_ranker(_make(grid=6), mae)
    assert isinstance(report, InitReport)
    summary = report.summary()
    assert summary.startswith(f"{len(report.loaded)} tensors loaded from a masked autoencoder")
    for words in ("sine-cosine, stretched", "fresh: head.weight, head.bias", "left over: mask_"):
        assert words in summary
    assert "\n" not in summary
    assert json.dumps(dataclasses.asdict(report))
