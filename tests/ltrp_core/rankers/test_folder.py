import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.mae import create_mae
from ltrp_core.patches import patchify
from ltrp_core.rankers import RANKERS, Ranker, create_ranker, load_ranker, read_config, save_ranker

GRID = 4
"""64 px images keep the contract quick; the models do not care."""
LENGTH = GRID * GRID
TIMM_NAMES = ("resnet18", "vit_tiny_patch16_224", "convnext_atto")
QUICK = ("vit_tiny", "vit_small", "mobile_former_26m", *TIMM_NAMES)
HEADS = ("cls", "token")


def _make(name: str, **options: Any) -> Ranker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_ranker(name, **{"grid": GRID, **options})


def _images(batch: int, seed: int = 1, side: int = GRID * 16) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _visible(batch: int, count: int, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randperm(length, generator=generator)[:count] for _ in range(batch)]
    return torch.stack(rows)


def _warm(ranker: Ranker) -> Ranker:
    """Gives batch normalization the statistics of one batch, so that scores are of usual size."""
    for layer in ranker.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.momentum = 1.0
    with torch.no_grad():
        ranker.train()(_images(4, seed=9))
    return ranker.eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", QUICK)
class TestEveryRanker:
    def test_scores_one_number_for_each_asked_patch(self, name: str, head: str) -> None:
        ranker = _warm(_make(name, head=head))
        with torch.no_grad():
            everything = ranker(_images(2))
            some = ranker(_images(2), _visible(2, 5))
        assert everything.shape == (2, LENGTH)
        assert some.shape == (2, 5)
        assert everything.dtype == some.dtype == torch.float32
        assert bool((everything.std(dim=1) > 1e-4).all())

    def test_an_image_scores_the_same_alone_and_in_a_batch(self, name: str, head: str) -> None:
        ranker = _warm(_make(name, head=head))
        images, visible = _images(3), _visible(3, 5)
        with torch.no_grad():
            together = ranker(images, visible)
            rows = [ranker(images[b : b + 1], visible[b : b + 1]) for b in range(3)]
        torch.testing.assert_close(together, torch.cat(rows), rtol=1e-5, atol=1e-5)

    def test_gradients_reach_every_trainable_parameter(self, name: str, head: str) -> None:
        ranker = _make(name, head=head)
        scores = ranker(_images(4), torch.arange(LENGTH).expand(4, -1))
        scores.square().mean().backward()
        trainable = [(key, p) for key, p in ranker.named_parameters() if p.requires_grad]
        assert [key for key, p in trainable if p.grad is None] == []
        assert len(trainable) >= 0.9 * len(list(ranker.parameters()))

    def test_config_builds_the_same_model_again(self, name: str, head: str) -> None:
        ranker = _make(name, head=head)
        again = create_ranker(**ranker.config)
        assert again.config == ranker.config
        again.load_state_dict(ranker.state_dict())
        with torch.no_grad():
            assert torch.equal(again.eval()(_images(1)), ranker.eval()(_images(1)))

    def test_saved_and_loaded_scores_are_bit_equal(
        self, name: str, head: str, tmp_path: Path
    ) -> None:
        ranker = _warm(_make(name, head=head))
        save_ranker(ranker, tmp_path / "new", {"epoch": 3})
        loaded = load_ranker(tmp_path / "new")
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(_images(2)), ranker(_images(2)))
        saved = read_config(tmp_path / "new")
        assert (saved["ranker"], saved["extra"]) == (ranker.config, {"epoch": 3})

    def test_an_image_of_another_size_is_refused_naming_both(self, name: str, head: str) -> None:
        ranker = _make(name, head=head)
        with pytest.raises(RequestError, match=r"\(B, 3, 64, 64\).*got \(1, 3, 96, 96\)"):
            ranker(_images(1, side=96))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["vit_tiny", "vit_small"])
