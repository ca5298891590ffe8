"""Checkpoints: an interrupted run continues bit for bit, another run's folder is refused, damage is noticed."""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec
from jaxrec import Checkpoint, bayes, checkpoints, data, solvers, training
from jaxrec.checkpoints import checkpointed

RATINGS = data.synthetic.low_rank(30, 20, 250, rng=0).ratings
OTHER_RATINGS = data.synthetic.low_rank(30, 20, 250, rng=1).ratings
STEPS = 6
LEVELS = np.unique(RATINGS.value).tolist()


def als(checkpoint, train=RATINGS, steps=STEPS, **options):
    options = {"rank": 2, "l2": 1.0, "tol": 0.0, "progress": False, **options}
    return solvers.als(train, sweeps=steps, checkpoint=checkpoint, **options)


def implicit_als(checkpoint, train=RATINGS, steps=STEPS, **options):
    options = {"rank": 2, "l2": 1.0, "unobserved_weight": 0.1, "tol": 0.0, "progress": False, **options}
    return solvers.implicit_als(train, sweeps=steps, checkpoint=checkpoint, **options)


def noisy_cost(params, batch, key):
    noise = jax.random.normal(key, batch.value.shape)
    prediction = jnp.sum(params["w"][batch.user] * params["x"][batch.item], axis=1)
    return jnp.sum(jnp.where(batch.where, (prediction - batch.value + 0.01 * noise) ** 2, 0))


def validation(params):
    return float(jnp.sum(params["w"] ** 2))


ADAM = optax.adam(0.01)


def fit(checkpoint, train=RATINGS, steps=STEPS, **options):
    """Three minibatches an epoch, with momentum, random numbers in the cost and a validation."""
    sizes = {"w": (30, 2), "x": (20, 2)}
    start = {name: 0.5 + np.arange(np.prod(size), dtype=np.float32).reshape(size) / 99 for name, size in sizes.items()}
    batches = data.minibatches(train, batch_size=100, rng=0)
    options = {"optimizer": ADAM, "key": jax.random.key(0), "validate": validation, "progress": False, **options}
    return training.fit(noisy_cost, start, batches, epochs=steps, checkpoint=checkpoint, **options)


def powers(member, base):
    return {"power": member["a"] ** base, "two": jnp.stack([member["a"], base])}


def grid(checkpoint, base=2.0, steps=STEPS, **options):
    members = options.pop("members", training.grid_points(a=np.linspace(0.5, 2, steps).tolist()))
    return training.grid(powers, members, jnp.float32(base), checkpoint=checkpoint, progress=False, **options)


def gibbs(checkpoint, train=RATINGS, steps=STEPS, **options):
    """Two chains; the posterior of some pairs is averaged from the third sweep on."""
    options = {"rank": 2, "chains": 2, "burn_in": 2, "key": jax.random.key(0), "scale": (1.0, 5.0), **options}
    options = {"sweeps_per_call": 1, "progress": False, **options}
    test = options.pop("test", OTHER_RATINGS)
    return bayes.gibbs(train, test, sweeps=steps, checkpoint=checkpoint, **options)


RUNS = {"gibbs": gibbs, "als": als, "implicit_als": implicit_als, "fit": fit, "grid": grid}
# What differs from the first run, and the name that the error must say.
CHANGES = {
    "als": [
        ({"train": OTHER_RATINGS}, "train"),
        ({"l2": 2.0}, "l2"),
        ({"l2": (1.0, 2.0)}, "l2"),
        ({"l2_bias": 0.5}, "l2_bias"),
        ({"rank": 3}, "init"),
        ({"key": jax.random.key(1)}, "init"),
        ({"cg_steps": 2}, "cg_steps"),
        ({"tol": 1e-9}, "tol"),
    ],
    "implicit_als": [
        ({"unobserved_weight": 0.2}, "unobserved_weight"),
        ({"train": OTHER_RATINGS}, "train"),
        ({"block_size": 2}, "block_size"),
    ],
    "fit": [
        ({"train": OTHER_RATINGS}, "the first batch of epoch 0 changed"),
        ({"optimizer": optax.adam(0.02)}, "the optimizer changed"),
        ({"optimizer": optax.sgd(0.01)}, "its state has the arrays"),
        ({"key": jax.random.key(1)}, "the key changed"),
        ({"validate": None}, "validate"),
        ({"patience": 3}, "patience"),
        ({"tol": 1e-9}, "tol"),
    ],
    "gibbs": [
        ({"train": OTHER_RATINGS}, "train"),
        ({"test": RATINGS}, "test"),
        ({"rank": 3}, "init"),
        ({"key": jax.random.key(1)}, "key"),
        ({"burn_in": 3}, "burn_in"),
        ({"scale": (0.5, 5.0)}, "scale"),
        ({"mu": 3.0}, "mu"),
        ({"priors": bayes.Priors(noise=(2.0, 2.0))}, "priors"),
        ({"priors": bayes.Priors(heteroscedastic=False)}, "priors"),
        ({"sweeps_per_call": 2}, "sweeps_per_call"),
    ],
    "grid": [
        ({"base": 3.0}, "data"),
        ({"members": training.grid_points(a=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))}, "members"),
        ({"batch_size": 2}, "batch_size"),
    ],
}


