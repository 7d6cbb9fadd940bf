"""Runs the instructions of the Dockerfile in a clean Debian root: `make docker-check`, as root.

For a machine without a container engine. debootstrap makes the root, with the suite's own Python as
/usr/local/bin/python where the image has one that was built there; the instructions are those of
the Dockerfile, none left out, and the commands after them those that a user would run. Downloads
and takes what the image does, about 8 GB for a target.

Debian's mirror is that of this machine's apt, or DEBIAN_MIRROR. pip's settings, proxies and
certificates of this machine hold inside, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
# What Debian's image and Python's have; python3-venv brings pip.
PACKAGES = "ca-certificates,netbase,tzdata,python3,python3-venv"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Of pip's settings these say where packages come from; the rest is the Dockerfile's business.
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
# Mounts and processes of a command are its own and end with it, however it ends.
OWN = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
# The mounts of a container, 64 MB of shared memory included.
MOUNTS = """set -e
root=$1; shift
[ "$1" != lo ] || ip link set lo up
shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755,size=64k dev "$root/dev"
for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777,size=64m shm "$root/dev/shm"
for file in /etc/resolv.conf /etc/hosts; do
    touch "$root$file"
    mount --bind "$file" "$root$file"
done
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind -o ro "$1" "$root$2"
    shift 2
done
shift
exec chroot "$@"
"""
# What compose.yaml, rayjob.yaml and the probes of KubeRay call in an image.
COMMANDS = "for name in ray tensorboard python wget sh; do command -v $name || exit; done"
# A head as compose.yaml and rayjob.yaml start one. The health check of compose.yaml and KubeRay's
# probes pass, a health check with another token does not.
RAY_HEAD = """export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
ray start --head --num-cpus=0 --port=6379 --node-ip-address=127.0.0.1 >ray.log 2>&1 || exit
ray health-check --address 127.0.0.1:6379 2>>ray.log || exit
RAY_AUTH_TOKEN=another ray health-check --address 127.0.0.1:6379 2>>ray.log && exit 1
for path in 52365/api/local_raylet_healthz 8265/api/gcs_healthz; do
    wget --tries 9 --retry-connrefused -T 10 -q -O- "http://localhost:$path" | grep success || exit
done"""
LEFT = "ls -l out/report/index.html && id && pwd && df -h /dev/shm"
C_PROGRAM = """printf '#include <stdio.h>\\nint main() { return puts("compiled") < 0; }' >try.c &&
gcc -shared -fPIC -o try.so try.c && gcc -o try try.c && ./try"""


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: RUN and what follows, continued lines joined."""

    keyword: str
    value: str
    line: int


class Stage(NamedTuple):
    """What a FROM begins: the image or stage it starts from, and its own instructions."""

    parent: str
    instructions: list[Instruction]


