"""Benchmarks on small sizes, their cells measured in the test's own process: a fresh one takes seconds to start."""

import json

import pytest

from benchmarks import harness


@pytest.fixture
def here(monkeypatch):
    """here(module): its cells are measured in this process, through JSON as in a fresh one."""

    def install(module):
        as_json = lambda cell: json.loads(json.dumps(module.measure(json.loads(json.dumps(cell))), allow_nan=False))
        monkeypatch.setattr(harness, "in_fresh_process", lambda name, cell, **_: as_json(cell))

    return install
