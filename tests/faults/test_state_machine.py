"""Any sequence of additions, disturbed runs, deletions and damage leaves valid units."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from command_line import run
from conftest import jpeg, write_tar
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from skimage import data

from pipeline import faults
from pipeline.store import open_cache
from pipeline.store.verify import problems

POINTS = ("before_read", "after_attempt_write", "after_receipt", "before_rename")


class CacheMachine(RuleBasedStateMachine):
    """What a person, a cluster and a disk may do to one cache."""

    mae: Path

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ltrp-machine-"))
        self.shards, self.cache = self.folder / "shards", self.folder / "cache"
        self.shards.mkdir()
        self.image = jpeg(data.chelsea()[100:160, 100:180])
        self.contents: dict[str, dict[str, str]] = {}

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self):
        self.add_shard(2)
        self.run_to_the_end()

    @precondition(lambda self: len(list(self.shards.iterdir())) < 6)
    @rule(images=st.integers(1, 3))
    def add_shard(self, images):
        number = len(list(self.shards.iterdir()))
        members = [(f"{number}_{i}.jpg", self.image) for i in range(images)]
        write_tar(self.shards / f"s{number}.tar", [*members, (f"{number}_bad.jpg", b"broken")])

    def score(self, expect=0, fault=None):
        faults._passages.clear()
        setting = {faults.VARIABLE: json.dumps(fault)} if fault else {}
        with mock.patch.dict(os.environ, setting):
            return run("score", "--shards", self.shards, "--mae", self.mae, "--out", self.cache,
                       expect=expect)  # fmt: skip

    @rule()
    def run_to_the_end(self):
        self.score()
        opened = open_cache(self.cache)
        assert len(opened.units) == len(list(self.shards.iterdir()))
        self.check_law(opened)

    @rule(point=st.sampled_from(POINTS), nth=st.integers(1, 3))
    def run_into_a_full_disk(self, point, nth):
        before = set(open_cache(self.cache).rows)
        pending = len(list(self.shards.iterdir())) - len(before)
        fault = {"point": point, "nth": nth, "action": "full_disk"}
        self.score(expect=int(pending >= nth), fault=fault)
        assert before <= set(open_cache(self.cache).rows)

    def some_unit(self, number):
        units = sorted((self.cache / "units").iterdir())
        return units[number % len(units)] if units else None

    @rule(number=st.integers(0, 9))
    def delete_a_unit(self, number):
        unit = self.some_unit(number)
        if unit is not None:
            shutil.rmtree(unit)

    @rule(number=st.integers(0, 9), file=st.integers(0, 99), at=st.integers(0, 10**6),
          how=st.sampled_from(["cut", "empty", "delete", "flip"]))  # fmt: skip
    def damage_a_unit(self, number, file, at, how):
        unit = self.some_unit(number)
        files = sorted(path for path in unit.rglob("*") if path.is_file()) if unit else []
        if not files:
            return
        victim = files[file % len(files)]
        raw = victim.read_bytes()
        if how == "delete":
            victim.unlink()
        else:
            at %= len(raw)
            flipped = raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]
            victim.write_bytes({"cut": raw[:at], "empty": b"", "flip": flipped}[how])
        found = [fault for fault in problems(open_cache(self.cache), deep=True) if fault.unit]
        assert unit.name in {fault.unit for fault in found}
        run("verify", self.cache, "--deep", "--repair", expect=1)
        assert unit.name not in open_cache(self.cache).rows

    @invariant()
    def units_that_are_seen_are_whole_and_never_change(self):
        if not (self.cache / "run.json").exists():
            return
        opened = open_cache(self.cache)
        self.check_law(opened)
        for unit in opened.rows:
            arrays = opened.read(unit)
            digest = {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in arrays.items()
                      if n != "key"}  # fmt: skip
            assert self.contents.setdefault(unit, digest) == digest

    def check_law(self, opened):
        for row in opened.rows.values():
            assert row.n_in == row.n_ok + row.n_bad
            assert row.n_bad == 1


def test_whatever_happens_to_a_cache_what_is_seen_of_it_is_whole(small_mae):
    CacheMachine.mae = small_mae
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(max_examples=12, stateful_step_count=10, deadline=None),
    )
