"""A trained ranker for others: ONNX and torch.export files, checked against it, and the hub."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ltrp_core.errors import RequestError, first_line, unknown_name
from ltrp_core.rankers import Ranker, describe_ranker, load_ranker, locate_ranker
from ltrp_core.views import make_view, normalize, render_view
from pipeline.files import atomic_write

Format = Literal["onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)

OPSET = 18
"""Of ONNX: the lowest that torch's exporter writes without converting, so most runtimes read it."""
CLOSE_CALL = 1e-4
"""Two patches whose scores lie closer may change places: runtimes add in another order."""
PUSHED = ("ranker.safetensors", "config.json", "README.md", "metrics.parquet")
"""What goes to the hub: never checkpoints, caches or logs."""

_METADATA = "ltrp"
"""The name of the metadata inside an exported file."""

_MOST_IMAGES = 2**31 - 1
"""In a batch. torch 2.6 cannot promise that there are fewer than 2**63 - 1 if none is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was written, and how it compares with the ranker on the images of the check."""

    path: Path
    format: Format
    images: int
    """How many were compared: random ones, and photographs where scikit-image is installed."""
    max_difference: float
    """The largest difference of any score."""
    close_calls: int
    """Pairs of patches in another order, all of them closer than `CLOSE_CALL`."""
    opset: int | None = None

    def summary(self) -> str:
        """Returns the report in one line."""
        opset = f", opset {self.opset}" if self.opset else ""
        return (
            f"{self.path} ({self.format}{opset}): same ranking of {self.images} images, largest "
            f"difference of a score {self.max_difference:.2e}, {self.close_calls} pairs closer "
            f"than {CLOSE_CALL:g} swapped"
        )


class _AllPatches(nn.Module):
    """The ranker as other runtimes see it: images in, the scores of all patches out."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.ranker(images)
        return scores


def export_ranker(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, format: Format = "onnx"
) -> ExportReport:
    """Writes the ranker in `source` as one file that needs nothing of this package.

    Input `images`: float32 (B, 3, S, S), normalized; output `scores`: float32 (B, L); any B. Mean,
    deviation, grid and the rest of `describe_ranker` travel inside as JSON under the name `ltrp`
    (ONNX: metadata; torch: extra file). The file is written under another name, read back, and
    compared with the ranker; it gets its name only if it ranks the same.

    Args:
        source: a folder of a ranker, or `hf-hub:user/name`.
        out: of the file, `.onnx` or `.pt2`; its folder exists.
        format: `onnx` (torch's exporter, opset 18) or `torch` (`torch.export`, in a .pt2).

    Raises:
        CheckpointError: there is no ranker in `source`.
        RequestError: packages are missing, or the file would rank patches differently.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format == "onnx":
        _require_onnx()
    path = Path(out)
    if not path.parent.is_dir():
        raise RequestError(f"the folder {path.parent} of --out is missing; make it first")
    ranker = load_ranker(source)
    program = _trace(ranker)
    with atomic_write(path) as temporary:
        write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_torch, _read_torch)
        write(program, ranker, temporary)
        largest, swapped, images = _compare(ranker, read(temporary), str(path))
    return ExportReport(
        path=path,
        format=format,
        images=images,
        max_difference=largest,
        close_calls=swapped,
        opset=OPSET if format == "onnx" else None,
    )


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"ONNX files need {error.name}: pip install 'ltrp-pipeline[export]', or choose "
            "--format torch"
        ) from error


