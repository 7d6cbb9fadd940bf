"""`make docker-check` carries out the Dockerfile, in order; here without a root to run in."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("try_install", ROOT / "docker/try_install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["try_install"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def try_install() -> Any:
    return loaded()


def builder(
    module: Any, monkeypatch: pytest.MonkeyPatch, dockerfile: Path, folder: Path
) -> tuple[Any, list[tuple[str, dict[str, str], list[Any]]]]:
    """Returns a builder with an empty root for Debian, and what it would have run."""
    ran: list[tuple[str, dict[str, str], list[Any]]] = []

    def run_inside(image: Any, words: list[str], binds: Any = (), timeout: Any = None) -> None:
        ran.append((words[-1], image.environment | image.arguments, list(binds)))

    (folder / "debian").mkdir(parents=True)
    monkeypatch.setattr(module, "run_inside", run_inside)
    monkeypatch.setattr(module.Builder, "debian", lambda self: module.Image(folder / "debian"))
    given = {"PIP_EXTRA_INDEX_URL": "given", "UNKNOWN": "left out"}
    return module.Builder(dockerfile, folder, "trixie", given), ran


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_instruction_of_the_dockerfile_is_carried_out(
    try_install: Any, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerfile = ROOT / "docker/Dockerfile"
    build, ran = builder(try_install, monkeypatch, dockerfile, tmp_path / "roots")
    image = build.build(target)
    commands = [command for command, _, _ in ran]
    written = try_install.stages(dockerfile)
    expected = [
        one.value.rpartition("target=/dist ")[2]
        for stage in ("base", "wheel", target)
        for one in written[stage].instructions
        if one.keyword == "RUN"
    ]
    # The wheel is built when it is first mounted, after the dependencies.
    assert sorted(commands) == sorted(expected)
    assert commands[-1] == "pip install --no-deps /dist/*.whl"
    assert commands[-2] == "pip wheel --no-deps --wheel-dir /dist ."
    assert ran[-1][2] == [(tmp_path / "roots/wheel/dist", "/dist")]
    assert all(environment["PIP_NO_CACHE_DIR"] == "1" for _, environment, _ in ran)
    assert ran[-1][1].get("PIP_EXTRA_INDEX_URL") == ("given" if target == "cpu" else None)
    assert (image.user, image.folder) == ("10001", "/home/ltrp")
    assert (image.entrypoint, image.command) == (["ltrp-pipeline"], ["--help"])
    assert (image.health, image.health_seconds) == (["ltrp-pipeline", "doctor"], 60.0)
    assert (image.root / "src/requirements.py").is_file()
    assert (tmp_path / "roots/wheel/src/pipeline/cli.py").is_file()
    assert not (image.root / "src/pipeline").exists()


def test_another_stage_has_neither_the_arguments_nor_the_files_of_this_one(
    try_install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        "FROM debian AS one\nENV A=1 \\\n    B='two words'\nARG C=3\n# RUN not this\nRUN first\n"
        "WORKDIR /here\nFROM one AS two\nCOPY LICENSE mine/\nRUN second\n"
    )
    build, ran = builder(try_install, monkeypatch, dockerfile, tmp_path / "roots")
    two = build.build("two")
    assert ran == [
        ("first", {"A": "1", "B": "two words", "C": "3"}, []),
        ("second", {"A": "1", "B": "two words"}, []),
    ]
    assert (two.root / "here/mine/LICENSE").is_file()
    assert not (build.build("one").root / "here/mine").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("RUN --mount=type=secret,id=a cat", "--mount=type=bind"),
        ("RUN --network=none true", "--network=none"),
        ("ONBUILD RUN true", "not understood"),
        ("ENV A=$B", "variables"),
        ("COPY --chown=ltrp LICENSE .", "flags"),
        ("COPY not-there .", "not-there is not there"),
    ],
)
def test_what_it_does_not_understand_ends_it_with_the_line(
    try_install: Any, line: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"# a comment\nFROM debian AS one\n{line}\n")
    build, _ = builder(try_install, monkeypatch, dockerfile, tmp_path / "roots")
    with pytest.raises(SystemExit) as ended:
        build.build("one")
    assert "line 3" in str(ended.value)
    assert why in str(ended.value)


def test_it_says_what_is_missing(try_install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="root"):
        try_install.end_if_something_is_missing()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match="debootstrap"):
        try_install.end_if_something_is_missing()
    monkeypatch.delenv("DEBIAN_MIRROR", raising=False)
    with pytest.raises(SystemExit, match="set DEBIAN_MIRROR"):
        try_install.mirror()
    monkeypatch.setenv("DEBIAN_MIRROR", "http://mirror.example/debian")
    assert try_install.mirror() == "http://mirror.example/debian"


def test_pips_index_of_this_machine_holds_inside_but_its_folders_do_not(
    try_install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nextra-index-url = file:/here/simple https://more.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    found = try_install.settings_of_this_machine()
    assert found["PIP_INDEX_URL"] == "https://index.example/simple"
    assert "https://more.example/simple" in found["PIP_EXTRA_INDEX_URL"]
    assert "file:" not in found["PIP_EXTRA_INDEX_URL"]
    assert found["https_proxy"] == "http://proxy.example:3128"


def test_an_unknown_target_is_named(try_install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(try_install, "end_if_something_is_missing", lambda: None)
    monkeypatch.setattr(sys, "argv", ["try_install", "--target", "tpu"])
    with pytest.raises(SystemExit, match="tpu"):
        try_install.main()


def test_a_command_that_fails_inside_ends_it_with_the_line(
    try_install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian AS one\nRUN false\n")
    build, _ = builder(try_install, monkeypatch, dockerfile, tmp_path / "roots")

    def failing(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "false")

    monkeypatch.setattr(try_install, "run_inside", failing)
    with pytest.raises(SystemExit, match="line 2, RUN false"):
        build.build("one")
