"""Classifiers of kept patches: which patches they see, what they learn, and kills."""

import json

import numpy as np
import pytest
import torch
from killed_trainings import assert_bit_equal, resumed_and_whole
from labeled_shards import CLASSES, write_labeled
from safetensors.torch import load_file
from scored_caches import QUIET
from timm.optim import create_optimizer_v2

from ltrp_core.classifiers import load_classifier, start_classifier
from ltrp_core.errors import CheckpointError, RequestError
from ltrp_core.kept_tokens import kept_output
from ltrp_core.rankers import create_ranker, save_ranker
from ltrp_core.selectors import create_selector
from ltrp_core.views import make_view, normalize, render_view
from oracles.layer_decay import recipe
from pipeline.inputs import find_shards
from pipeline.store.errors import RunMismatchError
from pipeline.training.classifier import ClassifierInputs, run_train_classifier
from pipeline.training.folder import DiskTrainingFolder
from pipeline.training.options import TrainingRunOptions
from pipeline.training_data import StagedImages, stage_images
from pipeline.units.run import run_select
from pipeline.workers import InProcessPool
from stages.select_patches import SelectConfig
from stages.train_classifier import ClassifierStep
from stages.training.classifier_config import TrainClassifierConfig
from stages.training.config import CURVE, schedule
from stages.training.ddp import Processes
from stages.training.held_out_classes import HeldOutClasses
from stages.training.hold_out import split_by_hash
from stages.training.labeled_views import LabeledImages, ViewMaker
from stages.training.mixing import Mixing

SIDE, PATCH, LENGTH = 48, 8, 36


@pytest.fixture
def labeled(photographs, tmp_path):
    return write_labeled(tmp_path / "labeled", photographs)


@pytest.fixture
def ranker(tmp_path):
    torch.manual_seed(3)
    made = create_ranker("vit_tiny", grid=6, patch_size=PATCH)
    save_ranker(made, tmp_path / "ranker", {})
    return str(tmp_path / "ranker")


@pytest.fixture
def select(labeled, tmp_path):
    """Selects half of the patches; returns the folder."""

    def start(selector, weights="", shards=labeled, **options):
        options = {"keep_ratio": (0.25, 0.5), "image_size": SIDE} | options
        patch = 0 if weights else PATCH
        config = SelectConfig(selector=selector, weights=weights, patch_size=patch, **options)
        out = tmp_path / f"selected-{selector}-{shards.name}-{len(list(tmp_path.iterdir()))}"
        run_select(config, find_shards([str(shards)]), out, InProcessPool(), QUIET)
        return str(out)

    return start


@pytest.fixture
def train(labeled, small_mae):
    """Trains the encoder of the small autoencoder."""

    def start(out, progress=QUIET, shards=labeled, run=None, validation=None, **changes):
        given = {"selections": changes.pop("selections", "")}
        given["validation_selections"] = changes.pop("validation_selections", "")
        options = {
            "init": str(small_mae), "epochs": 3, "batch_size": 5, "base_lr": 0.05, "holdout": 0.25,
        } | changes  # fmt: skip
        held_out = tuple(find_shards([str(validation)])) if validation else ()
        curve, summary = run_train_classifier(
            TrainClassifierConfig(**options),
            ClassifierInputs(
                tuple(find_shards([str(shards)])), validation_shards=held_out, **given
            ),
            out,
            progress,
            run
            or TrainingRunOptions(
                checkpoint_every=0 if progress is not QUIET else 60, loader_processes=0
            ),
        )
        return load_file(out / "classifier.safetensors"), curve, summary

    return start


def text(folder, name="curve.jsonl"):
    return (folder / name).read_text()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9, "accumulate": 2, "selector": "random", "keep_ratio": 0.5, "mixup": 0.8,
         "cutmix": 1.0},
        {"precision": "bf16", "selections": "center", "keep_ratio": 0.5, "global_pool": "avg"},
    ],
    ids=["full image", "selector", "selections"],
)  # fmt: skip
def test_a_killed_training_goes_on_bit_for_bit(train, select, tmp_path, options):
    if "selections" in options:
        options = options | {"selections": select(options["selections"])}
    folders = resumed_and_whole(train, tmp_path, options)
    for name in ("config.json", "last/config.json", "last/classifier.safetensors"):
        sides = [(folder / name).read_bytes() for folder in folders]
        assert sides[0] == sides[1], name


