"""The example of docs/reduced.md, as a user runs it."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from command_line import run

ROOT = Path(__file__).resolve().parents[2]


def test_a_vit_learns_from_a_reduced_folder(photographs, tmp_path) -> None:
    shard = tmp_path / "a.tar"
    classes = {"astronaut": b"0", "cat": b"1", "coffee": b"2"}
    with tarfile.open(shard, "w") as tar:
        for name, content in sorted(photographs.items()):
            for ending, data in (("jpg", content), ("cls", classes[name.split("_")[0]])):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    run("select", "--shards", shard, "--out", tmp_path / "s", "--baseline", "center",
        "--image-size", 64, "--patch-size", 16)  # fmt: skip
    run("reduce", "--shards", shard, "--selections", tmp_path / "s", "--out", tmp_path / "r",
        "--workers", 0)  # fmt: skip
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "train_reduced.py", tmp_path / "r", "--classes", "3",
         "--epochs", "6", "--batch-size", "6"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines()]
    assert len(losses) == 6
    assert losses[-1] < 0.5 * losses[0]
