"""What is shipped is what is here: packages, data files, versions, and nothing of one machine."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline

ROOT = Path(__file__).resolve().parents[1]
TOP_PACKAGES = ("ltrp_core", "stages", "pipeline")
LARGEST_FILE_BYTES = 12_000_000

# Put together here, so that this file does not hold what it forbids.
FOREIGN = (
    *("/" + folder + "/" for folder in ("work", "root")),
    "file:" + "///",
    *(f"{host}.org" for host in ("pypi", "pythonhosted", "npmjs", "download.pytorch")),
)


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def listed_packages() -> list[str]:
    return setup_cfg()["options"]["packages"].split()


def project_files() -> list[str]:
    """Returns the files of the project: git's, ignored ones left out, or all without git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = [name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [
            file.relative_to(ROOT).as_posix()
            for top in (*TOP_PACKAGES, "tests", "docs", "docker", "benchmarks", "studies")
            for file in (ROOT / top).rglob("*")
            if "__pycache__" not in file.parts
        ]
    return sorted(name for name in names if (ROOT / name).is_file())


def test_setup_cfg_lists_exactly_the_folders_that_hold_code() -> None:
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in TOP_PACKAGES
        for file in (ROOT / top).rglob("*.py")
    }
    assert sorted(listed_packages()) == sorted(folders)


def test_every_package_has_an_init_file() -> None:
    folders = [package.replace(".", "/") for package in listed_packages()]
    assert [f for f in folders if not (ROOT / f / "__init__.py").is_file()] == []


def test_every_data_file_of_a_package_is_shipped() -> None:
    data = setup_cfg()["options.package_data"]
    packages = sorted(listed_packages(), key=len, reverse=True)
    forgotten = []
    for name in project_files():
        path = PurePosixPath(name)
        if path.parts[0] not in TOP_PACKAGES or path.suffix == ".py":
            continue
        owner = next(p for p in packages if path.is_relative_to(p.replace(".", "/")))
        inside = path.relative_to(owner.replace(".", "/"))
        patterns = [PurePosixPath(p) for p in data.get(owner, "").split()]
        same_depth = [p for p in patterns if len(p.parts) == len(inside.parts)]
        if not any(inside.match(str(p)) for p in same_depth):
            forgotten.append(name)
    assert forgotten == [], "add them to [options.package_data] of setup.cfg"


def test_the_package_and_its_metadata_name_the_same_version() -> None:
    assert pipeline.__version__ == setup_cfg()["metadata"]["version"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.!]*)", line)
            assert match, f"constraints.txt: {line!r} is not name==version"
            found[canonicalize_name(match[1])] = match[2]
    return found


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    config, pinned = setup_cfg(), pins()
    lines = config["options"]["install_requires"].splitlines()
    for extra in ("demo", "test"):
        lines += config["options.extras_require"][extra].splitlines()
    wanted = [Requirement(line) for line in lines if line]
    assert [r.name for r in wanted if canonicalize_name(r.name) not in pinned] == []
    outside = [r for r in wanted if not r.specifier.contains(pinned[canonicalize_name(r.name)])]
    assert [str(r) for r in outside] == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for name in project_files():
        lines = (ROOT / name).read_text("utf-8", errors="replace").splitlines()
        found += [
            f"{name}:{number}: {text}"
            for number, line in enumerate(lines, start=1)
            for text in FOREIGN
            if text in line
        ]
    assert found == []


def test_no_file_is_too_large_for_a_checkout() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in project_files()}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE_BYTES} == {}
