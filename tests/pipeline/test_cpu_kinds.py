"""The log says on which kind of CPU a unit was made, and a cache of two kinds says so."""

import json
import os

import torch
from command_line import run
from faults.driver import drive, events

from pipeline.units.work import cpu_kind


def test_a_cache_that_another_kind_of_cpu_goes_on_with_says_so(shards, small_mae, tmp_path):
    out = tmp_path / "cache"
    aside = (shards / "part-2.tar").rename(tmp_path / "part-2.tar")
    _, err = run("score", "--shards", shards, "--mae", small_mae, "--out", out)
    here = cpu_kind("cpu")
    assert torch.backends.cpu.get_cpu_capability() in here
    assert "kinds" not in err
    assert "kinds" not in run("status", out)[0]
    aside.rename(shards / "part-2.tar")
    err = drive(shards, small_mae, out, env={"ATEN_CPU_CAPABILITY": "default"})
    there = f"{os.uname().machine} DEFAULT"
    assert {e["cpu"] for e in events(out) if e["event"] == "done"} == {here, there}
    note = f"made on CPUs of 2 kinds ({here}: 2 unit(s), {there}: 1 unit(s))"
    if here > there:
        note = f"made on CPUs of 2 kinds ({there}: 1 unit(s), {here}: 2 unit(s))"
    assert note in err
    assert f"cpu      {note}" in run("status", out)[0]
    assert json.loads(run("status", out, "--json")[0])["cpus"] == {here: 2, there: 1}
    assert run("verify", out, "--deep")[0].endswith("0 faults\n")  # it is no part of a unit
    for receipt in (out / "units").glob("*/receipt.json"):
        assert "cpu" not in json.loads(receipt.read_text())
