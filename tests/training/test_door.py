"""What training refuses, what a resumed fit must have in common, and that a second call compiles nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import training
from jaxrec.training import lazy, resume
from jaxrec.types import Observed, Total

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
ONES = [jnp.ones(1)]
NAN, INF = float("nan"), float("inf")
ADAM = optax.adam(0.1)


def parabola(w, batch):
    return jnp.sum((w * batch - 1.0) ** 2)


def fit(cost=parabola, params=3.0, batches=ONES, **options):
    options = {"optimizer": optax.sgd(0.01), "key": KEY, "epochs": 3, "progress": False} | options
    return training.fit(cost, jax.tree.map(jnp.asarray, params), batches, **options)


# --- what is not finite ---


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize("epoch", range(3))
def test_a_validation_that_is_not_finite_is_an_error_at_any_epoch(epoch, wrong):
    scores = [1.0, 2.0, 3.0]
    scores[epoch] = wrong
    scores = iter(scores)
    with pytest.raises(FloatingPointError, match=rf"epoch {epoch}: validate returned {wrong}.*Check what it computes"):
        fit(validate=lambda w: next(scores))


@pytest.mark.parametrize("wrong", [None, [1.0, 2.0], jnp.ones(2), "1.0", Total(jnp.ones(()), jnp.ones(()))])
def test_a_validation_is_one_number(wrong):
    with pytest.raises(ValueError, match="validate: expected one number, lower is better, got"):
        fit(validate=lambda w: wrong)
    for right in (1, np.float64(1.0), np.ones(1), jnp.ones(()), jnp.ones(1, jnp.bfloat16)):
        assert fit(validate=lambda w, right=right: right)[1].validation.tolist() == [1.0] * 3


@jax.custom_vjp
def breaks_at(w, batch):
    """A cost of 1 whose gradient is 0 where `batch` is, and NaN where it is 1."""
    return jnp.float32(1.0)


breaks_at.defvjp(
    lambda w, batch: (jnp.float32(1.0), (w, batch)), lambda given, _: (0 * given[0] + 0 / (1 - given[1]), given[1])
)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("epochs", [1, 3])
def test_parameters_broken_by_the_last_step_are_an_error(n_steps, epochs):
    """No cost is computed after it, so that no loss shows it."""
    steps = lambda epoch: [jnp.float32(epoch == epochs - 1 and k == n_steps - 1) for k in range(n_steps)]
    cost = lambda params, batch: breaks_at(params["w"], batch) + 0 * params["b"]
    at = n_steps * epochs - 1
    match = rf"step {at} \(epoch {epochs - 1}\), learning rate 0.01: the parameters after it are not finite: \['w'\]"
    for validate in (None, lambda p: 1.0):
        with pytest.raises(FloatingPointError, match=match + r".*smaller learning rate \(0.001\)"):
            fit(cost, {"w": 3.0, "b": 1.0}, steps, epochs=epochs, validate=validate)


def test_a_mean_of_nothing_breaks_the_parameters_and_is_named():
    nothing = lambda w, batch: Total(jnp.sum(w * batch), jnp.zeros(()))
    with pytest.raises(FloatingPointError, match="a mean over no entries"):
        fit(nothing, epochs=1)


@pytest.mark.parametrize("count", [NAN, INF])
def test_a_count_that_is_not_finite_is_an_error(count):
    with pytest.raises(FloatingPointError, match=rf"step 0 \(epoch 0\).*: the loss's count is {count}"):
        fit(lambda w, batch: Total(jnp.sum(w * batch), jnp.float32(count)))


@pytest.mark.parametrize("wrong", [NAN, INF])
def test_parameters_are_finite_to_begin_with(wrong):
    with pytest.raises(ValueError, match=r"params: expected finite initial values, got NaN or infinity in \['b'\]"):
        fit(lambda p, _: p["w"], {"w": 1.0, "b": wrong}, epochs=0)


@jax.custom_vjp
def of_slope(w, slope):
    """A cost of 1 with this gradient."""
    return jnp.float32(1.0)


of_slope.defvjp(lambda w, slope: (jnp.float32(1.0), slope), lambda slope, _: (slope, 0 * slope))
SGD = optax.sgd(0.01)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32) | st.sampled_from([NAN, INF, -INF]), min_size=1, max_size=4))
def test_what_fit_returns_is_finite_or_it_is_an_error(slopes):
    batches = [jnp.float32(slope) for slope in slopes]
    try:
        w, history = fit(of_slope, batches=batches, optimizer=SGD, epochs=2, validate=lambda w: 0.0)
    except FloatingPointError:
        assert not np.isfinite(slopes).all()
    else:
        assert np.isfinite(slopes).all()
        assert np.isfinite(w)
        assert np.isfinite(history.state.params)


# --- resume ---


def two(params, batch):
    return jnp.sum(params["w"] ** 2) + jnp.sum((params["b"] - batch["x"]) ** 2)


START = {"w": jnp.ones((3, 2)), "b": jnp.zeros(4)}
BATCHES = [{"x": jnp.arange(4.0)}, {"x": jnp.ones(4)}]
SCHEDULE = optax.piecewise_constant_schedule(0.1, {1_000: 0.5})
LATER = optax.piecewise_constant_schedule(0.1, {1_000: 0.25})
# pairs of optimizers that a user may take for one another
OTHERS = {
    "rate": (optax.adam(0.1), optax.adam(0.2)),
    "rate of sgd": (optax.sgd(0.1), optax.sgd(0.1001)),
    "momentum or none": (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)),
    "momentum": (optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.8)),
    "nesterov": (optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "b1": (optax.adam(0.1), optax.adam(0.1, b1=0.8)),
    "b2": (optax.adam(0.1), optax.adam(0.1, b2=0.99)),
    "eps": (optax.adam(0.1), optax.adam(0.1, eps=1e-6)),
    "kind": (optax.adam(0.1), optax.nadam(0.1)),
    "sgd or lion": (optax.sgd(0.1), optax.sign_sgd(0.1)),
    "decay": (optax.adamw(0.1), optax.adamw(0.1, weight_decay=0.1)),
    "mask": (optax.adamw(0.1), optax.adamw(0.1, mask={"w": True, "b": False})),
    "clipping": (optax.chain(optax.clip(1.0), SGD), optax.chain(optax.clip(2.0), SGD)),
    "clipping of norms": (
        optax.chain(optax.clip_by_global_norm(1.0), SGD), optax.chain(optax.clip_by_global_norm(9.0), SGD)
    ),
    "schedule or none": (optax.sgd(0.1), optax.sgd(SCHEDULE)),
    "schedule": (optax.sgd(SCHEDULE), optax.sgd(LATER)),
    "warm-up": (optax.adam(optax.linear_schedule(0.0, 0.1, 10)), optax.adam(optax.linear_schedule(0.0, 0.1, 20))),
    "steps gathered": (optax.MultiSteps(SGD, 2), optax.MultiSteps(SGD, 4)),
    "rate of gathered": (optax.MultiSteps(SGD, 4), optax.MultiSteps(optax.sgd(0.02), 4)),
    "injected": tuple(optax.inject_hyperparams(optax.adam)(learning_rate=rate) for rate in (0.1, 0.2)),
}  # fmt: skip


def made_by(optimizer=ADAM, epochs=2, **options):
    return fit(two, START, options.pop("batches", BATCHES), optimizer=optimizer, epochs=epochs, **options)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizer_is_seen(name):
    one, other = OTHERS[name]
    for then, now in ((one, other), (other, one)):
        now = now.gradient_transformation() if isinstance(now, optax.MultiSteps) else now
        then = then.gradient_transformation() if isinstance(then, optax.MultiSteps) else then
        history = made_by(then)
        with pytest.raises(ValueError, match=r"resume: the optimizer('s state)? changed"):
            made_by(now, epochs=4, resume=history)
        made_by(then, epochs=4, resume=history)


@pytest.mark.slow
def test_the_same_optimizer_made_again_is_the_same():
    for make in (
        lambda: optax.adam(0.1),
        lambda: optax.lbfgs(),
        lambda: optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        lambda: optax.adafactor(0.1),
        lambda: optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
        lambda: optax.stateless(lambda updates, params: {"w": -updates["w"] * rates, "b": -updates["b"]}),
    ):
        rates = jnp.arange(6.0).reshape(3, 2) / 10  # of the parameters' shape, which a corner of them has not
        made_by(make(), epochs=4, resume=made_by(make()))


def test_the_message_says_what_was_and_what_is():
    with pytest.raises(ValueError, match=r"fixed gradient is -0.2, was -0.1 \(step 0\)\. Pass the optimizer"):
        made_by(optax.adam(0.2), epochs=4, resume=made_by(optax.adam(0.1)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            START | {"w": jnp.ones((4, 2))},
            r"the parameters changed: \['w'\] is float32\[4, 2\], was float32\[3, 2\]",
        ),
        (START | {"b": jnp.zeros(4, jnp.bfloat16)}, r"\['b'\] is bfloat16\[4\], was float32\[4\]"),
        ({"w": START["w"]}, r"\['b'\] is missing, was float32\[4\]"),
        (START | {"c": jnp.ones(1)}, r"\['c'\] is float32\[1\], was missing"),
        (list(START.values()), "the parameters changed"),
    ],
)
def test_other_parameters_are_seen(params, message):
    history = made_by()
    with pytest.raises(ValueError, match=f"resume: .*{message}"):
        fit(
            lambda p, _: sum(jnp.sum(a) for a in jax.tree.leaves(p)),
            params,
            BATCHES,
            optimizer=ADAM,
            epochs=4,
            resume=history,
        )


def test_a_tuple_is_no_list():
    cost = lambda p, _: p[0] ** 2
    _, history = fit(cost, [1.0], optimizer=ADAM)
    with pytest.raises(ValueError, match="the parameters changed"):
        fit(cost, (1.0,), optimizer=ADAM, epochs=4, resume=history)


@pytest.mark.parametrize("key", [jax.random.key(1), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")])
def test_another_key_is_seen(key):
    history = made_by()
    with pytest.raises(ValueError, match="resume: the key changed"):
        made_by(epochs=4, key=key, resume=history)


@pytest.mark.parametrize("key", [None, 0, jnp.zeros(2), jax.random.split(KEY, 2)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match=r"key: expected one random key, such as jax.random.key\(0\)"):
        made_by(key=key)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"x": jnp.arange(4.0).at[2].set(2.5)}, r"\['x'\]: float32\[4\] \w+, was \['x'\]: float32\[4\] \w+"),
        ({"x": jnp.arange(4)}, r"\['x'\]: int32\[4\]"),
        ({"x": jnp.arange(4.0)[None]}, r"\['x'\]: float32\[1, 4\]"),
        ({"x": jnp.arange(4.0), "y": jnp.ones(1)}, r"\['y'\]: float32\[1\] \w+, was missing"),
    ],
)
def test_other_batches_are_seen(first, message):
    history = made_by()
    for batches in ([first, *BATCHES[1:]], lambda epoch: iter([first]) if epoch == 0 else iter(BATCHES)):
        with pytest.raises(ValueError, match=f"resume: the first batch of epoch 0 changed: {message}"):
            fit(lambda p, batch: jnp.sum(p["w"]), START, batches, optimizer=ADAM, epochs=4, resume=history)


def test_batches_in_another_order_or_of_another_epoch_are_seen():
    history = made_by()
    with pytest.raises(ValueError, match="first batch"):
        made_by(batches=BATCHES[::-1], epochs=4, resume=history)
    shuffled = lambda seed: (
        lambda epoch: [{"x": jnp.asarray(np.random.default_rng((seed, epoch)).random(4, np.float32))}]
    )
    history = made_by(batches=shuffled(0))
    made_by(batches=shuffled(0), epochs=4, resume=history)
    with pytest.raises(ValueError, match="first batch"):
        made_by(batches=shuffled(1), epochs=4, resume=history)


def test_to_resume_with_a_generator_would_spend_it():
    history = made_by(batches=(b for b in BATCHES), epochs=1)
    with pytest.raises(ValueError, match="expected a list or a function of the epoch to resume with"):
        made_by(batches=(b for b in BATCHES), epochs=2, resume=history)


def test_a_validation_is_there_before_and_after():
    score = lambda p: float(p["b"][0])
    with pytest.raises(ValueError, match=r"resume: the history was made with validate=, and this call has none"):
        made_by(epochs=4, resume=made_by(validate=score))
    with pytest.raises(ValueError, match=r"resume: the history was made without validate=, and this call has one"):
        made_by(epochs=4, resume=made_by(), validate=score)


def test_a_history_is_not_undone():
    with pytest.raises(ValueError, match="epochs: expected at least the 2 that the history has done"):
        made_by(epochs=1, resume=made_by())
    history = made_by()
    assert made_by(epochs=2, resume=history).loss.tolist() == history.loss.tolist()


def test_a_history_that_is_broken_is_refused():
    history = made_by()
    for broken in (
        dataclasses.replace(history, best=START | {"b": jnp.full(4, NAN)}),
        dataclasses.replace(history, state=dataclasses.replace(history.state, params=START | {"b": jnp.full(4, INF)})),
    ):
        with pytest.raises(
            ValueError, match=r"resume: expected finite parameters in the history, got NaN or infinity in .*\['b'\]"
        ):
            made_by(epochs=4, resume=broken)


def test_a_fingerprint_survives_json_and_a_history_may_have_none():
    history = made_by()
    kept = resume.Fingerprint(**json.loads(json.dumps(history.fingerprint._asdict())))
    for again in (kept, None):
        resumed = made_by(epochs=4, resume=dataclasses.replace(history, fingerprint=again))
        np.testing.assert_array_equal(resumed.loss, made_by(epochs=4).loss)
    with pytest.raises(ValueError, match="optimizer"):
        made_by(optax.adam(0.2), epochs=4, resume=dataclasses.replace(history, fingerprint=kept))
    again = made_by(epochs=4, resume=made_by(epochs=0))  # nothing was seen of its batches
    assert again.fingerprint == history.fingerprint


# --- options out of range ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs: expected a whole number >= 0, got -1"),
        ({"epochs": 2.5}, "epochs: expected a whole number >= 0, got 2.5"),
        ({"epochs": True}, "epochs: expected a whole number >= 0, got True"),
        ({"patience": 0}, "patience: expected a whole number >= 1, got 0"),
        ({"patience": -3}, "patience: expected a whole number >= 1, got -3"),
        ({"patience": 1.5}, "patience: expected a whole number >= 1, got 1.5"),
        ({"tol": -1e-3}, "tol: expected a finite number >= 0, got -0.001"),
        ({"tol": NAN}, "tol: expected a finite number >= 0, got nan"),
        ({"tol": INF}, "tol: expected a finite number >= 0, got inf"),
        ({"batches": {"x": 1}}, r"expected a sequence of batches .*, got one dict.*\[ratings\]"),
        ({"batches": 3}, "expected a sequence of batches .*, got one int"),
        ({"batches": Observed(*[jnp.ones(1)] * 4)}, "expected a sequence of batches .*, got one Observed"),
    ],
)
def test_options_of_fit_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"validate": lambda w: 0.0} | options)


def test_no_epochs_return_the_start():
    w, history = fit(epochs=0)
    assert (float(w), history.best_epoch, history.loss.size) == (3.0, -1, 0)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_descend_takes_steps(steps):
    with pytest.raises(ValueError, match="steps: expected a whole number >= 1"):
        training.descend(parabola, jnp.ones(()), jnp.ones((1, 1)), optimizer=SGD, key=KEY, steps=steps)


@pytest.mark.parametrize(
    "batches", [(jnp.ones(2), jnp.ones(3)), jnp.ones(()), (jnp.ones(2), jnp.ones(())), jnp.ones((0, 2)), ()]
)
def test_descend_takes_batches_of_one_length(batches):
    run = lambda batches: training.descend(lambda w, _: w, jnp.ones(()), batches, optimizer=SGD, key=KEY, steps=2)
    for call in (run, jax.jit(run)):  # shapes are seen under jit too
        with pytest.raises(ValueError, match=r"batches: expected arrays \[n_batches, ...\] of one length > 0"):
            call(batches)


@pytest.mark.parametrize(
    ("name", "wrong"), [("epochs", 0), ("epochs", -1), ("epochs", 1.0), ("batch_size", 2.0), ("batch_size", True)]
)
def test_epochs_takes_whole_numbers(name, wrong):
    step = lambda state, batch, *, key: (state, Total(jnp.zeros(()), jnp.zeros(())))
    with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
        training.epochs(step, jnp.zeros(()), jnp.ones(4), key=KEY, **{"batch_size": 2, "epochs": 1} | {name: wrong})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "choices: expected at least one name"),
        ({"l2": ()}, "l2: expected at least one value"),
        ({"seed": (0, 1), "l2": iter(())}, "l2: expected at least one value"),
        ({"l2": 1.0}, "l2: expected a list of numbers, got 1.0"),
        ({"l2": "12"}, "l2: expected a list of numbers, got '12'"),
        ({"loss": ("a", "b")}, "loss: expected numbers"),
        ({"l2": [[1.0, 2.0]]}, "l2: expected a list of numbers"),
        ({"seed": (0, 2**40)}, "seed: expected numbers that fit int32"),
    ],
)
def test_a_product_of_nothing(choices, message):
    with pytest.raises(ValueError, match=message):
        training.grid_points(**choices)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_members_of_a_grid_are_numbers(batch_size):
    run = lambda member: member["l2"]
    with pytest.raises(ValueError, match=r"members\['l2'\]: expected numbers, got NaN in member 1"):
        training.grid(run, {"l2": jnp.array([1.0, NAN])}, progress=False, batch_size=batch_size)
    with pytest.raises(ValueError, match="members: expected numbers that fit int32"):
        training.grid(run, {"l2": np.array([1, 2**40])}, progress=False, batch_size=batch_size)
    with pytest.raises(ValueError, match="batch_size: expected a whole number"):
        training.grid(run, {"l2": jnp.ones(2)}, progress=False, batch_size=batch_size + 0.5)


# --- tables ---


def of_table(params, rows, batch):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(rows)) + jnp.sum(params)


def table_step(pair):
    """One eager step of a table of 3 rows, whose batch names the rows of a table."""
    state = lazy.init_state(jnp.zeros(2), {"film": jnp.zeros((3, 1))}, SGD)
    return lazy.make_step(of_table, SGD, lambda batch: batch)(state, pair, key=KEY)


YES = np.ones(2, bool)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"film": (np.array([0, 3]), YES)}, r"rows of table film: expected ids in \[0, 3\), got 3 at position 1"),
        ({"film": (jnp.array([-1, 0]), YES)}, r"got -1 at position 0"),
        ({"film": (np.array([0, 2**32]), YES)}, r"got 4294967296 at position 1"),
        ({"film": (np.array([0, 1]), np.ones(3, bool))}, r"ids \[m\] and where \[m\], got shapes \(2,\) and \(3,\)"),
        ({"film": (np.array([0, 1]), np.ones((2, 1), bool))}, r"got shapes \(2,\) and \(2, 1\)"),
        ({"film": (np.array([[0, 1]]), np.ones((1, 2), bool))}, r"got shapes \(1, 2\) and \(1, 2\)"),
        ({"film": (np.array([0.0, 1.0]), YES)}, "integer ids and boolean where, got float"),
        ({"film": (np.array([0, 1]), np.ones(2))}, "integer ids and boolean where, got int.* and float"),
        ({"song": (np.array([0, 1]), YES)}, r"rows: expected a table of the state \('film'\), got 'song'"),
    ],
)
def test_rows_that_are_not_there(pair, message):
    with pytest.raises(ValueError, match=message):
        table_step(pair)


def test_padding_of_tables_may_be_anything():
    state, _ = table_step({"film": (np.array([1, -1, 2**40]), np.array([True, False, False]))})
    np.testing.assert_allclose(state.params[1]["film"].ravel(), [0, -0.01, 0])


def test_shapes_of_rows_are_seen_under_jit():
    with pytest.raises(ValueError, match="ids \\[m\\] and where \\[m\\]"):
        jax.jit(lambda ids: table_step({"film": (ids, YES)}))(jnp.zeros(3, jnp.int32))


def test_a_state_without_tables_is_refused():
    step = lazy.make_step(of_table, SGD, lambda batch: {})
    with pytest.raises(ValueError, match="state: expected one made by training.lazy.init_state"):
        step(training.init_state(jnp.zeros(2), SGD), 0, key=KEY)


# --- the law: a second identical eager call compiles nothing ---

STATE = training.init_state(jnp.asarray(3.0), ADAM)
COLUMNS = Observed(*(jnp.arange(5, dtype=jnp.int32),) * 2, jnp.ones(5), jnp.ones(5, bool))
MEMBERS = {"a": np.array([1.0, 2.0, 3.0], np.float32)}


def square_of(w, batch):
    return jnp.sum((w * batch.value - 1.0) ** 2)


STEP = training.make_step(lambda w, batch: jnp.sum(w * batch.value), ADAM)
PAIR_STEP = lazy.make_step(of_table, ADAM, lambda batch: batch)
PAIR_STATE = lazy.init_state(jnp.zeros(2), {"film": jnp.zeros((3, 1))}, ADAM)
BOTH = {"film": (jnp.array([0, 2]), jnp.asarray(YES))}
HISTORY = training.fit(parabola, jnp.asarray(3.0), ONES, optimizer=ADAM, key=KEY, epochs=1, progress=False)[1]
square = lambda member: member["a"] ** 2
score = lambda w: float(w)

CALLS = {
    "TrainHistory": lambda: dataclasses.replace(HISTORY),
    "TrainState": lambda: dataclasses.replace(STATE),
    "descend": lambda: training.descend(parabola, jnp.asarray(3.0), jnp.ones((2, 1)), optimizer=ADAM, key=KEY, steps=3),
    "epochs": lambda: training.epochs(STEP, STATE, COLUMNS, batch_size=2, key=KEY, epochs=2),
    "fit": lambda: fit(optimizer=ADAM, validate=score, patience=1),
    "fit_epochs": lambda: training.fit_epochs(
        square_of, jnp.asarray(3.0), COLUMNS, batch_size=2, optimizer=ADAM, key=KEY, epochs=2, progress=False
    ),
    "fit_members": lambda: training.fit_members(
        square_of, jnp.ones(2), COLUMNS, batch_size=2, optimizer=ADAM, keys=KEYS, epochs=2, progress=False
    ),
    "fit, resumed": lambda: fit(optimizer=ADAM, resume=HISTORY),
    "grid": lambda: training.grid(square, MEMBERS, progress=False),
    "grid, vmapped": lambda: training.grid(square, MEMBERS, progress=False, batch_size=2),
    "init_state": lambda: training.init_state(jnp.asarray(3.0), ADAM),
    "make_step": lambda: training.make_step(parabola, ADAM)(STATE, jnp.ones(1), key=KEY),
    "grid_points": lambda: training.grid_points(l2=(1.0, 2.0), seed=(0, 1)),
    "lazy.init_state": lambda: lazy.init_state(jnp.zeros(2), {"film": jnp.zeros((3, 1))}, ADAM),
    "lazy.make_step": lambda: PAIR_STEP(PAIR_STATE, BOTH, key=KEY),
}


def test_the_table_is_of_all_that_is_public():
    results = {"Descent", "Epochs", "EpochsFit", "EpochsHistory", "FitResult"}
    modules = {"lazy", "negatives", "next_item"}  # tests of their own count the compilations of the last two
    public = {name for name in training.__all__ if name not in modules | results} | {
        f"lazy.{name}" for name in lazy.__all__
    }
    assert {name.split(",")[0] for name in CALLS} == public


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name, compilations):
    jax.block_until_ready(jax.tree.leaves(CALLS[name]()))
    before = compilations()
    jax.block_until_ready(jax.tree.leaves(CALLS[name]()))
    assert compilations() == before
