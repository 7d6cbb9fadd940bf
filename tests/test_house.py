"""The house stays in order: sizes of files, functions and folders, and the map of it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ltrp_core", "stages", "pipeline")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
MOST_AT_THE_TOP, MOST_IN_A_FOLDER = 8, 14


def files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def modules_of(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.py") if file.name != "__init__.py"]


def test_no_file_and_no_function_is_longer_than_one_can_hold_in_mind() -> None:
    long = []
    for file in files():
        text = file.read_text("utf-8")
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{file.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{file.relative_to(ROOT)}: {node.name} has {length} lines")
    assert long == []


def test_no_folder_of_pipeline_is_crowded() -> None:
    top = ROOT / "pipeline"
    assert len(modules_of(top)) <= MOST_AT_THE_TOP
    folders = [folder for folder in top.rglob("*") if (folder / "__init__.py").is_file()]
    crowded = {f.name: len(modules_of(f)) for f in folders}
    assert len(folders) > 10
    assert {name: count for name, count in crowded.items() if count > MOST_IN_A_FOLDER} == {}


def tree_of_the_map() -> dict[str, set[str]]:
    """Folders and what CONTRIBUTING.md says is in them."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    block = re.search(r"<!-- map -->\n```\n(.*?)```", text, re.S)
    assert block is not None
    found: dict[str, set[str]] = {}
    path: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, rest = line.strip().partition("  ")
        if name.endswith("/"):
            path = [*path[:depth], name[:-1]]
        folder = "/".join(path)
        words = rest if name.endswith("/") else line.strip()
        found.setdefault(folder, set()).update(re.findall(r"[a-z_0-9]+", words.partition("#")[0]))
    return found


def test_the_map_in_contributing_is_the_tree() -> None:
    expected = {
        str(folder.relative_to(ROOT)): {file.stem for file in modules_of(folder)}
        for package in PACKAGES
        for folder in (ROOT / package, *sorted((ROOT / package).rglob("*")))
        if (folder / "__init__.py").is_file()
    }
    assert tree_of_the_map() == expected


def test_the_changes_in_the_tour_are_the_patches_that_are_tried() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    shown = re.findall(r"```diff\n(.*?)```", page, re.S)
    patches = [
        (ROOT / "tests" / "patches" / f"{n}.patch").read_text() for n in ("loss", "selector")
    ]
    assert shown == patches