@dataclass
class Image:
    """A root and what the instructions so far have set."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    health_seconds: float = 30.0


def stop(message: str) -> NoReturn:
    sys.exit(f"try_install: {message}")


def say(text: str) -> None:
    print(text, flush=True)


def stages(dockerfile: Path) -> dict[str, Stage]:
    """Returns the stages by their names, in order, without what stands before the first FROM."""
    found: dict[str, Stage] = {}
    current: list[Instruction] | None = None
    with open(dockerfile, "rb") as file:
        for one in DockerfileParser(fileobj=file).structure:
            value = " ".join(one["value"].split())
            if one["instruction"] == "FROM":
                parent, _, name = value.partition(" AS ")
                current = []
                found[name or parent] = Stage(parent, current)
            elif one["instruction"] != "COMMENT" and current is not None:
                current.append(Instruction(one["instruction"], value, one["startline"] + 1))
    return found


def bind_mounts(value: str) -> tuple[list[tuple[str, str, str]], str]:
    """Returns the (stage, source, target) of the mounts that a RUN begins with, and its command.

    Raises:
        ValueError: a mount of another kind, or a flag that is no mount.
    """
    mounts = []
    while match := re.match(r"--(\S+)\s+", value):
        flag, _, text = match[1].partition("=")
        options = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        if flag != "mount" or set(options) != {"type", "from", "source", "target"}:
            raise ValueError(f"--{match[1]}: only --mount=type=bind,from=,source=,target= is known")
        if options["type"] != "bind":
            raise ValueError(f"--{match[1]}: only binds are known")
        mounts.append((options["from"], options["source"], options["target"]))
        value = value[match.end() :]
    return mounts, value


def variables(instruction: Instruction) -> dict[str, str]:
    """Returns what an ENV or ARG sets; an ARG without a default sets nothing."""
    words = [word.partition("=") for word in shlex.split(instruction.value)]
    return {name: value for name, equals, value in words if equals}


def words_of(command: str) -> list[str]:
    """Returns the words of a CMD or ENTRYPOINT: a list in JSON, or a line for the shell."""
    if command.startswith("["):
        return [str(word) for word in json.loads(command)]
    return ["/bin/sh", "-c", command]


def settings_of_this_machine() -> dict[str, str]:
    """Returns the variables by which pip and apt reach the same places inside."""
    found = {name: os.environ[name] for name in PROXIES if name in os.environ}
    listing = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        name = name.rpartition(".")[2].removeprefix("default-")
        # A folder of this machine is not there inside.
        kept = [word for word in value.strip("'").split() if not word.startswith("file:")]
        if name in PIP_SETTINGS and kept:
            found[f"PIP_{name.replace('-', '_').upper()}"] = " ".join(kept)
    # The root has this machine's certificates in the file.
    return found | {"PIP_CERT": str(CERTIFICATES), "SSL_CERT_FILE": str(CERTIFICATES)}


def mirror() -> str:
    """Returns where debootstrap takes Debian from: DEBIAN_MIRROR, or what apt uses here."""
    if given := os.environ.get("DEBIAN_MIRROR"):
        return given
    listing = [
        "apt-get",
        "indextargets",
        "--format",
        "$(CREATED_BY) $(ORIGIN) $(RELEASE) $(REPO_URI)",
    ]
    with suppress(OSError, subprocess.CalledProcessError):
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            created_by, _, rest = line.partition(" ")
            origin, _, rest = rest.partition(" ")
            release, _, uri = rest.partition(" ")
            if (created_by, origin) == ("Packages", "Debian") and "-" not in release:
                return uri
    stop("apt of this machine names no mirror of Debian: set DEBIAN_MIRROR to the address of one")


def home_of(user: str, root: Path) -> str:
    for line in (root / "etc/passwd").read_text("utf-8").splitlines():
        name, _, uid, _, _, home, _ = line.split(":")
        if user in (name, uid):
            return home
    return "/"


def run_inside(
    image: Image,
    words: Sequence[str],
    binds: Sequence[tuple[Path, str]] = (),
    timeout: float | None = None,
    network: bool = True,
) -> None:
    """Runs a command in the root, as the user and in the folder that the instructions have set.

    Without `network` there is localhost alone.

    Raises:
        subprocess.CalledProcessError: the command failed.
        subprocess.TimeoutExpired: it took longer than it may.
    """
    environment = {"PATH": PATH, "HOME": home_of(image.user, image.root)}
    environment |= settings_of_this_machine() | image.arguments | image.environment
    bound = [str(word) for pair in binds for word in pair]
    script = ["sh", "-c", MOUNTS, "sh", str(image.root), "all" if network else "lo", *bound, "--"]
    chroot = [f"--userspec={image.user}", str(image.root), "/usr/bin/env", "-i"]
    chroot += [f"--chdir={image.folder}", *(f"{k}={v}" for k, v in environment.items())]
    own = OWN if network else [*OWN, "--net"]
    subprocess.run([*own, *script, *chroot, *words], check=True, timeout=timeout)


def bootstrap(suite: str, root: Path) -> None:
    """Makes a clean root of Debian with this machine's certificates and proxies."""
    options = ["--variant=minbase", f"--include={PACKAGES}", suite]
    log = root.with_suffix(".log")
    with open(log, "wb") as output:
        command = [*OWN, "debootstrap", *options, str(root), mirror()]
        failed = subprocess.run(command, stdout=output, check=False).returncode
    if failed:
        lines = log.read_text("utf-8", errors="replace").splitlines()
        stop("debootstrap failed; its last lines:\n" + "\n".join(lines[-8:]))
    given = Path(os.environ.get("SSL_CERT_FILE", CERTIFICATES))
    if given.is_file():
        shutil.copyfile(given, root / CERTIFICATES.relative_to("/"))
    listed = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, check=False)
    lines_of_apt = [line for line in listed.stdout.splitlines(True) if b"::Proxy" in line]
    (root / "etc/apt/apt.conf.d/00proxy").write_bytes(b"".join(lines_of_apt))


