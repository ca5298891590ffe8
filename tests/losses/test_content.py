"""Costs of two towers: against loops in NumPy; masks, negatives, the popularity correction, finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses
from jaxrec.losses import content, softmax
from jaxrec.models.two_tower import TwoTower

ITEM = np.array([3, 1, 3, 2, 5, 0])
USER = np.array([0, 1, 2, 0, 3, 9])
WHERE = np.array([True, True, True, True, True, False])


def random_vectors(n=6, d=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d))


def softmax_by_loops(v_user, v_item, *, log_q=None, temperature=1.0, user=None, where=WHERE, weights=None):
    total = 0.0
    for n in np.flatnonzero(where):
        score = lambda m, n=n: v_user[n] @ v_item[m] / temperature - (0 if log_q is None else log_q[m])
        negatives = [
            m for m in np.flatnonzero(where) if m != n and ITEM[m] != ITEM[n] and (user is None or user[m] != user[n])
        ]
        denominator = np.exp(score(n)) + sum(np.exp(score(m)) for m in negatives)
        total += (1 if weights is None else weights[n]) * -np.log(np.exp(score(n)) / denominator)
    return total


OPTIONS = {
    "plain": {},
    "log q": {"log_q": np.log([0.3, 0.1, 0.3, 1e-12, 0.2, 0.5])},
    "temperature": {"temperature": 0.3},
    "users": {"user": USER},
    "weights": {"weights": np.array([1.0, 0.0, 2.0, 1.0, 0.5, 7.0])},
    "all": {"log_q": np.log([0.3, 0.1, 0.3, 0.2, 0.2, 0.5]), "temperature": 0.5, "user": USER},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_in_batch_softmax_equals_the_loop(x64, options):
    v_user, v_item = random_vectors()
    keywords = {name: jnp.asarray(option) if np.ndim(option) else option for name, option in options.items()}
    keywords["where"] = jnp.asarray(WHERE)
    arrays = [jnp.asarray(array) for array in (v_user, v_item, ITEM)]
    total = softmax.in_batch(*arrays, **keywords)
    np.testing.assert_allclose(total.sum, softmax_by_loops(v_user, v_item, **options), rtol=1e-10)
    np.testing.assert_allclose(total.count, np.sum(options.get("weights", np.ones(6)) * WHERE))
    jitted = jax.jit(lambda *arrays: softmax.in_batch(*arrays, **keywords).sum)
    np.testing.assert_allclose(jitted(*arrays), total.sum, rtol=1e-12)


def test_another_pair_with_the_same_item_is_not_a_negative(x64):
    v_user, v_item = map(jnp.asarray, random_vectors())
    three_pairs = jax.grad(lambda v: softmax.in_batch(v_user[:3], v, jnp.asarray(ITEM[:3])).sum)(v_item[:3])
    two_pairs = jax.grad(lambda v: softmax.in_batch(v_user[:2], v, jnp.asarray(ITEM[:2])).sum)(v_item[:2])
    assert not np.allclose(three_pairs[:2], two_pairs)
    # Pairs 0 and 2 have the same item, so the cost of pair 0 does not depend on the item vector of pair 2.
    first = lambda v: softmax.in_batch(v_user[:3], v, jnp.asarray(ITEM[:3]), weights=jnp.array([1.0, 0, 0])).sum
    assert jax.grad(first)(v_item[:3])[2].tolist() == [0] * 4


def test_garbage_in_the_padding_changes_neither_value_nor_gradient():
    v_user, v_item = (jnp.asarray(v, jnp.float32).at[5].set(jnp.nan) for v in random_vectors())
    log_q = jnp.zeros(6).at[5].set(-jnp.inf)
    cost = lambda u, v: softmax.in_batch(u, v, jnp.asarray(ITEM), log_q=log_q, where=jnp.asarray(WHERE)).mean()
    value, gradients = jax.value_and_grad(cost, (0, 1))(v_user, v_item)
    assert np.isfinite(value)
    assert all(bool(jnp.isfinite(g).all()) and g[5].tolist() == [0] * 4 for g in gradients)


def test_the_popularity_correction_learns_the_optimum_of_the_full_softmax():
    """All users are alike and choose item i with probability q(i): the optimum of the full softmax is log q.

    The corrected cost finds it. Without the correction an item is as often a negative as a positive, and its popularity
    is not learned.
    """
    rng = np.random.default_rng(0)
    q = np.exp(rng.normal(size=100))
    q /= q.sum()
    batches = jnp.asarray(rng.choice(100, (2000, 32), p=q), jnp.int32)
    log_q = jnp.asarray(np.log(q), jnp.float32)

    def descend(corrected):
        def cost(z, batch):
            correction = log_q[batch] if corrected else None
            return softmax.in_batch(jnp.ones((32, 1)), z[batch][:, None], batch, log_q=correction).mean()

        step = lambda z, batch: (z - 3 * jax.grad(cost)(z, batch), None)
        return np.asarray(jax.jit(lambda batches: jax.lax.scan(step, jnp.zeros(100), batches)[0])(batches))

    slope = lambda z: np.polyfit(np.log(q), z, 1)[0]
    assert 0.75 < slope(descend(True)) < 1.25
    assert abs(slope(descend(False))) < 0.3


def test_log_popularity_does_not_round_small_probabilities_to_zero():
    log_q = softmax.log_popularity(jnp.array([1.0, 0.0, 3e9]))
    np.testing.assert_allclose(log_q, [-np.log(3e9), -np.inf, 0], rtol=1e-5, atol=1e-6)


def test_two_tower_cost_equals_a_calculation_by_hand():
    v_user, v_item = random_vectors()
    y = np.array([1.0, 2, 3, 4, 5, np.nan])
    z = 1.5 * (v_user * v_item).sum(axis=1) + 3
    arrays = [jnp.asarray(array, jnp.float32) for array in (v_user, v_item, y)]
    total = content.two_tower(*arrays, where=jnp.asarray(WHERE), scale=1.5, offset=3.0)
    np.testing.assert_allclose(total.sum, ((z - y)[:5] ** 2).sum(), rtol=1e-5)
    assert float(total.count) == 5
    weights = jnp.array([2.0, 1, 1, 0, 0, 9])
    np.testing.assert_allclose(
        content.two_tower(*arrays, where=jnp.asarray(WHERE), weights=weights, scale=1.5, offset=3.0).sum,
        2 * (z - y)[0] ** 2 + ((z - y)[1:3] ** 2).sum(),
        rtol=1e-5,
    )
    label = jnp.array([1.0, 0, 1, 0, 1, 0])
    logit = (v_user * v_item).sum(axis=1)
    np.testing.assert_allclose(
        content.two_tower(*arrays[:2], label, loss=losses.logistic).sum,
        np.sum(np.log1p(np.exp(logit)) - np.asarray(label) * logit),
        rtol=1e-5,
    )


def test_the_penalty_of_a_network_includes_only_its_kernels():
    towers = TwoTower(layers=(4, 2))
    params = towers.init(jax.random.key(0), jnp.ones((1, 3)), jnp.ones((1, 5)))
    params = jax.tree.map(lambda leaf: leaf + 1, params)  # the biases are not 0 any more
    squares = [np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    assert float(content.kernel_l2(params, l2=0.5)) == pytest.approx(0.25 * sum(squares), rel=1e-5)
    with pytest.raises(ValueError, match="params: expected .* no leaf is named 'kernel'"):
        content.kernel_l2({"bias": jnp.ones(2)}, l2=0.5)
