"""`submit` on a real cluster with a dashboard and a token, over a link that is cut."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from command_line import PROGRAM

from pipeline.store import open_cache

pytest.importorskip("aiohttp_cors", reason="needs ray[default]")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]


class Link:
    """A TCP relay to a port of this machine, which can be cut and mended."""

    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.open_sockets, self.is_cut, self.cuts = [], threading.Event(), 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            if self.is_cut.is_set():
                near.close()
                continue
            far = socket.create_connection(self.target)
            self.open_sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.relay, args=(source, sink), daemon=True).start()

    def relay(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self, seconds):
        self.is_cut.set()
        self.cuts += 1
        for each in self.open_sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.open_sockets.clear()
        time.sleep(seconds)
        self.is_cut.clear()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """(environment, port of the dashboard, port of the exporter); it asks for a token."""
    port, metrics = free_port(), free_port()
    # Ray notes the newest cluster of a machine in its temporary folder, and jobs join that one.
    # Short: the paths of its sockets may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": folder,
    }
    environment.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=1",
         f"--port={free_port()}", f"--dashboard-port={port}",
         f"--ray-client-server-port={free_port()}",
         f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=100000000",
         f"--metrics-export-port={metrics}",
         "--node-ip-address=127.0.0.1"],
        env={k: v for k, v in environment.items() if k != "PYTHONPATH"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        time.sleep(0.2)
    yield environment, port, metrics
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


def submit(cluster, *arguments, url=None, **settings):
    environment, port, _ = cluster
    command = [*PROGRAM, "submit", "--address", url or f"http://127.0.0.1:{port}", *arguments]
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
    )  # fmt: skip


def ended(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_a_stage_runs_there_with_this_code_and_its_log_comes_here(
    cluster, shards, small_mae, tmp_path
):
    cache = tmp_path / "cache"
    status, out, err = ended(
        submit(cluster, "score", "--shards", shards, "--mae", small_mae, "--out", cache)
    )
    assert status == 0, out + err
    assert "score: 3 done, 0 already there, 0 failed; 12 images ok" in out
    opened = open_cache(cache)
    assert sum(row.n_ok for row in opened.rows.values()) == 12
    expected = {
        f'ltrp_units_done_total stage="score",run_id="{opened.run_id}" 3': True,
        f'ltrp_images_total stage="score",run_id="{opened.run_id}",outcome="ok" 12': True,
    }
    shown, end = {}, time.monotonic() + 40
    while shown != expected and time.monotonic() < end:
        time.sleep(0.5)
        shown = exported(cluster[2], opened.run_id, expected)
    assert shown == expected


def exported(port, run_id, wanted):
    """Which of `name label="value",... value` Ray's exporter shows."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = [line for line in page.splitlines() if run_id in line]
    found = {}
    for sample in wanted:
        name, labels, value = sample.split()
        found[sample] = any(
            line.startswith(f"ray_{name}{{")
            and all(label in line for label in labels.split(","))
            and float(line.rsplit(" ", 1)[1]) == float(value)
            for line in lines
        )
    return found


def test_the_exit_status_is_that_of_the_job(cluster, small_mae, tmp_path):
    status, out, _ = ended(
        submit(cluster, "score", "--shards", "/nowhere.tar", "--mae", small_mae,
               "--out", tmp_path / "cache")
    )  # fmt: skip
    assert status == 2
    assert "no file /nowhere.tar" in out


def test_a_lost_connection_costs_no_line_and_repeats_none(cluster, tmp_path):
    link = Link(cluster[1])
    program = tmp_path / "count.py"
    program.write_text(
        "import sys, time\n"
        "for number in range(40):\n"
        "    print('line', number, flush=True)\n"
        "    time.sleep(0.2)\n"
        "sys.exit(3)\n"
    )
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.workers.ray_job import JobClient\n"
        f"client = JobClient({link.url!r}, on_note=lambda t: print('note:', t, file=sys.stderr))\n"
        f"client.submit('count', 'python count.py', Path({str(tmp_path)!r}), {{}})\n"
        "end = client.follow('count', lambda text: print(text, end='', flush=True))\n"
        "sys.exit(end.status)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=cluster[0], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line in ("line 5\n", "line 15\n"):
            link.cut(3)
    assert process.wait(240) == 3
    err = process.stderr.read()
    numbers = [int(n) for n in re.findall(r"^line (\d+)$", "".join(lines), re.MULTILINE)]
    assert numbers == list(range(40))
    assert err.count("connection lost") == link.cuts == 2
    assert err.count("connected again") == 2


def test_a_job_that_was_not_waited_for_is_attached_to(cluster):
    status, out, err = ended(submit(cluster, "--no-wait", "doctor", "--mae", "mae_tiny"))
    assert status == 0, err
    job = out.strip()
    assert re.fullmatch(r"ltrp-doctor-\w+-\w+", job)
    status, out, _ = ended(submit(cluster, "--attach", job))
    assert status == 0
    assert "ok      weights" in out
    status, _, err = ended(submit(cluster, "--attach", "ltrp-other"))
    assert (status, err.splitlines()[-1:]) == (2, ["error: the cluster knows no job ltrp-other"])


def test_without_the_token_no_job_is_taken(cluster):
    environment = cluster[0] | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    status, _, err = ended(submit((environment, *cluster[1:]), "doctor"))
    assert (status, err.splitlines()[-1].split(";")[0]) == (
        2, "error: the cluster does not take this token")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scor", "--out", "s3://b/c"], "pass one of pack"),
        (["score", "--shards", "x", "--mae", "y", "--out", "cache"], "which the cluster deletes"),
        (["train-ranker", "--cache", "x"], "--out ranker would be a folder of the job"),
    ],
)
def test_what_would_fail_or_be_lost_there_is_said_here(arguments, words):
    from command_line import one_line_error

    assert words in one_line_error("submit", *arguments)