def bits(result):
    """Type, shape and bytes of every array and number of a result."""
    if isinstance(result, training.FitResult):
        history = result.history
        result = result.params, history.loss, history.validation, history.best_epoch, history.state, history.best
    elif isinstance(result, solvers.ALSResult):
        result = result.factors, result.info.trace, result.info.converged
    return [(np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(result)]


class Interruption(BaseException):
    pass


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(n): from now on, the n-th save raises Interruption when it is complete; returns the steps saved."""
    save = checkpoints.Run.save

    def after(n):
        steps = []

        def save_and_raise(run, step, *content):
            save(run, step, *content)
            steps.append(step)
            if len(steps) == n:
                raise Interruption

        monkeypatch.setattr(checkpoints.Run, "save", save_and_raise)
        return steps

    return after


VARIANTS = [
    *((name, {}) for name in RUNS),
    pytest.param("als", {"cg_steps": 3}, marks=pytest.mark.slow),
    ("implicit_als", {"cg_steps": 3}),
    ("implicit_als", {"block_size": 2}),
    ("fit", {"patience": 2}),
    pytest.param("gibbs", {"levels": LEVELS}, marks=pytest.mark.slow),  # compiles for ten seconds
    ("grid", {"batch_size": 4}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_an_interrupted_run_continues_bit_for_bit(name, options, tmp_path, interrupt):
    """Interrupted after the first save, then after another, then left alone: no step is made twice."""
    expected = bits(RUNS[name](None, **options))
    every_step, saved = Checkpoint(tmp_path / "run", every_steps=1), []
    for n in (1, 1, 99):
        steps = interrupt(n)
        try:
            result = RUNS[name](every_step, **options)
        except Interruption:
            assert n < 99
        saved += steps
    assert bits(result) == expected
    assert saved == sorted(set(saved))
    assert len(saved) >= 2
    saved_again = interrupt(99)
    assert bits(RUNS[name](every_step, **options)) == expected  # a finished run is read
    assert saved_again == []


@pytest.mark.parametrize("name", ["als", "implicit_als", "fit", "gibbs"])
def test_a_finished_run_can_be_made_longer(name, tmp_path):
    RUNS[name](tmp_path / "run", steps=3)
    assert bits(RUNS[name](tmp_path / "run", steps=5)) == bits(RUNS[name](None, steps=5))
    with pytest.raises(ValueError, match="expected at least the 5 that the"):
        RUNS[name](tmp_path / "run", steps=4)


def test_a_run_that_a_callback_stopped_stays_stopped(tmp_path):
    stop = lambda step, *_: step == 2
    expected = bits(als(None, callback=stop))
    for _ in range(2):
        assert bits(als(tmp_path / "als", callback=stop)) == expected
    expected = bits(fit(None, callback=stop))
    for _ in range(2):
        assert bits(fit(tmp_path / "fit", callback=stop)) == expected
    assert fit(tmp_path / "fit", callback=stop).history.stopped == "callback"


@pytest.mark.parametrize(("name", "change", "message"), [(n, *c) for n, changes in CHANGES.items() for c in changes])
def test_another_runs_folder_is_refused_by_name(name, change, message, tmp_path):
    RUNS[name](tmp_path / "run")
    with pytest.raises(ValueError, match=f"checkpoint: .*{message}"):
        RUNS[name](tmp_path / "run", **change)
    RUNS[name](tmp_path / "run")  # and it was not touched


def test_another_kind_of_run_is_refused_by_name(tmp_path):
    als(tmp_path / "run")
    with pytest.raises(ValueError, match="written by another run: .*run is implicit_als, was als"):
        implicit_als(tmp_path / "run")


def rewrite(folder, change):
    """Changes the manifest of every step, with a valid digest."""
    for path in folder.glob("step-*/manifest.json"):
        content = json.loads(path.read_text().partition("\n")[2])
        change(content)
        text = json.dumps(content)
        path.write_text(f"{checkpoints.hashlib.sha256(text.encode()).hexdigest()}\n{text}")


@pytest.mark.parametrize("package", ["jaxrec", "jax"])
def test_a_checkpoint_of_another_version_is_refused_by_name(package, tmp_path):
    als(tmp_path)
    rewrite(tmp_path, lambda content: content["settings"].update({f"the version of {package}": "9.9"}))
    with pytest.raises(ValueError, match=f"the version of {package} is .*, was 9.9"):
        als(tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    als(tmp_path)
    rewrite(tmp_path, lambda content: content.update(format=2))
    with pytest.raises(ValueError, match=f"in format 2 by jaxrec {jaxrec.__version__}, and .* reads format 1"):
        als(tmp_path)


def test_every_file_of_a_step_is_checked_and_the_step_before_is_used(tmp_path, caplog):
    """One byte of each file of the latest step is flipped in turn, or the file is removed."""
    state = {"w": np.arange(1000.0), "step": np.zeros((), np.int32)}
    folder = Checkpoint(tmp_path, every_steps=1)

    def latest():
        with checkpointed(folder, settings={}, like=state) as run:
            return run.saved.step

    with checkpointed(folder, settings={}, like=state) as run:
        for step in (1, 2, 3):
            run.save(step, state, {})
    assert latest() == 3
    files = sorted(path for path in (tmp_path / "step-0000000003").rglob("*") if path.is_file())
    assert sum(path.stat().st_size > 100 for path in files) > 3
    for path in files:
        content = path.read_bytes()
        for changed in (
            bytes([content[0] ^ 1]) + content[1:],
            content[:-1] + bytes([content[-1] ^ 128]),
            content[:-1],
            None,
        ):
            path.unlink() if changed is None else path.write_bytes(changed)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "jaxrec"):
                assert latest() == 2
            assert "step-0000000003" in caplog.text
            assert "trying the step before" in caplog.text
            path.write_bytes(content)
    assert latest() == 3


def test_after_damage_a_run_ends_with_the_same_bits(tmp_path, interrupt):
    expected, every_step = bits(als(None)), Checkpoint(tmp_path, every_steps=1)
    interrupt(4)
    with pytest.raises(Interruption):
        als(every_step)
    (tmp_path / "step-0000000004" / "manifest.json").write_text("")
    saved = interrupt(99)
    assert bits(als(every_step)) == expected
    assert saved == [4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"step-0000000005", "step-0000000006"}


def test_if_no_step_is_whole_the_run_does_not_start_again_by_itself(tmp_path):
    als(tmp_path)
    for path in tmp_path.glob("step-*/manifest.json"):
        path.write_text("")
    with pytest.raises(ValueError, match="no step of .* is whole .*Delete the folder to start again"):
        als(tmp_path)


def count(folder, n, **options):
    """A run of n steps that saves an array and the step's number; returns the steps saved and the folders kept."""
    saved = []
    with checkpointed(Checkpoint(folder, **options), settings={}, like=np.zeros(2)) as run:
        for step in range(1 + (run.saved.step if run.saved else 0), n + 1):
            if run.due(step):
                run.save(step, np.full(2, float(step)), {"step": step})
                saved.append(step)
    return saved, sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_every_so_many_steps_are_saved_and_so_many_kept(tmp_path):
    assert count(tmp_path, 10, every_steps=3) == ([3, 6, 9], [6, 9])
    assert count(tmp_path, 16, every_steps=3, keep=1) == ([12, 15], [15])


def test_every_so_many_seconds(tmp_path, monkeypatch):
    """A clock that advances by a second whenever it is asked."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    often, _ = count(tmp_path / "a", 100, every_seconds=5)
    rarely, _ = count(tmp_path / "b", 100, every_seconds=20)
    assert 10 < len(often) < 25
    assert 3 < len(rarely) < 6
    by_cost, _ = count(tmp_path / "c", 100)  # a save takes 1 second by this clock, so that 20 are between two
    assert 3 < len(by_cost) < 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 0}, "every_steps: expected a whole number >= 1"),
        ({"keep": 0}, "keep: expected a whole number >= 1"),
        ({"every_seconds": -1.0}, "every_seconds: expected"),
        ({"every_seconds": float("nan")}, "every_seconds: expected"),
        ({"every_seconds": 1.0, "every_steps": 1}, "every_steps= or every_seconds=, got both"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint("folder", **options)


def test_a_folder_is_one_runs(tmp_path):
    def second(*_):
        with pytest.raises(ValueError, match="checkpoint: .* is in use by another run"):
            als(tmp_path)

    als(tmp_path, callback=second)
    als(tmp_path)  # it is free again


def test_a_full_disk_is_an_error_and_the_step_before_stays(tmp_path, monkeypatch):
    als(tmp_path, steps=2)
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            als(tmp_path, steps=4)
    assert sorted(tmp_path.rglob("*")) == before
    assert bits(als(tmp_path, steps=4)) == bits(als(None, steps=4))


def test_resume_and_checkpoint_exclude_each_other(tmp_path):
    history = fit(None, steps=2).history
    with pytest.raises(ValueError, match="resume, checkpoint: expected one of the two"):
        fit(tmp_path, resume=history)


def test_batches_that_cannot_be_made_again_are_refused_when_a_run_continues(tmp_path):
    batches = [data.observed(RATINGS)]
    options = {"optimizer": ADAM, "key": jax.random.key(0), "progress": False, "checkpoint": tmp_path}
    cost = lambda params, batch: jnp.sum(params**2) + 0 * jnp.sum(batch.value)
    training.fit(cost, jnp.ones(2), iter(batches), epochs=1, **options)
    with pytest.raises(ValueError, match="got a generator"):
        training.fit(cost, jnp.ones(2), iter(batches), epochs=2, **options)


def test_a_state_may_hold_keys_and_arrays_of_every_type(tmp_path):
    state = {
        "key": jax.random.split(jax.random.key(3), 2),
        "host": np.array([1.5, np.nan]),
        "bfloat16": jnp.ones((2, 3), jnp.bfloat16),
        "bool": jnp.array(True),
        "empty": jnp.zeros((0, 2), jnp.int32),
    }
    with checkpointed(tmp_path, settings={}, like=state) as run:
        run.save(1, state, {})
    with checkpointed(tmp_path, settings={}, like=state) as run:
        got = run.saved.state
    assert jax.tree.map(type, got) == jax.tree.map(type, state)
    raw = lambda tree: bits({**tree, "key": jax.random.key_data(tree["key"])})
    assert raw(got) == raw(state)


@pytest.mark.devices
def test_arrays_go_back_to_their_devices(tmp_path):
    mesh = jax.make_mesh((3,), ("rows",))
    spread = jax.device_put(jnp.arange(6.0), jax.NamedSharding(mesh, jax.P("rows")))
    second = jax.device_put(jnp.arange(2.0), jax.devices()[1])
    state = {"spread": spread, "second": second, "anywhere": jnp.zeros(2)}
    with checkpointed(tmp_path, settings={}, like=state) as run:
        run.save(1, state, {})
    with checkpointed(tmp_path, settings={}, like=state) as run:
        got = run.saved.state
    assert got["spread"].sharding == spread.sharding
    assert got["second"].devices() == second.devices()
    assert (got["second"] + got["second"]).devices() == second.devices()
    assert not got["anywhere"].committed
    assert bits(got) == bits(state)


def test_nothing_is_pickled(tmp_path):
    fit(tmp_path)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or not re.match(rb"\x80[\x02-\x05]", path.read_bytes()[:2])


SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
from test_checkpoints import RUNS, Checkpoint, bits
for result in bits(RUNS[sys.argv[1]](Checkpoint(sys.argv[2], every_steps=1), steps=40)):
    print(result[:2], hashlib.sha256(result[2]).hexdigest())
print("done", flush=True)
"""


def run(name, folder, kill_after=None, how=signal.SIGKILL):
    """Runs one of RUNS in a process, to its end or killed so many seconds after its first new step was saved."""
    root, before = Path(jaxrec.__file__).parents[1], set(folder.glob("step-*"))
    command = [sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent)), name, folder]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if kill_after is not None:
            while process.poll() is None and set(folder.glob("step-*")) <= before:
                time.sleep(0.002)
            time.sleep(kill_after)
            process.send_signal(how)
        output, error = process.communicate()
    assert process.returncode in (0, -how), error
    return output, process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("als", signal.SIGKILL),
        ("als", signal.SIGTERM),
        *((name, signal.SIGKILL) for name in RUNS if name != "als"),
    ],
)
def test_killed_at_random_moments_a_run_continues_bit_for_bit(name, how, tmp_path):
    """Killed twice, some hundredths of a second after its first new step was saved."""
    expected, _ = run(name, tmp_path / "whole")
    assert expected.endswith("done\n")
    moments = random.Random(f"{name} {how}")
    codes = [run(name, tmp_path / "killed", moments.random() / 10, how)[1] for _ in range(2)]
    assert -how in codes
    output, code = run(name, tmp_path / "killed")
    assert (output, code) == (expected, 0)
