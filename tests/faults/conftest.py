"""One undisturbed run, that every disturbed one must equal."""

import pytest
from faults.driver import drive, fingerprint, write_shards

COUNT = 10


@pytest.fixture(scope="session")
def many(photographs, tmp_path_factory):
    """A folder of ten tars of four photographs."""
    from conftest import write_tar

    return write_shards(tmp_path_factory.mktemp("many") / "shards", photographs, write_tar, COUNT)


@pytest.fixture(scope="session")
def reference(many, small_mae, tmp_path_factory):
    """The fingerprint of the cache that nothing disturbed."""
    cache = tmp_path_factory.mktemp("reference") / "cache"
    drive(many, small_mae, cache)
    return fingerprint(cache)