class TestSparseInput:
    def test_equals_the_same_trunk_on_a_sequence_gathered_by_hand(
        self, name: str, head: str
    ) -> None:
        ranker = _make(name, head=head).eval()
        images, visible = _images(2), _visible(2, 5)
        state = ranker.state_dict()
        with torch.no_grad():
            got = ranker(images, visible)
            for b in range(2):
                tokens = [state["cls_token"][0, 0] + state["pos_embed"][0, 0]]
                for i in visible[b].tolist():
                    row, col = 16 * (i // GRID), 16 * (i % GRID)
                    pixels = images[b : b + 1, :, row : row + 16, col : col + 16]
                    embedded = ranker.get_submodule("patch_embed.proj")(pixels).flatten()
                    tokens.append(embedded + state["pos_embed"][0, 1 + i])
                x = torch.stack(tokens).unsqueeze(0)
                for block in ranker.get_submodule("blocks").children():
                    x = block(x)
                x = ranker.get_submodule("norm")(x)[0]
                linear = ranker.get_submodule("head")
                expected = linear(x[0])[visible[b]] if head == "cls" else linear(x[1:])[:, 0]
                torch.testing.assert_close(got[b], expected, rtol=1e-4, atol=1e-5)

    def test_score_patches_equals_forward(self, name: str, head: str) -> None:
        ranker = _make(name, head=head).eval()
        images, visible = _images(2), _visible(2, 5)
        patches = torch.stack([patchify(images, 16)[b][visible[b]] for b in range(2)])
        with torch.no_grad():
            assert torch.equal(ranker.score_patches(patches, visible), ranker(images, visible))

    def test_pixels_outside_the_visible_set_change_nothing(self, name: str, head: str) -> None:
        ranker = _make(name, head=head).eval()
        images, visible = _images(1), torch.tensor([[0, 3]])
        changed = images.clone()
        changed[:, :, 16:] = 7.0
        with torch.no_grad():
            assert torch.equal(ranker(changed, visible), ranker(images, visible))

    def test_scores_follow_the_order_of_the_visible_indices(self, name: str, head: str) -> None:
        ranker = _make(name, head=head).eval()
        images, visible = _images(2), _visible(2, 5)
        with torch.no_grad():
            forwards, backwards = ranker(images, visible), ranker(images, visible.flip(1))
        torch.testing.assert_close(backwards.flip(1), forwards, rtol=1e-4, atol=1e-5)

    def test_all_patches_in_order_equal_no_visible_set(self, name: str, head: str) -> None:
        ranker = _make(name, head=head).eval()
        with torch.no_grad():
            listed = ranker(_images(2), torch.arange(LENGTH).expand(2, -1))
            assert torch.equal(listed, ranker(_images(2)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["vit_tiny", "mobile_former_26m", "resnet18"])
def test_dense_input_gathers_from_the_scores_of_all_patches(name: str, head: str) -> None:
    ranker = _make(name, head=head, input="dense").eval()
    images, visible = _images(2), _visible(2, 5)
    with torch.no_grad():
        assert torch.equal(ranker(images, visible), ranker(images).gather(1, visible))
    assert not ranker.sparse_input
    with pytest.raises(RequestError, match="dense input"):
        ranker.score_patches(torch.zeros(2, 5, 768), visible)


def test_vit_base_scores_and_has_the_size_of_vit_base() -> None:
    ranker = _make("vit_base", head="token").eval()
    with torch.no_grad():
        assert ranker(_images(1), _visible(1, 3)).shape == (1, 3)
    assert sum(p.numel() for p in ranker.parameters()) == pytest.approx(85.6e6, rel=0.005)


@pytest.mark.parametrize("name", ["vit_tiny", "mobile_former_26m", "resnet18"])
@pytest.mark.parametrize(("grid", "patch_size"), [(7, 16), (4, 32)])
def test_token_head_works_on_other_grids(name: str, grid: int, patch_size: int) -> None:
    ranker = create_ranker(name, head="token", grid=grid, patch_size=patch_size).eval()
    with torch.no_grad():
        scores = ranker(_images(1, side=grid * patch_size))
    assert scores.shape == (1, grid * grid)


def test_token_head_of_a_stride_32_network_resizes_its_score_map() -> None:
    ranker = _warm(_make("resnet18", head="token"))
    images = _images(1)
    with torch.no_grad():
        features = ranker.get_submodule("backbone.model").forward_features(images)  # type: ignore[operator]
        linear = ranker.get_submodule("head")
        coarse = linear(features.permute(0, 2, 3, 1))[..., 0]
        got = ranker(images).view(GRID, GRID)
    assert coarse.shape == (1, 2, 2)
    # Half-pixel centers, a scale of 2: the corners keep their value, the rest are 3:1 mixtures.
    torch.testing.assert_close(got[0, 0], coarse[0, 0, 0])
    torch.testing.assert_close(got[0, 1], 0.75 * coarse[0, 0, 0] + 0.25 * coarse[0, 0, 1])
    torch.testing.assert_close(got[2, 0], 0.25 * coarse[0, 0, 0] + 0.75 * coarse[0, 1, 0])


def test_a_network_with_channels_last_features_scores_its_own_positions() -> None:
    ranker = create_ranker("swin_tiny_patch4_window7_224", head="token", grid=7, patch_size=32)
    ranker.eval()
    with torch.no_grad():
        features = ranker.get_submodule("backbone.model").forward_features(_images(1, side=224))  # type: ignore[operator]
        expected = ranker.get_submodule("head")(features)[..., 0].flatten(1)
        torch.testing.assert_close(ranker(_images(1, side=224)), expected)


def test_training_mode_has_no_dropout_nor_stochastic_depth() -> None:
    ranker = create_ranker("swin_tiny_patch4_window7_224", grid=7, patch_size=32).train()
    with torch.no_grad():
        first = ranker(_images(1, side=224))
        assert torch.equal(ranker(_images(1, side=224)), first)


def test_an_mae_encoder_loads_into_the_trunk_and_gives_the_same_tokens() -> None:
    mae = create_mae("mae_base").eval()
    encoder = {k: v for k, v in mae.state_dict().items() if not k.startswith(("decoder", "mask"))}
    ranker = create_ranker("vit_base", head="cls").eval()
    result = ranker.load_state_dict(encoder, strict=False)
    assert result.unexpected_keys == []
    assert sorted(result.missing_keys) == ["head.bias", "head.weight"]
    images, visible = _images(1, side=224), _visible(1, 4, length=196)
    with torch.no_grad():
        cls = mae.encode(images, visible)[:, 0]
        expected = ranker.get_submodule("head")(cls).gather(1, visible)
        torch.testing.assert_close(ranker(images, visible), expected, rtol=1e-4, atol=1e-5)


def test_a_timm_vision_transformers_state_loads_into_the_trunk() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    result = create_ranker("vit_tiny").load_state_dict(model.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert sorted(result.missing_keys) == ["head.bias", "head.weight"]


def test_scores_stay_float32_under_autocast() -> None:
    for name, head in [("vit_tiny", "token"), ("resnet18", "cls"), ("resnet18", "token")]:
        ranker = _make(name, head=head).eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert ranker(_images(1)).dtype == torch.float32


def test_parameters_past_the_feature_map_are_frozen() -> None:
    ranker = _make("convnext_atto", head="token")
    frozen = {key for key, p in ranker.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.model.head.norm.weight", "backbone.model.head.norm.bias"}


class TestWrongRequests:
    def test_names_defined_here_are_listed(self) -> None:
        assert RANKERS == ("vit_tiny", "vit_small", "vit_base", "mobile_former_26m")

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("vit_tinny", "vit_tiny"), ("resnet5O", "resnet50"), ("@@@", "mobile_former_26m")],
    )
    def test_an_unknown_name_gets_the_nearest_ones(self, name: str, hint: str) -> None:
        with pytest.raises(RequestError, match=f"unknown ranker '{name}'.*{hint}"):
            create_ranker(name)

    def test_an_unknown_head_or_input_is_refused(self) -> None:
        with pytest.raises(RequestError, match="unknown head 'tokens'; did you mean token"):
            create_ranker("vit_tiny", head="tokens")  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="unknown input 'spare'; did you mean sparse"):
            create_ranker("vit_tiny", input="spare")  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["resnet18", "mobile_former_26m", "vit_tiny_patch16_224"])
    def test_sparse_input_is_refused_where_the_model_needs_all_patches(self, name: str) -> None:
        with pytest.raises(RequestError, match="cannot have sparse input"):
            create_ranker(name, input="sparse")

    def test_a_grid_of_nothing_is_refused(self) -> None:
        with pytest.raises(RequestError, match="grid=0"):
            create_ranker("vit_tiny", grid=0)

    def test_a_backbone_without_a_feature_map_is_refused_for_the_token_head(self) -> None:
        with pytest.raises(RequestError, match=r"pit_ti_224.*every patch would score the same"):
            create_ranker("pit_ti_224", head="token")

    @pytest.mark.parametrize(
        "visible",
        [
            torch.zeros(2, 3),
            torch.zeros(2, 3, dtype=torch.int32),
            torch.zeros(1, 3, dtype=torch.int64),
            torch.zeros(3, dtype=torch.int64),
            torch.full((2, 3), LENGTH),
            torch.full((2, 3), -1),
        ],
    )
    def test_visible_sets_of_another_kind_are_refused(self, visible: Tensor) -> None:
        with pytest.raises(RequestError, match="visible must"):
            _make("vit_tiny")(_images(2), visible)

    def test_patches_that_do_not_fit_their_positions_are_refused(self) -> None:
        ranker = _make("vit_tiny")
        with pytest.raises(RequestError, match=r"patches must be \(B, n, 768\)"):
            ranker.score_patches(torch.zeros(2, 5, 588), _visible(2, 5))
        with pytest.raises(RequestError, match=r"visible must be \(2, 5\)"):
            ranker.score_patches(torch.zeros(2, 5, 768), _visible(2, 4))


