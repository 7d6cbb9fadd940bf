"""The Slurm script, with stand-ins for Slurm's own commands and the real Ray, on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo 127.0.0.1
echo 127.0.0.1
"""
# Asks until both hosts have joined; its exit status is one that nothing else here ends with.
STAGE = f"""#!/bin/sh
for turn in $(seq 10); do
    out=$({sys.executable} -m pipeline.cli "$@")
    case "$out" in *"2 machine(s)"*) break ;; esac
done
echo "$out"
exit 7
"""


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("ltrp-pipeline", STAGE)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    # Ray's folder: its own, and short enough for sockets.
    with tempfile.TemporaryDirectory(prefix="ltrp-", dir="/tmp", ignore_cleanup_errors=True) as ray:
        return subprocess.run(
            ["bash", str(ROOT / "docker/slurm.sh"), *arguments],
            env=environment | {"RAY_TMPDIR": ray},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip


def test_without_a_stage_it_says_how_it_is_used(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_its_ray_asks_for_a_token_of_the_job_and_has_no_dashboard() -> None:
    text = (ROOT / "docker/slurm.sh").read_text("utf-8")
    mode = text.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token\n")
    assert 0 < text.index("folder=$(mktemp -d ") < mode < text.index("umask 077 && python")
    assert text.index("umask 077 && python") < text.index(" ray start ")
    assert "--include-dashboard=false" in text


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_has_all_hosts_its_status_comes_back_and_nothing_is_left(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor", "--out", str(tmp_path))
    assert "2 machine(s), 2 CPU slot(s)" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 7
    assert list(tmp_path.glob(".ltrp-job-*")) == []
