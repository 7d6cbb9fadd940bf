"""Real photographs, small: what the tests of the pipeline run on."""

import io
import os
import signal
import tarfile

# Before torch is imported, and for the commands that tests start: models this small gain nothing
# from threads, and the threads of many processes on few cores cost a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")


import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from xdist.scheduler import LoadScopeScheduling

from ltrp_core.mae import MAEConfig, MaskedAutoencoder

torch.set_num_threads(1)


def pytest_configure():
    """Ctrl-C means what it does on a terminal, in this process and in all that tests start.

    Shells have SIGINT ignored for what runs in the background: `make test &`, some CI systems.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


_CLUSTERS = {
    "test_ray_cluster.py",
    "test_ray_job.py",
    "test_training_ranks.py",
    "test_slurm_script.py",
}
"""Clusters as `ray start` makes them listen at ports that are written down: one after the other."""
_APART = {"test_command_line.py", "test_demo.py", "test_train_ranker_command.py"}
"""Long tests that share nothing: each may run in another process than its neighbors."""
_LONG = {"test_training.py", "test_killed.py", "test_wrong_input.py", "test_any_damage.py"}


def _scope(nodeid):
    path = nodeid.partition("::")[0]
    file = path.rpartition("/")[2]
    if file in _CLUSTERS:
        return "clusters"
    return nodeid if file in _APART else path


def pytest_collection_modifyitems(items):
    """What takes longest comes first, so that no process waits for another at the end."""

    def place(item):
        file = item.path.name
        return (
            file not in _CLUSTERS,
            file not in _APART,
            "ray" not in item.keywords,
            file not in _LONG,
        )

    items.sort(key=place)


class _ByFile(LoadScopeScheduling):
    """Keeps a file's tests in one process, where its fixtures are made once.

    Not by `xdist_group`: pytest 9.2 no longer reads where pytest-xdist 3.8 writes the group.
    """

    def _split_scope(self, nodeid):
        return _scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    """Hands files out in the order of the tests, not by their number of tests."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)


SMALL_MAE = MAEConfig(
    width=48,
    depth=2,
    heads=2,
    decoder_width=32,
    decoder_depth=2,
    decoder_heads=2,
    patch_size=8,
    grid=6,
)
"""48 px, 36 patches: the whole pipeline runs in seconds."""


def jpeg(image: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """Twelve crops of real photographs as JPEG, by name."""
    crops = {}
    for name, image in (
        ("astronaut", data.astronaut()),
        ("cat", data.chelsea()),
        ("coffee", data.coffee()),
    ):
        for number in range(4):
            top, left = 40 * number, 30 * number
            crops[f"{name}_{number}"] = jpeg(image[top : top + 150, left : left + 180])
    return crops


def write_tar(path, members) -> None:
    """Writes (name, bytes) pairs as a tar."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def make_tar():
    return write_tar


@pytest.fixture
def photo_folder(photographs, tmp_path):
    """A folder of the twelve photographs, one subfolder a subject."""
    folder = tmp_path / "photos"
    for name, content in photographs.items():
        path = folder / name.split("_")[0] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def shards(photographs, tmp_path):
    """Three tars of four photographs."""
    folder = tmp_path / "shards"
    folder.mkdir()
    items = sorted(photographs.items())
    for number in range(3):
        members = [(f"{name}.jpg", c) for name, c in items[4 * number : 4 * number + 4]]
        write_tar(folder / f"part-{number}.tar", members)
    return folder


@pytest.fixture(scope="session")
def small_mae(tmp_path_factory):
    """The weights file of a 48 px masked autoencoder, random."""
    from ltrp_core.mae import save_mae

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mae") / "small.safetensors"
    save_mae(MaskedAutoencoder(SMALL_MAE), path)
    return path
