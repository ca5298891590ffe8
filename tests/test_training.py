"""fit and make_step: what they minimize, when they stop, that a resumed run repeats the uninterrupted one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import Ratings, data, losses, models
from jaxrec.training import fit, init, make_step
from jaxrec.types import Total

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
    with pytest.raises(ValueError, match="epoch 1 had none. A generator is spent"):
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
    with pytest.raises(ValueError, match="pass validate="):
        run(patience=2)


def test_callback_stops():
    epochs = []
    _, history = run(callback=lambda epoch, w: epochs.append((epoch, float(w))) or epoch == 4)
    assert [e for e, _ in epochs] == [0, 1, 2, 3, 4]
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
        FloatingPointError, match=r"step \d+ \(epoch \d+\): the loss is (inf|nan).*smaller learning rate"
    ):
        run(optimizer=optax.sgd(1e6), epochs=100)


def ratings(n=60):
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((12, 9)) < 0.6)
    return Ratings(user[:n], item[:n], rng.normal(3.5, 1.0, len(user))[:n], 12, 9)


def factors_cost(factors, batch):
    return losses.closed_form.cost(factors, batch, l2=0.5)


def test_resumed_is_uninterrupted_bit_for_bit():
    batches = data.minibatches(ratings(), 16, seed=1)
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
    states = jax.vmap(lambda p: init(p, optax.adam(0.1)))(starts)
    together, _ = jax.jit(jax.vmap(lambda s: step(s, batch, key=KEY)))(states)
    for k in range(3):
        pick = lambda tree, k=k: jax.tree.map(lambda a: a[k], tree)
        alone, info = step(pick(states), batch, key=KEY)
        chex.assert_trees_all_close(pick(together).params, alone.params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(info.sum, factors_cost(pick(starts), batch), rtol=1e-6)


@pytest.mark.parametrize("layout", [data.dense, data.observed, data.linked])
def test_adam_lowers_the_joint_cost_on_every_layout(layout):
    start = models.init(12, 9, 2, key=KEY, mu=3.5)
    _, history = fit(
        factors_cost, start, [layout(ratings())], optimizer=optax.adam(0.1), key=KEY, epochs=50, progress=False
    )
    assert history.loss[-1] < 0.7 * history.loss[0]
