import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(os.geteuid() != 0, reason="the program asks for root first")
@pytest.mark.skipif(
    importlib.util.find_spec("boto3") is None, reason="the program imports its S3 client"
)
def test_a_clone_below_tmp_is_refused_before_a_host_is_made(tmp_path):
    """Hosts have a /tmp of their own: there they would find neither the clone nor Ray."""
    clone = Path("/tmp") / f"cluster-test-{os.getpid()}"
    try:
        shutil.copytree(FOLDER, clone / "tests" / "cluster")
        done = subprocess.run(
            [sys.executable, clone / "tests" / "cluster" / "run.py", "--out", tmp_path],
            env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])},
            capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
    finally:
        shutil.rmtree(clone, ignore_errors=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"{clone} is below /tmp" in done.stderr
    assert done.stderr.count("\n") == 1
