"""Imports point one way, pipeline -> stages -> ltrp_core; heavy packages stay where they belong.

The rules are a table of `Rule`; a broken one names the file, the line and the import.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ltrp_core", "stages", "pipeline")

CORE_MAY_IMPORT = (
    "ltrp_core",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "safetensors",
    "huggingface_hub",
)
STAGES_MAY_IMPORT_OF_OURS = (
    "ltrp_core",
    "stages.protocols",
    "stages.options",
    "stages.named_weights",
    "stages.records",
    "stages.sample_rows",
    "stages.selection_arrays",
    "stages.selectors",
    "stages.score_maps",
    "stages.recent_units",
    "stages.types",
    "stages.devices",
    "stages.encoding",
    "stages.weights",
    "stages.training",
    "stages.evaluation",
)
"""Besides the method, the rooms that all stages share; never one stage another."""
ONLY_INSIDE_FUNCTIONS = (
    "skimage",
    "sklearn",
    "transformers",
    "pycocotools",
    "matplotlib",
    "tensorboard",
    "onnx",
    "onnxruntime",
    "onnxscript",
)


@dataclass(frozen=True)
class Import:
    """One imported name, as `package.module.name`, and where the import stands."""

    name: str
    line: int
    runs_on_import: bool

    def is_of(self, *packages: str) -> bool:
        return any(self.name == p or self.name.startswith(p + ".") for p in packages)


@dataclass(frozen=True)
class Rule:
    """Files under `applies` may not hold an import for which `breaks` is true."""

    says: str
    applies: Callable[[str], bool]
    breaks: Callable[[Import], bool]


def under(*prefixes: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(prefixes)


def outside(*prefixes: str) -> Callable[[str], bool]:
    return lambda path: not path.startswith(prefixes)


RULES = (
    Rule(
        f"ltrp_core imports only {', '.join(CORE_MAY_IMPORT)} and the standard library",
        under("ltrp_core/"),
        lambda i: not (i.is_of(*CORE_MAY_IMPORT) or i.is_of(*sys.stdlib_module_names)),
    ),
    Rule(
        "a stage imports no command line, no Ray, no store and nothing of pipeline",
        under("stages/"),
        lambda i: i.is_of("click", "ray", "zarr", "numcodecs", "pipeline"),
    ),
    Rule(
        "a stage imports stages.protocols and stages.options, and no other stage",
        under("stages/"),
        lambda i: i.is_of("stages") and not i.is_of(*STAGES_MAY_IMPORT_OF_OURS),
    ),
    Rule(
        "only pipeline/workers imports ray",
        outside("pipeline/workers/"),
        lambda i: i.is_of("ray"),
    ),
    Rule(
        "only pipeline/cli.py and pipeline/commands import click",
        outside("pipeline/cli.py", "pipeline/commands/"),
        lambda i: i.is_of("click"),
    ),
    Rule(
        "only pipeline/store imports zarr and numcodecs",
        outside("pipeline/store/"),
        lambda i: i.is_of("zarr", "numcodecs"),
    ),
    Rule(
        "the store knows neither the command line nor the workers",
        under("pipeline/store/"),
        lambda i: i.is_of("pipeline.cli", "pipeline.commands", "pipeline.workers"),
    ),
    Rule(
        "nobody imports tests or benchmarks",
        outside(),
        lambda i: i.is_of("tests", "benchmarks", "oracles"),
    ),
    Rule(
        f"{', '.join(ONLY_INSIDE_FUNCTIONS)} are imported inside the function that needs them",
        outside(),
        lambda i: i.runs_on_import and i.is_of(*ONLY_INSIDE_FUNCTIONS),
    ),
)


def names_of(node: ast.AST, package: str) -> list[str]:
    """Returns the absolute dotted names that `node` imports; `package` resolves relative ones."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = (above if node.level else []) + ([node.module] if node.module else [])
            return [".".join([*parts, alias.name]) for alias in node.names]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(), *_]):
            target = node.args[0].value  # type: ignore[attr-defined]
            if name in {"import_module", "__import__"} and isinstance(target, str):
                return [target]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(node: ast.AST, package: str, runs: bool = True) -> Iterator[Import]:
    """Yields the imports below `node`, told apart by whether importing the file runs them."""
    for name in names_of(node, package):
        yield Import(name, node.lineno, runs)  # type: ignore[attr-defined]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        runs = False
    guarded = node.body if is_type_checking(node) else []  # type: ignore[attr-defined]
    for child in ast.iter_child_nodes(node):
        yield from imports_of(child, package, runs and child not in guarded)


