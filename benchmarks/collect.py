"""Runs the benchmarks and puts what they print on top of RESULTS.md: `make bench`.

    python benchmarks/collect.py            # quick sizes: minutes
    python benchmarks/collect.py --full     # the sizes of the results that are written by hand
    python benchmarks/collect.py --only score.py ceilings.py --out /tmp/results.md

Earlier results stay below. A script that fails is named, and the others still run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "ceilings.py",
    "score.py",
    "labels.py",
    "approximations.py",
    "number_formats.py",
    "end_to_end.py",
    "growth.py",
    "cache.py",
    "cache_runs.py",
    "train.py",
    "select_patches.py",
    "select_cost.py",
    "reduce.py",
    "evaluate.py",
)
_MARK = "\n## "


def machine() -> str:
    """The processor and GPU, in words."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ] or [platform.processor() or platform.machine()]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{os.cpu_count()} cores of {names[0]}{gpu}"


def commit() -> str:
    """The commit of the checkout, with a + if files differ from it; unknown outside of one."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain") else ""
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


def run(script: str, arguments: list[str]) -> tuple[str, bool]:
    """Returns a script's section and whether it ended well."""
    words = [script, *arguments]
    print(f"== {' '.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout.strip() if done.returncode == 0 else done.stderr.strip()[-1500:]
    print(text, flush=True)
    failed = "" if done.returncode == 0 else f" failed ({done.returncode})"
    return f"`python benchmarks/{' '.join(words)}`{failed}\n\n```\n{text}\n```\n", not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(SCRIPTS), choices=SCRIPTS)
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    arguments = parser.parse_args()
    today = datetime.date.today().isoformat()
    head = (
        f"{_MARK}{today}, `make bench`{'' if arguments.full else ' (quick sizes)'}: {machine()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, commit {commit()}\n\n"
    )
    made = [run(script, [] if arguments.full else ["--quick"]) for script in arguments.only]
    before = arguments.out.read_text(encoding="utf-8") if arguments.out.exists() else "# Results\n"
    introduction, mark, earlier = before.partition(_MARK)
    section = head + "\n".join(text for text, _ in made)
    arguments.out.write_text(introduction + section + mark + earlier, encoding="utf-8")
    print(f"on top of {arguments.out}")
    return 0 if all(fine for _, fine in made) else 1


if __name__ == "__main__":
    sys.exit(main())
