"""The Dockerfile, read instruction by instruction: no container engine is needed, or proves it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
TARGETS = ("cpu", "cuda")
SECRET = re.compile(r"(?:secret|token|passw|credential|access_?key)", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """Returns (keyword, arguments) of all stages, continued lines joined, comments left out."""
    with open(DOCKER / "Dockerfile", "rb") as file:
        found = DockerfileParser(fileobj=file).structure
    return [
        (one["instruction"], " ".join(one["value"].split()))
        for one in found
        if one["instruction"] != "COMMENT"
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions that each stage has, those of the stage it starts from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for keyword, rest in instructions():
        if keyword == "FROM":
            image, _, name = rest.partition(" AS ")
            current = [*found.get(image, []), ("FROM", image)]
            found[name] = current
        else:
            current.append((keyword, rest))
    return found


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(linter), "--no-color", "docker/Dockerfile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_every_instruction_is_one_that_docker_knows() -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER"}
    known |= {"ENTRYPOINT", "CMD", "HEALTHCHECK"}
    assert {keyword for keyword, _ in instructions()} <= known


def test_both_targets_are_slim_and_the_default_is_cpu() -> None:
    assert set(TARGETS) <= set(stages())
    assert list(stages())[-1] == "cpu"
    for target in TARGETS:
        first = next(rest for keyword, rest in stages()[target] if keyword == "FROM")
        assert first == "python:${PYTHON_VERSION}-slim"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_ends_as_an_ordinary_user_and_installs_nothing_after(target: str) -> None:
    keywords = [keyword for keyword, _ in stages()[target]]
    users = [rest for keyword, rest in stages()[target] if keyword == "USER"]
    assert users == ["10001"]
    assert "RUN" not in keywords[keywords.index("USER") :]
    assert any("useradd" in rest and "--uid 10001 ltrp" in rest for _, rest in stages()[target])


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_healthy_by_doctor(target: str) -> None:
    (check,) = [rest for keyword, rest in stages()[target] if keyword == "HEALTHCHECK"]
    command = json.loads(check.partition(" CMD ")[2])
    assert command == ["ltrp-pipeline", "doctor"]
    (entry,) = [rest for keyword, rest in stages()[target] if keyword == "ENTRYPOINT"]
    assert json.loads(entry) == ["ltrp-pipeline"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_comes_from_the_index_is_pinned_and_comes_before_the_code(target: str) -> None:
    installs = [rest for _, rest in stages()[target] if "pip install" in rest]
    assert len(installs) == 2
    assert "-c constraints.txt -r requirements.txt" in installs[0]
    assert "--no-deps" in installs[1]
    assert "from=wheel" in installs[1]
    copied = [rest for keyword, rest in stages()[target] if keyword == "COPY"]
    assert copied == ["setup.cfg constraints.txt docker/requirements.py ./"]


def test_all_that_is_copied_is_there_and_all_code_is_copied() -> None:
    copied = {
        word
        for keyword, rest in instructions()
        if keyword == "COPY"
        for word in rest.split()[:-1]
        if not word.startswith("--")
    }
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []
    assert {"ltrp_core", "stages", "pipeline"} <= copied


def test_no_secret_is_an_argument_or_variable_of_the_image() -> None:
    named = [rest for keyword, rest in instructions() if keyword in ("ARG", "ENV")]
    assert [rest for rest in named if SECRET.search(rest)] == []


def test_the_layer_of_dependencies_holds_what_setup_cfg_asks_for_each_pinned() -> None:
    script = [sys.executable, str(DOCKER / "requirements.py"), str(ROOT / "setup.cfg")]
    done = subprocess.run([*script, "cluster", "demo"], capture_output=True, text=True, check=True)
    listed = {canonicalize_name(Requirement(line).name) for line in done.stdout.splitlines()}
    assert {"torch", "timm", "zarr", "s3fs", "gcsfs", "scikit-image"} <= listed
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {canonicalize_name(pin.partition("==")[0]) for pin in pins if "==" in pin}
    assert listed - pinned == set()
    assert "ray[default]" in done.stdout
    unknown = subprocess.run([*script, "nonsense"], capture_output=True, text=True, check=False)
    assert unknown.returncode != 0
