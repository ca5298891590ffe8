"""Every experiment's main on tiny data; what it writes; and the command line's errors."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import als, gradient_descent, harness, quickstart
from jaxrec import data

TINY = {"data": "synthetic", "split": "random"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The experiments' synthetic data in miniature."""
    low_rank = data.synthetic.low_rank
    monkeypatch.setattr(data.synthetic, "low_rank", lambda *_, rng: low_rank(60, 50, 1200, noise=0.5, rng=rng))


def read(out, name):
    result = json.loads((out / f"{name}.json").read_text())
    assert set(result) == {"experiment", "settings", "metrics", "seconds", "environment"}
    assert result["experiment"] == name
    assert all(isinstance(v, int | float | bool) for v in result["metrics"].values())
    assert {p.name for p in out.iterdir()} == {f"{name}.json", f"{name}.png"}  # nothing temporary is left
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return result


def test_quickstart(tmp_path, capsys):
    returned = quickstart.main(quickstart.Settings(**TINY, out=str(tmp_path), rank=2, l2=3.0, film="Film 1", user=3))
    result = read(tmp_path, "quickstart")
    assert returned["metrics"] == result["metrics"]
    assert 0.5 * 0.9 < result["metrics"]["test_rmse"] < result["metrics"]["global_mean_test_rmse"]
    shown = capsys.readouterr().out
    listed = shown.split("of those she has not rated:\n")[1].split("\n\n")[0].splitlines()
    dataset = data.synthetic.low_rank(rng=0)
    train, _ = data.splits.random(dataset.ratings, test=0.2, rng=0)
    seen = set(dataset.titles[train.item[train.user == 2]])
    assert len(listed) == 10
    assert not {line.split(maxsplit=1)[1] for line in listed} & seen
    for line in ("ALS, rank 2", "damped biases", "Related to Film 1", "User 3 rated", "The noise alone is 0.5"):
        assert line in shown


def test_quickstart_without_real_ratings_says_so_and_runs_on_synthetic_ones(tmp_path, capsys, monkeypatch):
    def nothing(name, *, path):
        raise data.DatasetNotFound("every way, listed")

    monkeypatch.setattr(data, "load", nothing)
    result = quickstart.main(quickstart.Settings(out=str(tmp_path), user=3, rank=2))
    shown = capsys.readouterr().out
    assert "SYNTHETIC" in shown
    assert "every way, listed" in shown
    assert result["settings"]["data"] == "synthetic"


def test_quickstart_unknown_film_and_user(tmp_path):
    with pytest.raises(ValueError, match="no title contains 'Nosuch'"):
        quickstart.main(quickstart.Settings(**TINY, out=str(tmp_path), film="Nosuch", user=3))
    with pytest.raises(ValueError, match="user: 999 is not among the 60"):
        quickstart.main(quickstart.Settings(**TINY, out=str(tmp_path), film="Film 1", user=999))


def test_als_chooses_on_validation_and_reads_test_once(tmp_path, monkeypatch):
    asked = []
    errors = harness.errors
    monkeypatch.setattr(harness, "errors", lambda f, r, scale: asked.append(len(r)) or errors(f, r, scale))
    als.main(als.Settings(**TINY, out=str(tmp_path), ranks=(1, 2), l2s=(1.0, 3.0), l2_biases=(1.0,), sweeps=5))
    metrics = read(tmp_path, "als")["metrics"]
    validation, test = round(0.1 * (1200 - 240)), 240
    assert asked == [validation] * 4 + [test, test]  # the grid; then the choice and the baseline, on test
    assert metrics["rank"] in (1, 2)
    assert metrics["l2"] in (1.0, 3.0)
    assert metrics["test_rmse"] < metrics["damped_biases_test_rmse"] * 1.2


def test_gradient_descent(tmp_path):
    settings = gradient_descent.Settings(
        **TINY, out=str(tmp_path), rank=2, l2s=(1.0, 3.0), adam_iterations=40, descent_iterations=400, descent_rate=0.01
    )
    gradient_descent.main(settings)
    metrics = read(tmp_path, "gradient_descent")["metrics"]
    assert metrics["adam_iterations"] == 40
    assert metrics["adam_cost"] == pytest.approx(metrics["gradient_descent_cost"], rel=0.1)  # one J, two ways down
    assert metrics["test_rmse"] == metrics["adam_test_rmse"]


@pytest.mark.parametrize("module", [quickstart, als, gradient_descent])
def test_results_repeat(module, tmp_path):
    small = {"rank": 2, "user": 3, "film": "Film 1"} if module is quickstart else {"l2s": (2.0,)}
    if module is als:
        small |= {"ranks": (2,), "l2_biases": (1.0,)}
    settings = module.Settings(**TINY, out=str(tmp_path), **small)
    if module is gradient_descent:
        settings = dataclasses.replace(settings, adam_iterations=20, descent_iterations=20)
    strip = lambda r: {k: v for k, v in r["metrics"].items() if "seconds" not in k}
    assert strip(module.main(settings)) == strip(module.main(settings))


def test_errors_are_clipped_to_the_scale():
    ratings = data.Ratings([0, 0], [0, 1], [5.0, 4.0], 1, 2)
    factors = quickstart.models.baselines.popularity(ratings)  # predicts 1 for both
    assert harness.errors(factors, ratings, (3.0, 5.0)) == pytest.approx({"rmse": np.sqrt((4 + 1) / 2), "mae": 1.5})
    assert harness.errors(factors, ratings, None)["mae"] == pytest.approx((4 + 3) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nosuch", "1"], "unrecognized arguments: --nosuch"),
        (["--rank", "many"], "argument --rank: invalid int value: 'many'"),
        (["--see", "1"], "unrecognized arguments: --see"),  # no abbreviations
    ],
)
def test_unknown_and_mistyped_settings_are_errors(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.quickstart", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_a_result_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        harness.report("broken", harness.Settings(out=str(tmp_path)), {"test_rmse": float("nan")}, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    harness.report("kept", harness.Settings(out=str(tmp_path)), {"test_rmse": 1.0}, 0.0)

    def fail(axes):
        raise RuntimeError("in mid-plot")

    def half(path):
        path.write_text("half")
        raise RuntimeError("in mid-write")

    with pytest.raises(RuntimeError, match="in mid-plot"):
        harness.plot("kept", harness.Settings(out=str(tmp_path)), fail)
    with pytest.raises(RuntimeError, match="in mid-write"):
        harness.write(tmp_path / "kept.json", half)
    assert json.loads((tmp_path / "kept.json").read_text())["metrics"] == {"test_rmse": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]
