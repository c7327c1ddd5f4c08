"""How much of the processor is ours."""

import os

import pytest

from mobilenets import processor


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", 10_000), ("150000 100000", 2), ("5000 100000", 1), ("", 10_000)]
)
def test_cores_are_no_more_than_a_container_or_an_affinity_leaves(quota, most, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(processor, "QUOTA", tmp_path / "cpu.max")
    for mine in ({0}, set(range(8))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, mine=mine: mine, raising=False)
        assert processor.cores() == min(len(mine), most)