class TestAnotherGrid:
    """A ranker saved for one grid is used on another."""

    def _smooth_images(self, side: int) -> Tensor:
        """The same picture at any resolution: a few soft spots on a slope."""
        axis = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        spots = [
            torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.02)
            for cx, cy in ((0.3, 0.3), (0.7, 0.6))
        ]
        return torch.stack([2 * spots[0] - x, 2 * spots[1] - y, spots[0] - spots[1]]).unsqueeze(0)

    def _saved(self, folder: Path, name: str, head: str, grid: int) -> Ranker:
        ranker = _make(name, head=head, grid=grid).eval()
        save_ranker(ranker, folder, {})
        return ranker

    def test_a_ranker_saved_at_14_loads_at_16_and_draws_a_similar_map(self, tmp_path: Path) -> None:
        small = self._saved(tmp_path, "vit_tiny", "token", 14)
        wide = load_ranker(tmp_path, grid=16)
        assert (wide.grid, wide.config["grid"], wide.training) == (16, 16, False)
        with torch.no_grad():
            before = small(self._smooth_images(14 * 16)).view(1, 1, 14, 14)
            after = wide(self._smooth_images(16 * 16)).view(1, 1, 16, 16)
            # What a table that was not carried over gives: the positions 14 and 15 are new to it.
            fresh = _make("vit_tiny", grid=16).eval()
            state = {k: v for k, v in small.state_dict().items() if k != "pos_embed"}
            fresh.load_state_dict(state, strict=False)
            shifted = fresh(self._smooth_images(16 * 16)).view(1, 1, 16, 16)
        resized = nn.functional.interpolate(before, (16, 16), mode="bicubic").flatten()
        similar, worse = (
            float(torch.corrcoef(torch.stack([resized, scores.flatten()]))[0, 1])
            for scores in (after, shifted)
        )
        assert similar > 0.95
        assert similar > worse

    def test_the_rows_of_a_cls_head_are_resized_as_a_map(self, tmp_path: Path) -> None:
        small = self._saved(tmp_path, "resnet18", "cls", 4)
        wide = load_ranker(tmp_path, grid=8)
        features = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            old = small.get_submodule("head")(features).view(2, 1, 4, 4)
            new = wide.get_submodule("head")(features).view(2, 1, 8, 8)
        expected = nn.functional.interpolate(old, (8, 8), mode="bicubic", antialias=True)
        torch.testing.assert_close(new, expected)

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("name", ["vit_tiny", "mobile_former_26m", *TIMM_NAMES[:2]])
    def test_every_family_scores_another_grid(self, name: str, head: str, tmp_path: Path) -> None:
        self._saved(tmp_path, name, head, GRID)
        wide = load_ranker(tmp_path, grid=6)
        save_ranker(wide, tmp_path / "wide", {})
        again = load_ranker(tmp_path / "wide")
        with torch.no_grad():
            scores = wide(_images(1, side=96))
            assert scores.shape == (1, 36)
            assert bool(scores.isfinite().all())
            assert torch.equal(again(_images(1, side=96)), scores)

    def test_the_saved_grid_is_no_change(self, tmp_path: Path) -> None:
        ranker = self._saved(tmp_path, "vit_tiny", "token", GRID)
        state = load_ranker(tmp_path, grid=GRID).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in ranker.state_dict().items())

    def test_a_model_that_cannot_be_carried_over_is_refused_with_the_key(
        self, tmp_path: Path
    ) -> None:
        ranker = create_ranker("swin_tiny_patch4_window7_224", grid=7, patch_size=32)
        save_ranker(ranker, tmp_path, {})
        with pytest.raises(
            RequestError, match=r"swin\S+ cannot be carried.*relative_position_bias"
        ):
            load_ranker(tmp_path, grid=4)


