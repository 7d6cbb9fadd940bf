"""A Ray of one run alone on a machine that others use: who can reach it, and what it leaves."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from ltrp_core.errors import RequestError
from pipeline.workers import local_ray

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]
NOBODY = 65534
LOOPBACK = (
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
)

DRIVER = """
import os, sys
import ray
from pipeline.workers import open_pool

class Echo:
    def __init__(self, slot):
        pass
    def __call__(self, item):
        return item

with open_pool("1") as pool:
    outcomes = pool.map(Echo, range(10**9))
    assert next(outcomes).result == 0
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    sys.stdin.read()
assert "RAY_AUTH_MODE" not in os.environ
assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
"""

STRANGER = """
import encodings.idna, http.client, json, os, socket, sys, urllib.error, urllib.request
import grpc._channel

found = json.loads(sys.argv[1])
os.setgroups([])
os.setgid(found["as"])
os.setuid(found["as"])
refused, wrong = [], []
job = json.dumps({"entrypoint": "touch " + found["proof"]}).encode()
for address, port in found["ports"]:
    for path in ("/api/job_agent/jobs/", "/api/jobs/"):
        request = urllib.request.Request(
            f"http://{address}:{port}{path}", job, {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=3)
            wrong.append(f"a job was taken at {port}{path}")
        except urllib.error.HTTPError as error:
            refused.append(str(error.code))
        except (OSError, http.client.HTTPException):
            pass  # no HTTP is spoken here
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in (
            "NodeInfoGcsService/GetAllNodeInfo",
            "NodeManagerService/GetSystemConfig",
            "CoreWorkerService/NumPendingTasks",
            "ReporterService/HealthCheck",
        ):
            try:
                channel.unary_unary("/ray.rpc." + method)(b"", timeout=3)
                wrong.append(f"{method} is answered at {port}")
            except grpc.RpcError as error:
                refused.append(method.split("/")[0] + " " + error.code().name)
for path in found["sockets"]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        wrong.append(f"lets others in: {path}")
    except PermissionError:
        refused.append("socket")
try:
    os.listdir(found["folder"])
    wrong.append("the folder is open: " + found["folder"])
except PermissionError:
    pass
print(json.dumps([refused, wrong]))
"""


def environment():
    names = [name for name in os.environ if not name.startswith("RAY_")]
    return {name: os.environ[name] for name in names} | {"PYTHONPATH": str(ROOT)}


def start():
    """Starts a driver; returns it and its Ray's folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline().strip()
    assert line, process.communicate()
    return process, Path(line).parents[1]


def tree(pid):
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += tree(int(child))
    return found


def sockets_of(pids):
    """Returns the numbers of all sockets that processes hold."""
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    return found


def listeners(pids):
    """Yields (address, port) of all TCP sockets of processes that listen."""
    sockets = sockets_of(pids)
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                address, port = words[1].split(":")
                yield "127.0.0.1" if address in LOOPBACK else address, int(port, 16)


def unix_sockets(pids):
    """Returns the paths of all Unix sockets of processes that listen."""
    sockets = sockets_of(pids)
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [words[7] for words in lines if words[6] in sockets and int(words[3], 16) & 0x10000]


@pytest.fixture(scope="module")
def running():
    process, folder = start()
    yield process, folder
    _, err = process.communicate("")
    assert (process.returncode, err) == (0, "")
    assert not folder.exists()


def test_all_listeners_of_a_run_are_on_loopback(running):
    time.sleep(2)
    found = list(listeners(tree(running[0].pid)))
    assert len(found) > 8
    assert {address for address, _ in found} == {"127.0.0.1"}


def test_the_token_is_in_no_command_line_and_in_a_folder_of_ours(running):
    process, folder = running
    token = (folder / "token").read_text()
    assert len(token) == 64
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    for pid in tree(process.pid):
        assert token not in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may act as another user")
def test_another_user_has_no_job_taken_and_no_question_answered(running, tmp_path):
    process, folder = running
    pids = tree(process.pid)
    proof = tmp_path / "proof"
    found = {
        "as": NOBODY,
        # At all addresses is at this one, too.
        "ports": [("127.0.0.1", port) for _, port in listeners(pids)],
        "sockets": unix_sockets(pids),
        "folder": str(folder),
        "proof": str(proof),
    }
    assert len(found["sockets"]) > 1
    # It imports as root: others may not even read this environment.
    command = [sys.executable, "-c", STRANGER, json.dumps(found)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, wrong = json.loads(done.stdout)
    assert wrong == []
    assert {
        "401",
        "NodeInfoGcsService UNAUTHENTICATED",
        "NodeManagerService UNAUTHENTICATED",
        "CoreWorkerService UNAUTHENTICATED",
        "ReporterService UNAUTHENTICATED",
    } <= set(refused)
    assert refused.count("socket") == len(found["sockets"])
    assert not proof.exists()


def test_a_second_run_beside_it_starts_and_leaves_the_first_alone(running):
    process, folder = start()
    assert folder != running[1]
    _, err = process.communicate("")
    assert (process.returncode, err) == (0, "")
    assert running[0].poll() is None
    assert (running[1] / "token").exists()


def test_what_a_killed_run_leaves_is_ended_by_the_next(running):
    process, folder = start()
    others = [pid for pid in tree(process.pid) if pid != process.pid]
    process.kill()
    process.communicate()
    assert folder.exists()
    local_ray.clear_away(folder.parent)
    assert not folder.exists()
    assert running[1].exists()
    end = time.monotonic() + 5
    while alive := [pid for pid in others if is_alive(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "log"),
    [
        (signal.SIGINT, "gcs_server"),
        (signal.SIGTERM, "gcs_server"),
        (signal.SIGTERM, "python-core-driver"),  # now Ray's C++ has a handler
    ],
)
def test_a_signal_while_ray_starts_ends_the_run_and_leaves_nothing(number, log, tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
        tar.add(tmp_path / "0.png", "0.png")
    ray = Path("/tmp") / f"t{os.getpid()}{number.value}{log[0]}"
    ray.mkdir()
    what = [
        "--shards",
        tmp_path / "one.tar",
        "--mae",
        "mae_tiny",
        "--out",
        tmp_path / "out",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "score", *map(str, what)],
        env=environment() | {"RAY_TMPDIR": str(ray)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not list(ray.glob(f"**/session_*/logs/{log}*")):
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        others = [pid for pid in tree(process.pid) if pid != process.pid]
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        lines = [line for line in err.splitlines() if line and line[0] != "{"]
        if log == "python-core-driver":
            lines = lines[-1:]  # it may write a trace before
        assert lines == ["error: interrupted; run the same command again to go on from here"]
        assert list(ray.iterdir()) == []
        assert not any(is_alive(pid) for pid in others)
    finally:
        process.kill()
        shutil.rmtree(ray)


@pytest.mark.parametrize("version", ["2.44.1", "2.52.0", "2.53.0"])
def test_a_ray_that_takes_jobs_without_the_token_is_refused(version):
    with pytest.raises(RequestError, match=rf"Ray {version} lets other users.*ray>=2.54,"):
        local_ray.check_version(version)
    local_ray.check_version("2.54.0")


@pytest.mark.parametrize("folder", ["/" + "x" * 40, "/tmp/a b", "/proc/nowhere"])
def test_a_folder_that_sockets_cannot_be_in_is_replaced(folder, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    assert local_ray._parent() == Path("/tmp")


def test_a_short_folder_is_taken(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    assert local_ray._parent() == Path("/var/tmp")