def complaints(path: str, source: str) -> list[str]:
    """Returns one `file:line` sentence for every import of `source` that a rule forbids."""
    package = ".".join(path.split("/")[:-1])
    return [
        f"{path}:{found.line}: imports {found.name}, but {rule.says}"
        for found in imports_of(ast.parse(source, path), package)
        for rule in RULES
        if rule.applies(path) and rule.breaks(found)
    ]


def source_files() -> list[str]:
    return sorted(
        str(file.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    )


def test_no_file_imports_what_its_layer_may_not() -> None:
    files = source_files()
    assert {file.split("/")[0] for file in files} == set(PACKAGES)
    found = [line for file in files for line in complaints(file, (ROOT / file).read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "line"),
    [
        ("ltrp_core/x.py", "import torch\nimport scipy.stats\n", 2),
        ("ltrp_core/x.py", "def f():\n    from stages.score import run\n", 2),
        ("ltrp_core/selectors/x.py", "from ...pipeline import cli\n", 1),
        ("stages/x.py", "from stages.score import run\n", 1),
        ("stages/x.py", "from stages import protocols, score\n", 1),
        ("stages/x.py", "from . import score\n", 1),
        ("stages/x.py", "from .score import run\n", 1),
        ("stages/x.py", "import pipeline.store\n", 1),
        ("stages/x.py", "import importlib\n\nimportlib.import_module('ray.util')\n", 3),
        ("pipeline/runs/plan.py", "import json, click\n", 1),
        ("pipeline/runs/plan.py", "def f():\n    import ray\n", 2),
        ("pipeline/runs/plan.py", "from zarr.codecs import ZstdCodec\n", 1),
        ("pipeline/store/x.py", "from pipeline.workers import Pool\n", 1),
        ("pipeline/store/x.py", "from .. import cli\n", 1),
        ("pipeline/x.py", "from tests.oracles import scoring\n", 1),
        ("pipeline/x.py", "try:\n    import skimage.data\nexcept ImportError:\n    pass\n", 2),
        ("stages/x.py", "class A:\n    from matplotlib import pyplot\n", 2),
    ],
)
def test_a_forbidden_import_is_named_with_its_line(path: str, source: str, line: int) -> None:
    places = {complaint.split(": ")[0] for complaint in complaints(path, source)}
    assert places == {f"{path}:{line}"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ltrp_core/selectors/x.py", "import math\nfrom .. import clustering\nfrom . import y\n"),
        ("ltrp_core/x.py", "import torch.nn.functional as F\nfrom timm.layers import Mlp\n"),
        ("stages/x.py", "from stages.protocols import Pool\nfrom .options import option\n"),
        ("stages/x.py", "def f():\n    import matplotlib.pyplot\n"),
        (
            "stages/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import skimage\n",
        ),
        ("pipeline/workers/ray_start.py", "import ray\n"),
        ("pipeline/cli.py", "import click\nfrom stages import score\n"),
        ("pipeline/store/x.py", "import zarr\nfrom numcodecs import Delta\n"),
        ("pipeline/x.py", "import rayon_like, clicker\n"),
    ],
)
def test_an_allowed_import_is_left_alone(path: str, source: str) -> None:
    assert complaints(path, source) == []


def test_importing_every_module_prints_nothing(tmp_path: Path) -> None:
    modules = [
        file.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for file in source_files()
        if not file.endswith("__main__.py")
    ]
    done = subprocess.run(
        [sys.executable, "-c", "".join(f"import {module}\n" for module in modules)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