class TestWhatConfigSays:
    def test_all_that_using_the_ranker_takes_is_there(self, tmp_path: Path) -> None:
        ranker = _make("vit_tiny", grid=14)
        save_ranker(ranker, tmp_path, {"measures": {"tau": 0.5}})
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["ranker"] == {
            "name": "vit_tiny",
            "head": "token",
            "input": "sparse",
            "grid": 14,
            "patch_size": 16,
        }
        pixels = {"image_size": 224, "interpolation": "bicubic", "antialias": True}
        pixels |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        assert saved["input"] == pixels
        sizes = {key: saved["architecture"][key] for key in ("width", "depth", "heads")}
        assert sizes == {"width": 192, "depth": 12, "heads": 3}
        assert saved["versions"].keys() >= {"torch", "timm"}
        assert saved["extra"] == {"measures": {"tau": 0.5}}

    def test_weights_that_diverged_are_not_saved_over_good_ones(self, tmp_path: Path) -> None:
        ranker = _make("vit_tiny")
        save_ranker(ranker, tmp_path, {})
        before = (tmp_path / "ranker.safetensors").read_bytes()
        with torch.no_grad():
            ranker.get_parameter("norm.weight")[3] = float("nan")
        with pytest.raises(
            CheckpointError,
            match=r"not finite as .*: norm\.weight; the training diverged",
        ):
            save_ranker(ranker, tmp_path, {})
        assert (tmp_path / "ranker.safetensors").read_bytes() == before

    def test_whoever_may_read_the_config_may_read_the_weights(self, tmp_path: Path) -> None:
        save_ranker(_make("vit_tiny"), tmp_path, {})
        modes = {(tmp_path / name).stat().st_mode for name in ("config.json", "ranker.safetensors")}
        assert len(modes) == 1


class TestDamagedFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_ranker(_make("vit_tiny", head="token"), tmp_path, {})
        return tmp_path

    @pytest.mark.parametrize("name", ["ranker.safetensors", "config.json"])
    def test_a_missing_file_is_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            load_ranker(folder)

    def test_missing_and_unexpected_keys_are_named(self, folder: Path) -> None:
        state = load_file(folder / "ranker.safetensors")
        state["neck.weight"] = state.pop("norm.weight")
        save_file(state, folder / "ranker.safetensors")
        with pytest.raises(
            CheckpointError, match=r"missing: norm\.weight; unexpected: neck\.weight"
        ):
            load_ranker(folder)

    def test_a_wrong_shape_is_named_with_both_shapes(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["ranker"]["head"] = "cls"
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            CheckpointError, match=r"head\.weight: \(1, 192\) instead of \(16, 192\)"
        ):
            load_ranker(folder)

    def test_truncated_weights_are_refused(self, folder: Path) -> None:
        path = folder / "ranker.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="damaged"):
            load_ranker(folder)

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"ranker": {"name": "no"}}', '{"ranker": {"size": 1}}']
    )
    def test_a_config_of_something_else_is_refused(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_ranker(folder)

    def test_a_config_of_another_library_is_named_as_such(self, folder: Path) -> None:
        (folder / "config.json").write_text('{"model_type": "vit_mae"}')
        with pytest.raises(
            CheckpointError, match=r"type 'vit_mae'; pass a folder that train-ranker"
        ):
            load_ranker(folder)

    def test_a_folder_that_is_missing_and_a_file_in_its_place_are_told_apart(
        self, folder: Path
    ) -> None:
        with pytest.raises(CheckpointError, match="it is no folder; pass a folder"):
            load_ranker(folder / "nowhere")
        with pytest.raises(CheckpointError, match="it is a file; pass the folder it lies in"):
            load_ranker(folder / "ranker.safetensors")

    def test_weights_that_are_not_finite_are_refused(self, folder: Path) -> None:
        state = load_file(folder / "ranker.safetensors")
        state["head.bias"][0] = float("inf")
        save_file(state, folder / "ranker.safetensors")
        with pytest.raises(
            CheckpointError, match=r"ranker\.safetensors: not finite as .*: head\.bias"
        ):
            load_ranker(folder)

    def test_loading_leaves_the_default_generator_alone(self, folder: Path) -> None:
        before = torch.get_rng_state()
        load_ranker(folder)
        load_ranker(folder, grid=3)
        assert torch.equal(torch.get_rng_state(), before)