class Builder:
    """Makes the images of a Dockerfile's stages, each once, in folders of one folder."""

    def __init__(self, dockerfile: Path, folder: Path, suite: str, given: dict[str, str]) -> None:
        self.stages = stages(dockerfile)
        self.folder = folder
        self.suite = suite
        self.given = given
        self.built: dict[str, Image] = {}

    def build(self, name: str) -> Image:
        """Returns the image of a stage; what it starts from and what it mounts is built before."""
        if name in self.built:
            return self.built[name]
        parent = self.stages[name].parent
        start = self.build(parent) if parent in self.stages else self.debian()
        say(f"== stage {name}, from {parent if parent in self.stages else f'Debian {self.suite}'}")
        root = self.folder / name
        subprocess.run(["cp", "-a", "--reflink=auto", start.root, root], check=True)
        # Docker forgets the arguments of the stage before.
        image = replace(start, root=root, environment=dict(start.environment), arguments={})
        for instruction in self.stages[name].instructions:
            began = time.monotonic()
            try:
                self.carry_out(instruction, image)
            except (ValueError, OSError, subprocess.CalledProcessError) as error:
                stop(
                    f"Dockerfile, line {instruction.line}, {instruction.keyword} "
                    f"{instruction.value}: {error}"
                )
            seconds = time.monotonic() - began
            say(f"[{seconds:6.1f} s] {instruction.keyword} {instruction.value}")
        self.built[name] = image
        return image

    def debian(self) -> Image:
        """Returns a clean root with the suite's Python in a venv at /usr/local."""
        root = self.folder / "debian"
        if not root.exists():
            say(f"== Debian {self.suite}, by debootstrap")
            bootstrap(self.suite, root)
            run_inside(Image(root), ["/usr/bin/python3", "-m", "venv", "/usr/local"])
        return Image(root)

    def carry_out(self, instruction: Instruction, image: Image) -> None:
        """Does to an image what one instruction says.

        Raises:
            ValueError: what it says is not understood here.
        """
        keyword, value, _ = instruction
        if keyword != "RUN" and "$" in value:
            raise ValueError("variables are understood in RUN only; write the value out")
        if keyword == "RUN":
            mounts, command = bind_mounts(value)
            binds = [(self.build(name).root / one.lstrip("/"), to) for name, one, to in mounts]
            run_inside(image, ["/bin/sh", "-c", command], binds)
        elif keyword == "ENV":
            image.environment |= variables(instruction)
        elif keyword == "ARG":
            default = variables(instruction)
            name = value.partition("=")[0]
            image.arguments |= default | {k: v for k, v in self.given.items() if k == name}
        elif keyword == "COPY":
            copy(value, image)
        elif keyword == "WORKDIR":
            image.folder = os.path.join(image.folder, value)
            (image.root / image.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif keyword == "USER":
            image.user = value
        elif keyword == "ENTRYPOINT":
            image.entrypoint, image.command = words_of(value), []
        elif keyword == "CMD":
            image.command = words_of(value)
        elif keyword == "HEALTHCHECK":
            image.health = words_of(value.partition("CMD ")[2])
            if timeout := re.search(r"--timeout=(\d+)s ", value):
                image.health_seconds = float(timeout[1])
        else:
            raise ValueError("this instruction is not understood here; teach it to try_install.py")


def copy(value: str, image: Image) -> None:
    """Copies files and what is in folders from the top folder of the project, as COPY does.

    Raises:
        ValueError: it has flags, or names what is not there.
    """
    *sources, target = value.split()
    if value.startswith("--"):
        raise ValueError("flags of COPY are not understood here")
    to = image.root / os.path.join(image.folder, target).lstrip("/")
    for name in sources:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to, dirs_exist_ok=True)
        elif source.is_file():
            into = target.endswith("/") or len(sources) > 1
            (to if into else to.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / source.name if into else to)
        else:
            raise ValueError(f"{name} is not there")


