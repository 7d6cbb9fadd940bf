"""Hosts on one machine: network, mount, PID and UTS namespaces of their own, and one bridge.

A host has its own loopback, address, name, /tmp and processes; killing its first process is pulling
its plug. Needs root and Debian's iproute2. Nothing outside of the namespaces is changed: the bridge
is in one of its own, and the only addresses that are used are the hosts'.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SUBNET = "10.77.8"


def _sh(line: str) -> None:
    subprocess.run(shlex.split(line), check=True, capture_output=True, text=True)


class Network:
    """A bridge that hosts are plugged into."""

    def __init__(self, name: str) -> None:
        self.name, self.hosts = name, []
        self.clean()
        _sh(f"ip netns add {name}")
        _sh(f"ip -n {name} link add br0 type bridge")
        _sh(f"ip -n {name} link set br0 up")

    def clean(self) -> None:
        """Removes what a killed run has left."""
        found = subprocess.run(
            ["ip", "netns", "list"], capture_output=True, text=True, check=False
        ).stdout
        for line in found.splitlines():
            namespace = line.split()[0]
            if namespace == self.name or namespace.startswith(f"{self.name}-"):
                subprocess.run(["ip", "netns", "del", namespace], check=False)

    def close(self) -> None:
        for host in self.hosts:
            host.kill()
        self.clean()


class Host:
    """One machine of the network; it is switched on by `start`."""

    def __init__(self, network: Network, name: str, number: int, folder: Path) -> None:
        self.network, self.name, self.folder = network, name, folder
        self.address = f"{SUBNET}.{number}"
        self.space = f"{network.name}-{name}"
        self.init: subprocess.Popen[bytes] | None = None
        _sh(f"ip netns add {self.space}")
        _sh(f"ip -n {network.name} link add v{number} type veth peer name eth0 netns {self.space}")
        _sh(f"ip -n {network.name} link set v{number} master br0 up")
        _sh(f"ip -n {self.space} addr add {self.address}/24 dev eth0")
        _sh(f"ip -n {self.space} link set eth0 up")
        _sh(f"ip -n {self.space} link set lo up")
        self.port = f"v{number}"
        network.hosts.append(self)

    def start(self, cpus: Sequence[int] = ()) -> None:
        """Switches it on: a first process that holds the namespaces open.

        Hosts that were made before know each other by name.

        Args:
            cpus: cores that it has; empty = all.
        """
        with suppress(subprocess.CalledProcessError):
            self.link("up")
        lines = [f"{host.address} {host.name}" for host in self.network.hosts]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        script = (
            f"hostname {self.name}; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /dev/shm; "
            f"mount --bind {shlex.quote(str(self.folder / 'hosts'))} /etc/hosts; "
            "trap '' HUP INT; while :; do sleep 3600 & wait; done"
        )
        pin = ["taskset", "-c", ",".join(map(str, cpus))] if cpus else []
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.space, *pin, "unshare", "--uts", "--mount", "--pid",
             "--fork", "--mount-proc", "--kill-child", "sh", "-c", script],
            start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._pin = pin
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with suppress(OSError, ValueError, IndexError):
                children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children")
                self.first = int(children.read_text().split()[0])
                if self._says_its_name():
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not start")

    def _says_its_name(self) -> bool:
        done = subprocess.run(
            [*self._inside(), "hostname"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() == self.name

    def _inside(self) -> list[str]:
        return ["nsenter", "-t", str(self.first), "-n", "-u", "-m", "-p", *self._pin]

    def popen(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command there; what it says goes to a file of the run's folder."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [*self._inside(), "env", f"HOSTNAME={self.name}", *command],
                env={**os.environ, **(environment or {})}, cwd="/", stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(
        self,
        command: Sequence[str],
        log: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 300.0,
        expect: int | None = 0,
    ) -> str:
        """Runs a command there to its end; returns what it said."""
        before = (self.folder / log).stat().st_size if (self.folder / log).exists() else 0
        process = self.popen(command, log, environment)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = -1
        said = (self.folder / log).read_bytes()[before:].decode(errors="replace")
        if expect is not None and status != expect:
            raise RuntimeError(
                f"{self.name}: status {status}: {shlex.join(command)}\n{said[-3000:]}"
            )
        return said

    def link(self, state: str) -> None:
        """Plugs its cable in (`up`) or out (`down`): at the switch, so that nothing tells it."""
        _sh(f"ip -n {self.network.name} link set {self.port} {state}")

    def kill(self) -> None:
        """Pulls the plug: every process ends at once, and no packet says so."""
        if self.init is None:
            return
        with suppress(subprocess.CalledProcessError):
            self.link("down")
        with suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.init.pid, signal.SIGKILL)
        self.init.wait(10)
        self.init = None

    def freeze(self, signal_number: int) -> None:
        """Sends SIGSTOP or SIGCONT to all its processes."""
        subprocess.run([*self._inside(), "sh", "-c", f"kill -{signal_number} -1"], check=False)