@pytest.mark.parametrize("selector", ["center", "random", "patch-variance", "ranker"])
def test_where_the_view_is_the_same_a_selector_trains_what_its_selections_do(
    train, select, tmp_path, selector, request
):
    weights = request.getfixturevalue("ranker") if selector == "ranker" else ""
    stored, curve, _ = train(
        tmp_path / "stored", selections=select(selector, weights), keep_ratio=0.5
    )
    chosen, same, _ = train(
        tmp_path / "chosen", selector=selector, weights=weights, keep_ratio=0.5, crop="eval",
        image_size=SIDE,
    )  # fmt: skip
    assert_bit_equal(stored, chosen)
    assert curve == same


def test_all_patches_kept_is_the_full_image(train, tmp_path):
    _, full, _ = train(tmp_path / "full")
    _, kept, _ = train(tmp_path / "kept", selector="center", keep_ratio=1.0)
    for one, other in zip(full, kept, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def views_by_hand(labeled, tmp_path, selector, keep):
    """The evaluation view, kept patches and class of every image, one at a time; by key."""
    images = StagedImages(stage_images(find_shards([str(labeled)]), tmp_path / "by-hand", QUIET))
    chooser = create_selector(selector, grid=6, patch_size=PATCH)
    found = {}
    for row, key in enumerate(images.keys):
        image = images.image(row)
        view = make_view("eval", key, 0, *image.shape[:2], 0)
        pixels = normalize(render_view(image, view, SIDE)[None])
        found[key] = (pixels, chooser.select(pixels, [key], [keep])[0], key.split("_")[0])
    return found


def test_validation_counts_every_held_out_image_once(train, labeled, tmp_path):
    _, curve, summary = train(tmp_path / "c", selector="patch-variance", keep_ratio=0.25)
    found = load_classifier(tmp_path / "c" / "last")
    views = views_by_hand(labeled, tmp_path, "patch-variance", 9)
    keys = sorted(views)
    images = StagedImages(stage_images(find_shards([str(labeled)]), tmp_path / "by-hand", QUIET))
    held_out = [images.keys[row] for row in split_by_hash(images.keys, 0.25, 0)[1].tolist()]
    assert len(held_out) == 3
    assert set(held_out) <= set(keys)
    right, loss = 0, 0.0
    for key in held_out:
        pixels, kept, subject = views[key]
        logits = kept_output(found.vit, pixels, kept)[0].detach()
        right += int(logits.argmax()) == CLASSES[subject]
        loss -= float(logits.log_softmax(dim=0)[CLASSES[subject]])
    row = curve[-1]
    assert (row["correct_top1"], row["validated"]) == (right, 3)
    assert row["accuracy_top1"] == pytest.approx(right / 3)
    assert (row["correct_top5"], row["accuracy_top5"]) == (3, 1.0), "there are three classes"
    assert row["validation_loss"] == pytest.approx(loss / 3, rel=1e-5)
    best = max(one["correct_top1"] for one in curve)
    assert any(f"({best:.0f} of 3 images)" in note for note in summary.notes)


def test_the_best_epoch_is_kept_and_the_last_beside_it(train, tmp_path):
    _, curve, summary = train(tmp_path / "c", epochs=6, base_lr=0.2)
    best = max(curve, key=lambda row: row["accuracy_top1"])["epoch"]
    config = json.loads(text(tmp_path / "c", "config.json"))
    assert config["extra"]["epoch"] == best
    assert json.loads(text(tmp_path / "c", "last/config.json"))["extra"]["epoch"] == 6
    assert any(f"weights of epoch {best:.0f} of 6 are kept" in note for note in summary.notes)


@pytest.mark.parametrize("more", [{}, {"selector": "patch-variance", "keep_ratio": 0.5}])
def test_it_learns_the_photographs(train, labeled, tmp_path, more):
    options = {"epochs": 40, "base_lr": 0.1, "layer_decay": 1.0, "drop_path": 0.0, **more}
    _, curve, _ = train(tmp_path / "c", validation=labeled, crop="eval", **options)
    assert curve[-1]["validated"] == 12
    assert curve[-1]["accuracy_top1"] > 0.9
    assert curve[0]["loss"] == pytest.approx(np.log(3), abs=0.05), "the head begins silent"
    assert curve[-1]["loss"] < 0.7


def test_how_views_are_read_changes_no_byte(train, tmp_path):
    plain, _, _ = train(tmp_path / "plain")
    ahead = TrainingRunOptions(loader_processes=1)
    assert_bit_equal(train(tmp_path / "ahead", run=ahead)[0], plain)


def test_parts_of_a_step_are_the_step(train, tmp_path):
    """To rounding: the gradients of two parts are added."""
    options = {"epochs": 1, "batch_size": 9, "drop_path": 0.0, "opt": "sgd"}
    one, _, _ = train(tmp_path / "one", **options)
    two, _, _ = train(tmp_path / "two", accumulate=2, **options)
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5


def test_groups_and_learning_rates_are_those_of_mae_s_fine_tuning(small_mae):
    vit = start_classifier("", str(small_mae), num_classes=3).vit
    config = TrainClassifierConfig(epochs=4, warmup_epochs=1.0, batch_size=256)
    optimizer = create_optimizer_v2(
        ClassifierStep(vit), opt="adamw", lr=config.lr, weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )  # fmt: skip
    curve = schedule(optimizer, config, 10, CURVE)
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    shapes = {name: value.shape for name, value in vit.named_parameters()}
    expected = recipe(shapes, depth=2, layer_decay=0.75, weight_decay=0.05)
    for step, lr in ((10, 1e-3), (5, 0.5e-3), (25, (1e-3 + 1e-6) / 2)):
        curve.step_update(step)
        found = {
            names[id(parameter)]: (group["lr"] / lr, group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert found == {name: pytest.approx(pair) for name, pair in expected.items()}, step


def test_the_optimizer_s_averages_are_those_of_the_recipe(train, tmp_path):
    train(tmp_path / "c", epochs=1)
    state = DiskTrainingFolder(tmp_path / "c", "train-classifier").resume()
    groups = state["optimizer"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.999)}


def test_images_without_a_class_are_left_out_and_counted(train, photographs, tmp_path):
    shards = write_labeled(tmp_path / "some", photographs, unlabeled=("cat_1", "coffee_2"))
    _, _, summary = train(tmp_path / "c", shards=shards)
    assert "left out 2 image(s) without a label" in summary.notes
    config = json.loads(text(tmp_path / "c", "config.json"))
    # A quarter of ten: two or three.
    assert sum(config["extra"]["images"].values()) == 10


def test_classes_of_validation_are_found_by_name(train, photo_folder, photographs, tmp_path):
    folder = tmp_path / "validation" / "coffee"
    folder.mkdir(parents=True)
    (folder / "one.jpg").write_bytes(photographs["coffee_0"])
    _, curve, _ = train(
        tmp_path / "c", shards=photo_folder, validation=tmp_path / "validation", epochs=30,
        base_lr=0.1, layer_decay=1.0, crop="eval", drop_path=0.0,
    )  # fmt: skip
    assert load_classifier(tmp_path / "c").classes == ("astronaut", "cat", "coffee")
    # There it is class 0 of one; counted by number it would be an astronaut.
    assert curve[-1]["accuracy_top1"] == 1.0
    folder.rename(folder.with_name("tea"))
    with pytest.raises(RequestError, match="class 'tea', which is none of the 3"):
        train(tmp_path / "d", shards=photo_folder, validation=tmp_path / "validation")


def test_ranks_share_the_validation_between_them(labeled, tmp_path, small_mae):
    images = StagedImages(stage_images(find_shards([str(labeled)]), tmp_path / "images", QUIET))
    numbers = np.array([CLASSES[key.split("_")[0]] for key in images.keys])
    # Of more than one part.
    rows = np.tile(np.arange(12), 20)
    views = ViewMaker(LabeledImages(images, ("a", "b", "c"), numbers), "eval", SIDE, 0)
    model = ClassifierStep(start_classifier("", str(small_mae), num_classes=3).vit)
    torch.nn.init.normal_(model.vit.head.weight)

    def counts(rank, size):
        alone = type("Alone", (Processes,), {"all_reduce_sum": lambda self, values: values})
        measured = HeldOutClasses(views, rows, lambda images, batch: None, alone(rank, size))
        first = measured.measure(model)
        assert measured.measure(model) == first, "views that were kept are the same"
        return first["correct_top1"]

    whole = counts(0, 1)
    assert 0 < whole < 240
    assert counts(0, 3) + counts(1, 3) + counts(2, 3) == whole


def test_mixed_images_have_the_classes_of_both_by_their_share():
    torch.manual_seed(0)
    label = torch.arange(8)
    images = label.float().view(8, 1, 1, 1).expand(8, 3, 16, 16).contiguous()
    for mixing in (Mixing(0.8, 0.0, 8), Mixing(0.0, 1.0, 8), Mixing(0.8, 1.0, 8)):
        for _ in range(8):
            mixed, target = mixing(images, label)
            assert target.sum(dim=1).tolist() == pytest.approx([1.0] * 8)
            # An image of class i has the color i all over: its mean is the mean class.
            mean = (target * torch.arange(8)).sum(dim=1)
            torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), mean)
    assert not Mixing(0.0, 0.0, 8).is_on


