"""The benchmark of implicit ALS at high ranks on small sizes: its methods agree, and its counts of flops are right."""

import json

import pytest

from benchmarks import implicit_ranks

SMALL = {"n_users": 60, "n_items": 40, "ratings": 300, "ranks": (4,), "rounds": 2, "max_sweeps": 3}


@pytest.mark.slow
@pytest.mark.usefixtures("one_bucket")
def test_every_method_is_measured_and_plotted(tmp_path, in_this_process):
    in_this_process(implicit_ranks)
    settings = implicit_ranks.Settings(**SMALL, methods=("exact", "cg2", "blocks4"), out=str(tmp_path))
    result = implicit_ranks.main(settings)["metrics"]
    assert [row["method"] for row in result["rows"]] == ["exact", "cg2", "blocks4"]
    exact, _, blocks = (result["curves"]["4"][row["method"]]["objective"] for row in result["rows"])
    n = min(len(exact), len(blocks))
    assert exact[:n] == pytest.approx(blocks[:n], rel=1e-4)  # one block of all coordinates
    assert json.loads((tmp_path / "implicit_ranks.json").read_text())["experiment"] == "implicit_ranks"
    assert (tmp_path / "implicit_ranks.png").exists()


def test_the_work_of_a_sweep():
    assert implicit_ranks.work("exact", 100, 30, 6) == (4 * 100 * 36 + 30 * 216 / 3, 200 * 32)
    assert implicit_ranks.work("cg2", 100, 30, 6) == (4 * 5 * 600 + 8 * 30 * 36, 200 * 32)
    flops, gathered = implicit_ranks.work("blocks3", 100, 30, 6)
    assert (flops, gathered) == (4 * 600 * 3 + 12 * 600 + 30 * 6 * 9 / 3 + 10 * 30 * 36, 3 * 200 * 32)


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 'exact', 'cg3' or 'blocks64' with any numbers, got 'cgx'"):
        implicit_ranks.main(implicit_ranks.Settings(methods=("exact", "cgx"), out=str(tmp_path)))
