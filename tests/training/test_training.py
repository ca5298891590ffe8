"""fit and make_step: what they minimize, when they stop, that a resumed run repeats the uninterrupted one."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import Ratings, data, losses, models
from jaxrec.training import descend, epochs, fit, grid, grid_points, init_state, loop, make_step
from jaxrec.types import Bucket, Total

KEY = jax.random.key(0)


def parabola(w, batch):
    return jnp.sum((w * batch - 1.0) ** 2)


def run(cost=parabola, params=3.0, batches=None, **options):
    options = {"optimizer": optax.sgd(0.01), "key": KEY, "epochs": 30, "progress": False} | options
    return fit(cost, jnp.asarray(params), [jnp.array([1.0])] if batches is None else batches, **options)


def test_gradient_descent_by_hand():
    w, history = run()
    np.testing.assert_allclose(w, 1 + 2 * 0.98**30, rtol=1e-5)  # each step multiplies w - 1 by 1 - 2 alpha
    np.testing.assert_allclose(history.loss, [4 * 0.98 ** (2 * k) for k in range(30)], rtol=1e-4)
    assert history.stopped == "epochs"
    assert history.validation.size == 0
    assert int(history.state.step) == 30


def test_all_parameters_move_at_once():
    cost = lambda p, _: p[0] * p[1]
    (a, b), _ = fit(
        cost, (jnp.array(2.0), jnp.array(5.0)), [0], optimizer=optax.sgd(0.1), key=KEY, epochs=1, progress=False
    )
    np.testing.assert_allclose((a, b), (2.0 - 0.1 * 5.0, 5.0 - 0.1 * 2.0), rtol=1e-6)  # not 5 - 0.1 * the new a


def test_until_converged():
    w, history = run(epochs=10_000, optimizer=optax.sgd(0.1), tol=1e-3)
    assert history.stopped == "converged"
    ratio = history.loss[1:] / history.loss[:-1]  # 0.64 every time: never within 1e-3 until it is 0
    assert history.loss[-1] < 1e-9 or abs(1 - ratio[-1]) < 1e-3
    np.testing.assert_allclose(w, 1.0, atol=1e-4)


def test_scalars_add_up_over_batches_and_totals_are_averaged():
    batches = [jnp.array([1.0, 2.0]), jnp.array([3.0])]
    _, history = run(batches=batches, optimizer=optax.sgd(0.0), epochs=1)
    np.testing.assert_allclose(history.loss, [2.0**2 + 5.0**2 + 8.0**2])
    total = lambda w, batch: Total(jnp.sum((w * batch - 1.0) ** 2), jnp.asarray(batch.size, w.dtype))
    _, history = run(total, batches=batches, optimizer=optax.sgd(0.0), epochs=1)
    np.testing.assert_allclose(history.loss, [(2.0**2 + 5.0**2 + 8.0**2) / 3])
    w, _ = run(total, batches=batches[:1], epochs=1)
    np.testing.assert_allclose(w, 3.0 - 0.01 * (2 * 2.0 * 1 + 2 * 5.0 * 2) / 2, rtol=1e-6)  # the mean's gradient


def test_batches_may_be_a_function_of_the_epoch():
    asked = []
    run(batches=lambda epoch: asked.append(epoch) or [jnp.array([1.0])], epochs=3)
    assert asked == [0, 1, 2]


def test_a_spent_generator_is_an_error():
    with pytest.raises(ValueError, match="got none in epoch 1. A generator is exhausted"):
        run(batches=(b for b in [jnp.array([1.0])]), epochs=2)


def test_key_is_passed_on_and_differs_by_step():
    noisy = lambda w, batch, *, key: w * jax.random.normal(key)
    _, history = run(noisy, optimizer=optax.sgd(0.0), epochs=3)
    expected = [3.0 * float(jax.random.normal(jax.random.fold_in(KEY, k))) for k in range(3)]
    np.testing.assert_allclose(history.loss, expected, rtol=1e-6)


def test_validation_patience_and_best_parameters():
    scores = iter([3.0, 1.0, 2.0, 2.0, 5.0])
    seen = []
    w, history = run(epochs=50, validate=lambda w: seen.append(w) or next(scores), patience=2)
    np.testing.assert_array_equal(history.validation, [3.0, 1.0, 2.0, 2.0])
    assert (history.stopped, history.best_epoch) == ("patience", 1)
    assert w == seen[1]
    assert history.state.params == seen[3]
    with pytest.raises(ValueError, match="Pass validate="):
        run(patience=2)


def test_callback_stops():
    epochs = []
    _, history = run(
        callback=lambda step, state, history: epochs.append((step, float(state.params))) or len(history.loss) == 5
    )
    assert [step for step, _ in epochs] == [1, 2, 3, 4, 5]
    assert epochs[0][1] == pytest.approx(1 + 2 * 0.98)
    assert history.stopped == "callback"


def test_progress_shows_loss_and_validation(capsys):
    run(progress=True, validate=lambda w: 0.5, epochs=2)
    shown = capsys.readouterr().err
    assert "fit" in shown
    assert "validation=0.5000" in shown
    run(progress=False)
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_no_longer_finite_says_where_and_what_to_do():
    with pytest.raises(
        FloatingPointError,
        match=r"step \d+ \(epoch \d+\), learning rate 1e\+06: the loss is (inf|nan).*smaller learning rate \(100000\)",
    ):
        run(optimizer=optax.sgd(1e6), epochs=100)


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (optax.sgd(0.3), 0.3),
        (optax.adam(0.02), 0.02),
        (optax.chain(optax.clip(1.0), optax.adamw(0.5)), 0.5),
        (optax.sgd(optax.exponential_decay(1.0, 10, 0.5)), 0.5),  # at step 10
        (optax.inject_hyperparams(optax.adam)(learning_rate=0.07), 0.07),
        (optax.scale(-1), None),
    ],
)
def test_the_learning_rate_is_found_for_the_message(optimizer, rate):
    found = loop._learning_rate(optimizer, init_state(jnp.zeros(3), optimizer), 10)
    assert found == (None if rate is None else pytest.approx(rate))


def ratings(n=60):
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((12, 9)) < 0.6)
    return Ratings(user[:n], item[:n], rng.normal(3.5, 1.0, len(user))[:n], 12, 9)


def factors_cost(factors, batch):
    return losses.closed_form.cost(factors, batch, l2=0.5)


def test_resumed_is_uninterrupted_bit_for_bit():
    batches = data.minibatches(ratings(), 16, rng=1)
    start = models.init(12, 9, 2, key=KEY, mu=3.5)
    options = {"optimizer": optax.adam(0.05), "key": KEY, "progress": False, "validate": lambda f: float(f.b[0])}
    whole, history = fit(factors_cost, start, batches, epochs=6, **options)
    _, half = fit(factors_cost, start, batches, epochs=3, **options)
    resumed, again = fit(factors_cost, start, batches, epochs=6, resume=half, **options)
    chex.assert_trees_all_equal(whole, resumed)
    chex.assert_trees_all_equal(history.state, again.state)
    np.testing.assert_array_equal(history.loss, again.loss)
    np.testing.assert_array_equal(history.validation, again.validation)
    assert history.best_epoch == again.best_epoch


def test_one_trace_per_shape_and_none_for_a_second_fit():
    traces = []

    def cost(w, batch):
        traces.append(batch.shape)
        return parabola(w, batch)

    optimizer = optax.adam(0.1)
    run(cost, optimizer=optimizer, batches=[jnp.ones(3), jnp.ones(3)], epochs=4)
    once = len(traces)
    run(cost, optimizer=optimizer, batches=[jnp.ones(3)], epochs=2)
    assert len(traces) == once
    run(cost, optimizer=optimizer, batches=[jnp.ones(4)], epochs=1)
    assert len(traces) == 2 * once


def test_make_step_is_pure_and_vmaps_over_seeds():
    step = make_step(factors_cost, optax.adam(0.1))
    batch = data.observed(ratings())
    starts = jax.vmap(lambda key: models.init(12, 9, 2, key=key, mu=3.5))(jax.random.split(KEY, 3))
    states = jax.vmap(lambda p: init_state(p, optax.adam(0.1)))(starts)
    together, _ = jax.jit(jax.vmap(lambda s: step(s, batch, key=KEY)))(states)
    one = jax.jit(step)  # eagerly it is a hundred programs
    for k in range(3):
        pick = lambda tree, k=k: jax.tree.map(lambda a: a[k], tree)
        alone, info = one(pick(states), batch, key=KEY)
        chex.assert_trees_all_close(pick(together).params, alone.params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(info.sum, factors_cost(pick(starts), batch), rtol=1e-6)


OPTIMIZERS = {
    "sgd": optax.sgd(0.01),
    "momentum": optax.sgd(0.003, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, mask=models.trainable_mask),
    "adagrad": optax.adagrad(0.3),
    "rmsprop": optax.rmsprop(0.01),
    "lion": optax.lion(0.02, mask=models.trainable_mask),
    "clipped and scheduled": optax.chain(
        optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(0.1, 60))
    ),
    "plateau": optax.chain(optax.adam(0.05), optax.contrib.reduce_on_plateau(patience=5)),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_lowers_the_joint_cost(name):
    start = models.init(12, 9, 2, key=KEY, mu=3.5)
    fitted, history = fit(
        factors_cost, start, [data.linked(ratings())], optimizer=OPTIMIZERS[name], key=KEY, epochs=60, progress=False
    )
    assert history.loss[-1] < 0.75 * history.loss[0]
    assert fitted.mu == 3.5


def test_weight_decay_would_move_mu_without_the_mask():
    start = models.init(12, 9, 2, key=KEY, mu=3.5)
    options = {"key": KEY, "epochs": 5, "progress": False}
    fitted, _ = fit(
        factors_cost, start, [data.linked(ratings())], optimizer=optax.adamw(0.05, weight_decay=0.1), **options
    )
    assert fitted.mu < 3.5


@pytest.mark.parametrize("layout", [data.dense, data.observed, data.linked])
def test_adam_lowers_the_joint_cost_on_every_layout(layout):
    start = models.init(12, 9, 2, key=KEY, mu=3.5)
    _, history = fit(
        factors_cost, start, [layout(ratings())], optimizer=optax.adam(0.1), key=KEY, epochs=50, progress=False
    )
    assert history.loss[-1] < 0.7 * history.loss[0]


def test_descend_is_fit():
    start = models.init(12, 9, 2, key=KEY, mu=3.5)
    for size in (16, 60):
        parts = list(data.minibatches(ratings(), size, rng=1)(0))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        optimizer = optax.adam(0.05)
        by_loop, history = fit(factors_cost, start, parts, optimizer=optimizer, key=KEY, epochs=3, progress=False)
        pure = jax.jit(
            lambda p, b: descend(factors_cost, p, b, optimizer=optax.adam(0.05), key=KEY, steps=b.user.shape[0] * 3)
        )
        batch_size, trace = pure(start, stacked)
        chex.assert_trees_all_close(by_loop, batch_size, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(trace.reshape(3, -1).sum(1), history.loss, rtol=1e-5)


def test_descend_reports_the_mean_of_totals():
    total = lambda w, batch: Total(jnp.sum((w * batch - 1.0) ** 2), jnp.asarray(batch.size, w.dtype))
    _, trace = descend(total, jnp.array(3.0), jnp.ones((1, 4)), optimizer=optax.sgd(0.0), key=KEY, steps=2)
    np.testing.assert_allclose(trace, [4.0, 4.0])


def train(member, ratings):
    """A whole training: seed, scale, l2, learning rate and fold differ from member to member."""
    start = models.init(12, 9, 2, key=jax.random.key(member["seed"]), scale=member["scale"], mu=3.5)
    in_train = dataclasses.replace(ratings, where=ratings.where & (ratings.weights != member["fold"]), weights=None)
    cost = lambda f, batch: losses.closed_form.cost(f, batch, l2=member["l2"])
    batch = jax.tree.map(lambda a: a[None], in_train)
    optimizer = optax.adam(member["rate"])
    factors, trace = descend(cost, start, batch, optimizer=optimizer, key=KEY, steps=20)
    held_out = dataclasses.replace(ratings, where=ratings.weights == member["fold"], weights=None)
    return {"factors": factors, "loss": trace[-1], "error": losses.collaborative.data_term(factors, held_out).mean()}


MEMBERS = grid_points(l2=(0.5, 2.0), rate=(0.05, 0.1), scale=(0.1, 0.5), seed=(0, 1), fold=(0.0, 1.0))


def folded():
    """The ratings, each with the number of its fold where weights would stand."""
    r = ratings()
    return data.linked(dataclasses.replace(r, weights=np.arange(len(r)) % 2))


def test_every_member_of_a_grid_is_its_run_alone():
    whole = grid(train, MEMBERS, folded(), progress=False)
    for k in (0, 5, 31):
        member = {name: column[k] for name, column in MEMBERS.items()}
        pick = jax.tree.map(lambda a, k=k: a[k], whole)
        alone = grid(train, {name: column[k : k + 1] for name, column in MEMBERS.items()}, folded(), progress=False)
        chex.assert_trees_all_equal(pick, jax.tree.map(lambda a: a[0], alone))  # bit for bit
        r = ratings()
        part = r.take(np.arange(len(r)) % 2 != int(member["fold"]))  # no mask: the rows are not there
        start = models.init(12, 9, 2, key=jax.random.key(int(member["seed"])), scale=float(member["scale"]), mu=3.5)
        by_fit, history = fit(
            lambda f, batch, l2=float(member["l2"]): losses.closed_form.cost(f, batch, l2=l2),
            start,
            [data.linked(part)],
            optimizer=optax.adam(float(member["rate"])),
            key=KEY,
            epochs=20,
            progress=False,
        )
        chex.assert_trees_all_close(pick["factors"], by_fit, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(pick["loss"], history.loss[-1], rtol=1e-4)


@pytest.mark.parametrize("batch_size", [3, 32, 100])
def test_a_vmapped_grid_is_the_sequential_one(batch_size):
    one_by_one = grid(train, MEMBERS, folded(), progress=False)
    together = grid(train, MEMBERS, folded(), batch_size=batch_size, progress=False)
    chex.assert_trees_all_close(one_by_one, together, rtol=1e-3, atol=1e-4)


def test_a_grid_compiles_once(capsys):
    traces = []

    def run(member):
        traces.append(1)
        return member["a"] + 1.0

    for batch_size in (1, 2):  # 3 members in parts of 2: the last part is filled up
        np.testing.assert_array_equal(grid(run, grid_points(a=(1.0, 2.0, 3.0)), batch_size=batch_size), [2.0, 3.0, 4.0])
        np.testing.assert_array_equal(
            grid(run, grid_points(a=(5.0,) * 6), batch_size=batch_size, progress=False), [6.0] * 6
        )
    assert len(traces) == 2
    assert "3/3" in capsys.readouterr().err


def test_a_member_that_diverges_is_named_and_harms_nobody(caplog):
    result = grid(lambda m: jnp.log(m["a"]), grid_points(a=(1.0, -1.0, 2.0)), progress=False)
    np.testing.assert_allclose(result, [0.0, np.nan, np.log(2.0)])
    assert "grid: member 1 of 3, {'a': -1.0}, has results that are not finite" in caplog.text


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"a": jnp.ones(2), "b": jnp.ones(3)}, {}, r"one length > 0, got lengths \[2, 3\]"),
        ({}, {}, "one length > 0"),
        ({"a": jnp.ones(0)}, {}, "one length > 0"),
        ({"a": jnp.array(1.0)}, {}, "one length > 0"),
        ({"a": jnp.ones(2)}, {"batch_size": 0}, "batch_size: expected a number of members >= 1, got 0"),
    ],
)
def test_a_grid_that_is_none(members, options, message):
    with pytest.raises(ValueError, match=message):
        grid(lambda m: m, members, progress=False, **options)


def seen_by(columns, size, n_epochs):
    """The order in which `epochs` shows rows numbered from 0: [n_epochs, batches, size], -1 for what fills up."""
    seen = []

    def step(state, batch, *, key):
        jax.debug.callback(lambda v, w: seen.append(np.where(w, v, -1)), batch.value, batch.where, ordered=True)
        return state, Total(jnp.sum(batch.where, dtype=jnp.float32), jnp.float32(1))

    _, cost = epochs(step, jnp.zeros(()), columns, batch_size=size, key=KEY, epochs=n_epochs)
    jax.effects_barrier()
    return np.array(seen).reshape(n_epochs, -1, size), cost


@pytest.mark.parametrize("size", [1, 4, 10])
def test_epochs_show_every_row_once_in_a_new_order(size):
    n = 10
    ratings = Ratings(np.arange(n), np.zeros(n, int), np.arange(n), n, 1)
    seen, cost = seen_by(data.observed(ratings), size, 3)
    for epoch in seen:
        assert sorted(epoch[epoch >= 0].tolist()) == list(range(n))
    assert not (seen[0] == seen[1]).all()
    assert cost.sum.tolist() == [n] * 3
    assert cost.count.tolist() == [-(-n // size)] * 3


def test_epochs_fill_up_lists_too():
    """Rows that have a `where` each, [n, length]: what fills up the last batch is closed as a whole."""
    lists = Bucket(jnp.arange(5), jnp.zeros((5, 3), jnp.int32), jnp.ones((5, 3)), jnp.ones((5, 3), bool))
    step = lambda state, batch, *, key: (state + batch.where.sum(), Total(jnp.zeros(()), jnp.zeros(())))
    state, _ = epochs(step, jnp.array(0), lists, batch_size=2, key=KEY, epochs=2)
    assert int(state) == 2 * 5 * 3


def test_epochs_train_as_their_steps_do():
    ratings = data.synthetic.low_rank(20, 15, 150, rng=0).ratings
    columns = data.observed(ratings, counts=True)
    start = models.init(20, 15, 2, key=KEY, mu=3.5)
    step = make_step(lambda f, batch: losses.cost(f, batch, l2=1.0), optax.adam(0.01))
    whole = lambda f: float(losses.cost(f, data.observed(ratings), l2=1.0))
    begin = init_state(start, optax.adam(0.01))
    run = jax.jit(lambda key: epochs(step, begin, columns, batch_size=64, key=key, epochs=20))
    state, cost = run(KEY)
    assert int(state.step) == 20 * 3
    assert cost.sum[0] == pytest.approx(whole(start), rel=0.1)  # the batches' costs add up to the whole, penalty too
    assert whole(state.params) < 0.9 * whole(start)
    many = jax.vmap(run)(jax.random.split(jax.random.key(1), 3))  # an ensemble in one compile
    assert many[1].sum.shape == (3, 20)


def test_epochs_refuse_what_does_not_fit():
    run = lambda columns, size: epochs(
        lambda state, batch, *, key: (state, Total(jnp.zeros(()), jnp.zeros(()))),
        jnp.zeros(()), columns, batch_size=size, key=KEY, epochs=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not divide the 10 rows"):
        run(jnp.zeros(10), 4)
    run(jnp.zeros(10), 5)
    for size in (0, 11):
        with pytest.raises(ValueError, match="between 1 and the data's 10"):
            run(jnp.zeros(10), size)
    with pytest.raises(ValueError, match="of one length"):
        run({"a": jnp.zeros(10), "b": jnp.zeros(9)}, 5)
