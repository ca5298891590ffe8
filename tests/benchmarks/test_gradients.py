"""The gradient benchmark on small tables: only correct answers are timed, and what fails is reported."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gradients, harness, inputs
from jaxrec import data


@pytest.fixture
def gradients_in_this_process(in_this_process):
    in_this_process(gradients)


SMALL = {"ratings": (400,), "ranks": (3,), "n_users": 40, "n_items": 30, "repeats": 2}


@pytest.mark.slow
def test_every_cell_is_checked_and_its_time_and_memory_measured(gradients_in_this_process, tmp_path, capsys):
    result = gradients.main(gradients.Settings(**SMALL, out=str(tmp_path)))
    rows = result["metrics"]["rows"]
    assert [(row["layout"], row["gradient"]) for row in rows] == [
        (layout, gradient) for layout in gradients.LAYOUTS for gradient in gradients.GRADIENTS
    ]
    for row in rows:
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert row["argument_bytes"] > 0
        assert row["peak_resident"] >= row["resident_of_the_gradient"] >= 0
    (ratio,) = result["metrics"]["ratios"]
    autodiff = min(row["seconds"] for row in rows if row["gradient"] == "autodiff" and row["layout"] != "dense")
    closed = next(row for row in rows if (row["layout"], row["gradient"]) == ("linked", "closed form"))
    assert ratio["ratio"] == pytest.approx(autodiff / closed["seconds"])
    assert json.loads((tmp_path / "gradients.json").read_text())["experiment"] == "gradients"
    assert (tmp_path / "gradients.png").exists()
    assert "linked" in capsys.readouterr().out


def test_a_cell_that_does_not_fit_into_memory_is_reported_and_the_others_run(
    gradients_in_this_process, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(harness, "fits", lambda needed: "does not fit: no" if needed > 1e4 else None)
    result = gradients.main(gradients.Settings(**SMALL | {"n_users": 200, "n_items": 100}, out=str(tmp_path)))
    failed = {(row["layout"], row["gradient"]): row.get("failed") for row in result["metrics"]["rows"]}
    assert failed["dense", "autodiff"] == "does not fit: no"
    assert "does not fit: no" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["w", "b", "x", "c", "value"])
def test_a_wrong_gradient_is_not_timed(part):
    ratings = data.synthetic.low_rank(40, 30, 400, rng=0).ratings
    factors = inputs.random_factors(ratings, 3)
    value, gradient = gradients.GRADIENTS["closed form"](factors, data.linked(ratings))
    gradients.check(ratings, factors, (value, gradient))
    if part == "value":
        wrong = value * 1.01, gradient
    else:
        wrong = value, dataclasses.replace(gradient, **{part: getattr(gradient, part) * 1.01 + 0.01})
    with pytest.raises(AssertionError):
        gradients.check(ratings, factors, wrong)


def test_a_cell_that_fails_for_another_reason_is_an_error_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(
        harness, "in_fresh_process", lambda module, cell, *, timeout: {"failed": "AssertionError: no", "wrong": True}
    )
    with pytest.raises(RuntimeError, match="another reason than memory or time(?s:.*)AssertionError: no"):
        gradients.main(gradients.Settings(**SMALL, out=str(tmp_path)))


def test_a_new_process_returns_its_answer_or_the_reason_for_its_failure(tmp_path, monkeypatch):
    (tmp_path / "tool.py").write_text(
        "import json, os, signal, sys, time\n"
        "cell = json.loads(sys.argv[sys.argv.index('--cell') + 1])\n"
        "if cell['do'] == 'answer': print('noise'); print(json.dumps({'twice': 2 * cell['n']}))\n"
        "if cell['do'] == 'raise': raise ValueError('what went wrong')\n"
        "if cell['do'] == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if cell['do'] == 'sleep': time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    run = lambda **cell: harness.in_fresh_process("tool", cell, timeout=1.5 if cell["do"] == "sleep" else 60)
    assert run(do="answer", n=4) == {"twice": 8}
    assert run(do="raise") == {"failed": "ValueError: what went wrong", "wrong": True}
    assert run(do="kill") == {"failed": "killed: out of memory"}
    assert run(do="sleep") == {"failed": "not done after 2 s"}


def test_serve_prints_the_answer_of_a_cell(monkeypatch, capsys):
    assert harness.serve(lambda cell: cell) is False
    monkeypatch.setattr(sys, "argv", ["x", "--cell", '{"a": 1}'])
    assert harness.serve(lambda cell: {"b": cell["a"] + 1}) is True
    assert json.loads(capsys.readouterr().out) == {"b": 2}


def test_memory_and_seconds_of_a_known_function():
    compiled, weights = harness.compile_and_weigh(lambda x: jnp.sort(x.ravel())[::7], jnp.ones((64, 64)))
    assert weights["argument_bytes"] == 64 * 64 * 4
    assert weights["temporary_bytes"] >= 64 * 64 * 4
    assert weights["compile_seconds"] > 0
    timings = harness.seconds(compiled, jnp.ones((64, 64)), repeats=3)
    assert 0 < timings["fastest"] <= timings["seconds"] <= timings["slowest"]
    jax.block_until_ready(compiled(jnp.ones((64, 64))))


def test_the_available_memory_is_that_of_the_machine():
    assert harness.fits(1) is None
    assert harness.fits(1e18).startswith("does not fit: 1000000000.0 GB needed")
    assert harness.peak_resident() > 50e6