def test_changed_images_labels_or_selections_are_another_run(
    train, select, photographs, labeled, tmp_path
):
    train(tmp_path / "c", epochs=1, selections=select("center"), keep_ratio=0.5)
    with pytest.raises(RunMismatchError, match="kept_sha256"):
        train(tmp_path / "c", epochs=1, selections=select("patch-variance"), keep_ratio=0.5)
    with pytest.raises(RunMismatchError, match=r"drop_path: 0\.1 there, 0\.2 asked"):
        train(tmp_path / "c", epochs=1, selections=select("center"), keep_ratio=0.5, drop_path=0.2)
    other = write_labeled(tmp_path / "o", photographs, classes=CLASSES | {"cat": 1, "coffee": 0})
    with pytest.raises(RunMismatchError, match="labels_sha256"):
        train(tmp_path / "c", epochs=1, selections=select("center"), keep_ratio=0.5, shards=other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_ratio": 0.5}, "nothing says which patches: pass --selections or --selector"),
        ({"selections": "center", "selector": "random"}, "exclude each other"),
        ({"selections": "center", "keep_ratio": 0.75}, "holds keep ratio 0.25, 0.5, and asked"),
        ({"selections": "center", "keep_ratio": 0.5, "mixup": 0.8}, "not of mixed ones"),
        ({"selections": "center", "keep_ratio": 0.5, "image_size": 64}, "leave --image-size out"),
        ({"weights": "w"}, "--weights are those of --selector"),
        ({"selector": "ranker"}, "needs weights"),
        ({"selector": "center", "homogeneous": -0.5}, "out of range 0.0 .. 1.0"),
        ({"init": ""}, "nothing to train: pass --model timm:NAME"),
        ({"opt": "adamv"}, "unknown --opt"),
        ({"drop_path": 1.0}, "--drop-path is 1.0, out of range"),
        ({"validation_selections": "center"}, "pass all three"),
    ],
    ids=str,
)
def test_wrong_options_say_what_to_do(train, select, tmp_path, options, words):
    for name in ("selections", "validation_selections"):
        if name in options:
            options = options | {name: select(options[name])}
    with pytest.raises(RequestError, match=words):
        train(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_selections_that_do_not_fit_the_images_are_refused(
    train, select, labeled, photographs, tmp_path
):
    some = write_labeled(tmp_path / "some", photographs, names=("cat_0", "cat_1", "coffee_0"))
    with pytest.raises(RequestError, match=r"holds nothing of 9 of the 12 labeled images"):
        train(tmp_path / "c", selections=select("center", shards=some), keep_ratio=0.5)
    with pytest.raises(RequestError, match="of random views"):
        train(tmp_path / "c", selections=select("center", crop="train"), keep_ratio=0.5)
    swapped = dict(photographs) | {"cat_0": half(photographs["cat_0"])}
    other = write_labeled(tmp_path / "other", swapped)
    with pytest.raises(RequestError, match=r"'cat_0' was selected from at \[150, 180\] px and is"):
        train(tmp_path / "d", shards=other, selections=select("center"), keep_ratio=0.5)


def half(content):
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(content))
    stream = io.BytesIO()
    image.resize((90, 75)).save(stream, "JPEG")
    return stream.getvalue()


def test_a_worker_that_starts_from_other_weights_than_the_first_is_refused(
    train, tmp_path, monkeypatch
):
    def of_first(self, value):
        return "0" * 64 if isinstance(value, str) else value

    monkeypatch.setattr(Processes, "broadcast_object", of_first)
    with pytest.raises(CheckpointError, match=r"--init .* and 000000000000 on the fir"):
        train(tmp_path / "c")
