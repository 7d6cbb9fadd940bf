"""Links between the texts of the project lead somewhere, on GitHub and on the site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ELSEWHERE = ("http://", "https://", "mailto:")


def texts() -> list[Path]:
    """Returns the Markdown files of the project: git's, or all without git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in listed.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        folders = ("docs", "docker", "benchmarks", "ltrp_core")
        found = [*ROOT.glob("*.md"), *(f for one in folders for f in (ROOT / one).rglob("*.md"))]
    return sorted(file for file in found if file.is_file())


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def heading_ids(file: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a file."""
    text = re.sub(r"```.*?```", "", file.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def loaded(name: str) -> Any:
    """Returns a module of the folder of the documentation."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_relative_link_leads_to_a_file_and_a_heading_of_it() -> None:
    dead, count = [], 0
    for file in texts():
        for target in LINK.findall(without_code(file.read_text("utf-8"))):
            if target.startswith(ELSEWHERE):
                continue
            count += 1
            path, _, anchor = target.partition("#")
            linked = (file.parent / path) if path else file
            if not linked.exists() or (anchor and anchor not in heading_ids(linked)):
                dead.append(f"{file.relative_to(ROOT)}: {target}")
    assert count > 20
    assert dead == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def pages(entries: Any) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        lists = entries.values() if isinstance(entries, dict) else entries
        return [page for entry in lists for page in pages(entry)]

    listed = pages(config["nav"])
    assert sorted(listed) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))


def test_the_site_asks_for_nothing_from_the_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & set(config)


def test_every_module_of_the_api_page_is_there() -> None:
    named = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text("utf-8"), re.MULTILINE)
    assert len(named) > 10
    modules = [ROOT / name.replace(".", "/") for name in named]
    gone = [m.name for m in modules if not any(
        file.is_file() for file in (m.with_suffix(".py"), m / "__init__.py"))]  # fmt: skip
    assert gone == []


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("in [benchmarks/RESULTS.md](../benchmarks/RESULTS.md)", "in `benchmarks/RESULTS.md`"),
        ("the [rules](../CONTRIBUTING.md#versions)", "the rules (`CONTRIBUTING.md`)"),
        ("a folder, [weights/](weights/)", "a folder, `docs/weights`"),
        ("a page, [study.md](study.md)", "a page, [study.md](study.md)"),
        ("[elsewhere](https://example.com/a.md)", "[elsewhere](https://example.com/a.md)"),
        ("![picture](demo.png)", "![picture](demo.png)"),
        # Left as it is, so that the strict build names it.
        ("[gone](../gone.md)", "[gone](../gone.md)"),
    ],
)
def test_on_the_site_a_link_out_of_docs_is_the_name_of_the_file(written: str, shown: str) -> None:
    changed = loaded("site_links").without_outer_links(written, Path("page.md"), ROOT / "docs")
    assert changed == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("float (B, 3, g*p, g*p)", r"float (B, 3, g\*p, g\*p)"),
        ("one of {9, 19}[n], <b>", r"one of {9, 19}\[n\], &lt;b>"),
        ("`a*b[0]` is code, a*b not", r"`a*b[0]` is code, a\*b not"),
        ("Args:\n    *args: all\n    **more: rest", "Args:\n    *args: all\n    **more: rest"),
    ],
)
def test_on_the_site_docstrings_are_shown_as_they_are_written(written: str, shown: str) -> None:
    pytest.importorskip("griffe")
    assert loaded("plain_docstrings").escaped(written) == shown