def try_commands(target: str, image: Image) -> list[str]:
    """Runs what a user of the image would, as its user, without a network; returns what failed."""
    shell = ["/bin/sh", "-c"]
    checks: list[tuple[str, list[str], float | None]] = [
        ("the image as it is", [*image.entrypoint, *image.command], None),
        ("HEALTHCHECK", image.health, image.health_seconds),
        ("demo", [*image.entrypoint, "demo", "--out", "out"], None),
        ("what the demo left", [*shell, LEFT], None),
        ("commands that compose.yaml and rayjob.yaml call", [*shell, COMMANDS], None),
        ("a head of Ray with a token", [*shell, RAY_HEAD], None),
        ("dependencies fit together", ["pip", "check"], None),
    ]
    if target == "cuda":
        checks.append(("a C compiler that links", [*shell, C_PROGRAM], None))
    failed = []
    for name, words, timeout in checks:
        say(f"== {name}: {shlex.join(words)}")
        began = time.monotonic()
        try:
            run_inside(image, words, timeout=timeout, network=False)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            say(f"FAILED: {error}")
            failed.append(f"{target}: {name}")
        say(f"[{time.monotonic() - began:6.1f} s] {name}")
    return failed


def megabytes(folder: Path) -> int:
    listed = subprocess.run(["du", "-sxm", folder], capture_output=True, text=True, check=True)
    return int(listed.stdout.split()[0])


def end_if_something_is_missing() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        stop("needs Linux and root, for debootstrap and chroot")
    needed = ("debootstrap", "chroot", "unshare", "mount", "ip")
    if missing := [name for name in needed if shutil.which(name) is None]:
        named = ", ".join(missing)
        stop(f"not installed: {named}; on Debian: apt-get install debootstrap iproute2")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", action="append", help="a stage; again for more [cpu and cuda]")
    parser.add_argument("--suite", default="trixie", help="of Debian; trixie has Python 3.13")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="make the roots there, keep them"
    )
    options = parser.parse_args()
    end_if_something_is_missing()
    targets = options.target or ["cpu", "cuda"]
    dockerfile = ROOT / "docker/Dockerfile"
    if unknown := set(targets) - set(stages(dockerfile)):
        stop(f"no stage of {dockerfile} is named {sorted(unknown)}")
    # So that a TERM removes the roots, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = dict(word.split("=", 1) for word in options.build_arg)
    failed = []
    with tempfile.TemporaryDirectory(prefix="ltrp-docker-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            stop(f"{folder} is not empty; --keep wants a new folder")
        builder = Builder(dockerfile, folder.resolve(), options.suite, given)
        for target in targets:
            began = time.monotonic()
            image = builder.build(target)
            seconds = time.monotonic() - began
            say(f"{target}: {seconds:.0f} s, {megabytes(image.root)} MB, as {image.user}")
            failed += try_commands(target, image)
    if failed:
        stop("failed: " + "; ".join(failed))
    say(f"ok: {', '.join(targets)}")


if __name__ == "__main__":
    main()