def _trace(ranker: Ranker) -> torch.export.ExportedProgram:
    side = ranker.grid * ranker.patch_size
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, side, side)
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=_MOST_IMAGES)}}
    with _quiet():
        return torch.export.export(
            _AllPatches(ranker).eval(), (example,), dynamic_shapes=batch, strict=True
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's exporters, which explain themselves at length, from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- the two formats ---------------------------------------------------------------------------


def _write_onnx(program: torch.export.ExportedProgram, ranker: Ranker, path: Path) -> None:
    import onnx

    with _quiet():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=["images"],
            output_names=["scores"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, {_METADATA: _description(ranker)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def score(images: Tensor) -> Tensor:
        (scores,) = session.run(["scores"], {"images": images.numpy()})
        return torch.from_numpy(scores)

    return score


def _write_torch(program: torch.export.ExportedProgram, ranker: Ranker, path: Path) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files={f"{_METADATA}.json": _description(ranker)})


def _read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    with _quiet():
        module = torch.export.load(path).module()

    def score(images: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = module(images)
        return scores

    return score


def _description(ranker: Ranker) -> str:
    return json.dumps(describe_ranker(ranker), sort_keys=True)


# ---- the check ---------------------------------------------------------------------------------


def _compare(
    ranker: Ranker, exported: Callable[[Tensor], Tensor], name: str
) -> tuple[float, int, int]:
    """Returns the largest difference of a score, swapped close pairs, and how many images.

    Raises:
        RequestError: two patches whose scores differ by more than `CLOSE_CALL` changed places.
    """
    images = _check_images(ranker.grid * ranker.patch_size)
    with torch.no_grad():
        expected = ranker(images)
    # Two batches of other sizes than the traced one: the batch is free, or this fails.
    found = torch.cat([exported(images[:1]), exported(images[1:])])
    if found.shape != expected.shape or not found.isfinite().all():
        raise RequestError(
            f"{name} was not written: its scores are {tuple(found.shape)}, some not finite, and "
            f"not the ranker's {tuple(expected.shape)}; try the other --format"
        )
    swapped = 0
    for theirs, ours in zip(found.double(), expected.double(), strict=True):
        gap = ours.unsqueeze(1) - ours
        is_swapped = (gap > 0) & (theirs.unsqueeze(1) <= theirs)
        if bool((is_swapped & (gap > CLOSE_CALL)).any()):
            worst = float(gap[is_swapped].max())
            raise RequestError(
                f"{name} was not written: it ranks patches differently (scores {worst:.1e} apart "
                "changed places); try the other --format"
            )
        swapped += int(is_swapped.sum())
    return float((found - expected).abs().max()), swapped, len(images)


def _check_images(side: int) -> Tensor:
    """Returns normalized images (B, 3, side, side): two random ones, then photographs."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(2, 3, side, side, generator=generator)
    return torch.cat([random, *(normalize(image).unsqueeze(0) for image in _photographs(side))])


def _photographs(side: int) -> list[Tensor]:
    try:
        from skimage import data
    except ImportError:
        return []
    images = []
    for name in ("astronaut", "chelsea", "coffee"):
        pixels = np.asarray(getattr(data, name)())
        view = make_view("eval", name, 0, pixels.shape[0], pixels.shape[1], 0)
        images.append(render_view(pixels, view, side))
    return images


# ---- the hub -----------------------------------------------------------------------------------


def push_to_hub(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Uploads the ranker in `folder` to the hub, in one commit; returns the address of the commit.

    Only the files in `PUSHED` go, whatever else lies there; a missing README.md is written first
    (`model_card`). The repository is made if it is missing, the branch too. Nothing is asked.

    Args:
        folder: of a trained ranker; it is loaded first, so that a damaged one stays here.
        repository: `user/name`.
        private: for a repository that is made; one that exists stays as it is.
        revision: the branch; None for the default one.

    Raises:
        CheckpointError: there is no ranker in `folder`.
        RequestError: no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    from pipeline.publishing.model_card import write_model_card

    place = locate_ranker(folder)
    load_ranker(place)
    if get_token() is None:
        raise RequestError(
            "no token for the hub; make one with write access in the settings of your account, "
            "then run `hf auth login`, or set HF_TOKEN"
        )
    write_model_card(place, repository=repository, replace=False)
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=place,
            allow_patterns=list(PUSHED),
            revision=revision,
            commit_message="Upload ranker",
        )
    except Exception as error:  # requests', httpx's and the hub's own, by version
        raise RequestError(
            f"could not push to {repository!r} ({first_line(error)}); check the name, that the "
            "token may write there, and the network"
        ) from error
    return str(commit.commit_url)
