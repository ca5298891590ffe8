"""The networks of the two towers: shapes, unit length, no NaN at zero, dropout, and each option."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.models.two_tower import Tower, TwoTower, from_unit, to_unit, unit_vectors


def test_unit_has_length_one_and_zeros_stay_zeros_with_zero_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]])
    np.testing.assert_allclose(unit_vectors(x), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(unit_vectors(x)[:, 0]))(x[:2])
    np.testing.assert_allclose(gradient, [[(1 - 0.36) / 5, -0.48 / 5], [0, 0]], rtol=1e-5)


def test_from_unit_inverts_to_unit():
    y = jnp.array([1.0, 3.0, 5.0])
    assert to_unit(y, (1.0, 5.0)).tolist() == [-1, 0, 1]
    np.testing.assert_allclose(from_unit(to_unit(y, (1.0, 5.0)), (1.0, 5.0)), y)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64, np.float16, jnp.bfloat16])
def test_ratings_of_narrow_types_are_computed_in_float32(dtype):
    y = np.array([1, 3, 100]).astype(dtype)  # 1 - 3 of uint8 is 254
    got = to_unit(y, (3, 100))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 2 * (np.array([1, 3, 100]) - 3) / 97 - 1, rtol=1e-6)
    np.testing.assert_allclose(from_unit(np.array([-1, 0, 1]).astype(np.float16), (3, 100)), [3, 51.5, 100])


@pytest.mark.parametrize(
    "scale",
    [(3, 3), (5, 1), (np.nan, 5), (1, np.inf), (0.3, 0.1 + 0.2), (1e8, 1e8 + 1), (-3e38, 3e38), (np.float32(2), 2)],
)
def test_scales_with_no_numbers_between_their_ends_are_refused(scale):
    for call in (to_unit, from_unit):
        with pytest.raises(ValueError, match=r"scale: expected \(lowest, highest\), finite and lowest < highest, got"):
            call(jnp.ones(2), scale)
    assert jax.jit(lambda low: to_unit(jnp.ones(2), (low, 2.0)))(0.0).tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_concrete_features_that_are_not_finite_are_refused(wrong):
    towers, x = TwoTower(layers=(4, 2)), np.ones((2, 3), np.float32)
    params = towers.init(jax.random.key(0), x, x)
    bad = np.where(np.arange(3) == 1, wrong, x)
    for inputs in ((bad, x), (x, bad)):
        with pytest.raises(ValueError, match=r"features: expected finite numbers, got .* at position \(0, 1\)"):
            towers.apply(params, *inputs)


def test_a_tower_equals_its_formula():
    tower = Tower(layers=(4, 3), activation=nn.tanh, normalize=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)
    params = tower.init(jax.random.key(0), x)
    one, two = params["params"]["Dense_0"], params["params"]["Dense_1"]
    expected = np.tanh(np.asarray(x) @ one["kernel"] + one["bias"][None]) @ two["kernel"] + two["bias"][None]
    np.testing.assert_allclose(tower.apply(params, x), expected, rtol=2e-5)
    lengths = np.linalg.norm(Tower(layers=(4, 3), activation=nn.tanh).apply(params, x), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_the_default_layers_are_those_of_the_lecture_notes():
    towers = TwoTower()
    params = jax.eval_shape(lambda: towers.init(jax.random.key(0), jnp.ones((1, 9)), jnp.ones((1, 7))))
    shapes = {name: tuple(v["kernel"].shape for v in tower.values()) for name, tower in params["params"].items()}
    assert shapes == {"user": ((9, 256), (256, 128), (128, 32)), "item": ((7, 256), (256, 128), (128, 32))}


def test_one_side_alone_equals_that_side_of_both_and_dropout_is_for_training():
    towers = TwoTower(layers=(16, 8), activation=nn.gelu, dropout=0.5)
    x_user, x_item = jnp.ones((3, 5)), jnp.ones((4, 7))
    params = towers.init(jax.random.key(0), x_user, x_item)
    v_user, v_item = towers.apply(params, x_user, x_item)
    np.testing.assert_array_equal(towers.apply(params, x_user, method="users"), v_user)
    np.testing.assert_array_equal(towers.apply(params, x_item, method="items"), v_item)
    draw = lambda seed: towers.apply(params, x_user, x_item, train=True, rngs={"dropout": jax.random.key(seed)})
    assert not np.allclose(draw(0)[0], v_user)
    assert not np.allclose(draw(0)[0], draw(1)[0])
    np.testing.assert_array_equal(draw(0)[0], draw(0)[0])


def test_a_network_of_zeros_has_finite_vectors_and_gradients():
    towers = TwoTower(layers=(4, 2))
    x = jnp.zeros((2, 3))
    params = jax.tree.map(jnp.zeros_like, towers.init(jax.random.key(0), x, x))
    loss = lambda params: jnp.sum((jnp.sum(jnp.multiply(*towers.apply(params, x, x)), axis=1) - 1) ** 2)
    value, gradient = jax.value_and_grad(loss)(params)
    assert float(value) == 2
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_decides_whether_the_vectors_have_length_one(normalize):
    towers = TwoTower(layers=(4, 2), normalize=normalize)
    x = jnp.ones((2, 3))
    lengths = jnp.linalg.norm(towers.init_with_output(jax.random.key(0), x, x)[0][0], axis=1)
    assert bool(jnp.allclose(lengths, 1, atol=1e-5)) == normalize


def test_layers_in_bfloat16_keep_parameters_and_vectors_in_float32():
    x_user, x_item = (jax.random.normal(jax.random.key(n), (6, 5 + n)) for n in (0, 1))
    wide, narrow = TwoTower(layers=(16, 8)), TwoTower(layers=(16, 8), dtype=jnp.bfloat16)
    params = narrow.init(jax.random.key(0), x_user, x_item)
    narrow_vectors, wide_vectors = (jax.jit(towers.apply)(params, x_user, x_item) for towers in (narrow, wide))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, narrow_vectors))} == {jnp.dtype("float32")}
    for narrow_vector, wide_vector in zip(narrow_vectors, wide_vectors, strict=True):
        assert 1e-5 < float(jnp.max(jnp.abs(narrow_vector - wide_vector))) < 0.05
        np.testing.assert_allclose(jnp.linalg.norm(narrow_vector, axis=1), 1, rtol=1e-6)
    products = lambda towers: jax.jit(towers.apply).lower(params, x_user, x_item).as_text().count("xbf16>) -> ")
    assert products(narrow) > products(wide) == 0


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST])
def test_the_precision_is_used_in_the_products_of_the_layers(precision):
    x_user, x_item = jnp.ones((2, 3)), jnp.ones((2, 4))
    towers = TwoTower(layers=(8, 4), precision=precision)
    params = towers.init(jax.random.key(0), x_user, x_item)
    program = lambda towers: str(jax.make_jaxpr(towers.apply)(params, x_user, x_item))
    assert "HIGHEST" in program(towers)
    assert "HIGHEST" not in program(TwoTower(layers=(8, 4)))
