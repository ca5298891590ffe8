"""The ranking head starts as the dot product, learns what a dot product cannot, and checks its inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import losses, training
from jaxrec.models.head import Head

RNG = np.random.default_rng(0)
V_USER = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
V_ITEM = jnp.asarray(RNG.normal(size=(6, 5, 4)), jnp.float32)
MORE = jnp.asarray(RNG.normal(size=(6, 5, 2)), jnp.float32)


def test_an_untrained_head_scores_by_the_dot_product():
    for more in (None, MORE):
        params = Head().init(jax.random.key(0), V_USER, V_ITEM, more)
        scores = Head().apply(params, V_USER, V_ITEM, more)
        np.testing.assert_allclose(scores, np.einsum("nd,ncd->nc", V_USER, V_ITEM), rtol=1e-5, atol=1e-6)


def test_the_head_equals_its_formula():
    head = Head(layers=(3,), activation=nn.tanh)
    params = head.init(jax.random.key(0), V_USER, V_ITEM, MORE)
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    one, two = (params["params"][f"Dense_{layer}"] for layer in (0, 1))
    for n in range(6):
        for c in range(5):
            u, m = np.asarray(V_USER[n]), np.asarray(V_ITEM[n, c])
            x = np.tanh(np.concatenate([u, m, u * m, MORE[n, c]]) @ one["kernel"] + one["bias"])
            expected = 1.5 * u @ m + (x @ two["kernel"] + two["bias"])[0]
            score = head.apply(params, V_USER, V_ITEM, MORE)[n, c]
            np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)


def test_one_request_needs_no_batch_axis():
    params = Head().init(jax.random.key(0), V_USER[0], V_ITEM[0])
    assert Head().apply(params, V_USER[0], V_ITEM[0]).shape == (5,)


def test_dropout_is_applied_only_in_training():
    head = Head(dropout=0.5)
    params = jax.tree.map(lambda leaf: leaf + 0.1, head.init(jax.random.key(0), V_USER, V_ITEM))
    one, two = (head.apply(params, V_USER, V_ITEM, train=True, rngs={"dropout": jax.random.key(k)}) for k in range(2))
    assert jnp.any(one != two)
    assert jnp.all(head.apply(params, V_USER, V_ITEM) == head.apply(params, V_USER, V_ITEM))


def test_the_head_learns_an_order_that_no_dot_product_gives():
    """The user likes the candidate with the largest extra feature; the vectors carry no information."""
    liked = jax.nn.one_hot(jnp.argmax(MORE[..., 0], axis=1), 5)
    head = Head(layers=(16,))
    cost = lambda params, _: losses.softmax.listwise(head.apply(params, V_USER, V_ITEM, MORE), liked)
    params = head.init(jax.random.key(0), V_USER, V_ITEM, MORE)
    params, _ = training.fit(
        cost, params, [0], optimizer=optax.adam(0.02), key=jax.random.key(0), epochs=150, progress=False
    )
    found = jnp.argmax(head.apply(params, V_USER, V_ITEM, MORE), axis=1)
    assert found.tolist() == jnp.argmax(liked, axis=1).tolist()


def test_vectors_of_wrong_shapes_are_refused():
    for users in (V_USER[:, :3], V_USER[:5], V_USER[:, None]):
        with pytest.raises(ValueError, match=r"expected v_user \[..., d\] and v_item"):
            Head().init(jax.random.key(0), users, V_ITEM)
    for more in (MORE[:, :4], MORE[0], MORE[..., 0]):
        with pytest.raises(ValueError, match=r"more: expected \[..., c, e\] of the \(6, 5\) candidates"):
            Head().init(jax.random.key(0), V_USER, V_ITEM, more)


@pytest.mark.parametrize("name", ["v_user", "v_item", "more"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_concrete_vectors_that_are_not_finite_are_refused(name, wrong):
    inputs = {"v_user": V_USER, "v_item": V_ITEM, "more": MORE}
    params = Head().init(jax.random.key(0), *inputs.values())
    inputs[name] = inputs[name].at[..., -1].set(wrong)
    with pytest.raises(ValueError, match=f"{name}: expected finite numbers, got"):
        Head().apply(params, *inputs.values())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, jnp.bfloat16])
def test_vectors_of_narrow_types_are_multiplied_in_float32(dtype):
    v_user, v_item = np.full((1, 4), 100), np.full((1, 2, 4), 120)  # a product of 12,000, a sum of 48,000
    params = Head().init(jax.random.key(0), V_USER[:1], V_ITEM[:1])
    scores = Head().apply(params, v_user.astype(dtype), v_item.astype(dtype))
    assert scores.tolist() == [[48_000, 48_000]]
