"""The benchmark of first fits on small sizes: every cell has a row."""

import json

import pytest

from benchmarks import cold_start


@pytest.mark.slow
def test_every_cell_is_measured(tmp_path, in_this_process):
    in_this_process(cold_start)
    sizes = {"n_users": 61, "n_items": 41, "ratings": 300, "rank": 3}
    settings = cold_start.Settings(data=("drawn", "synthetic"), cg_steps=(0, 2), **sizes, out=str(tmp_path))
    rows = cold_start.main(settings)["metrics"]["rows"]
    assert [(row["data"], row["feedback"], row["cg_steps"]) for row in rows] == [
        (name, feedback, steps)
        for name in ("drawn", "synthetic")
        for feedback in ("explicit", "implicit")
        for steps in (0, 2)
    ]
    assert all(row["sweep s"] > 0 and row["GiB"] > 0 and min(row["buckets"]) > 0 for row in rows)
    assert json.loads((tmp_path / "cold_start.json").read_text())["experiment"] == "cold_start"
