"""One function, two programs: each platform gets its own, in one export too; derivatives are the default's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxrec.kernels.platform import by_platform
from jaxrec.retrieval import top_k


def wrong_on_purpose(x, y):
    """Stands for a TPU kernel: another number, so that it shows where it runs."""
    return x * y + 12345.0


def either(x, y):
    return by_platform(x, y, tpu=wrong_on_purpose, default=lambda x, y: jnp.sin(x) * y)


X, Y = jnp.arange(3.0), jnp.array([2.0, 3.0, 4.0])
RIGHT = jnp.sin(X) * Y


def test_here_it_is_the_default_eagerly_and_jitted():
    np.testing.assert_allclose(either(X, Y), RIGHT, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(either)(X, Y), RIGHT, rtol=1e-6)


def test_vmap_and_map():
    both = jnp.stack([X, 2 * X])
    right = jnp.sin(both) * Y[None]
    np.testing.assert_allclose(jax.vmap(either, (0, None))(both, Y), right, rtol=1e-6)
    np.testing.assert_allclose(jax.lax.map(lambda x: either(x, Y), both), right, rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_derivatives_are_those_of_the_default(jit):
    total = lambda x: jnp.sum(either(x, Y))
    gradient = jax.jit(jax.grad(total)) if jit else jax.grad(total)
    np.testing.assert_allclose(gradient(X), jnp.cos(X) * Y, rtol=1e-6)
    np.testing.assert_allclose(jnp.diag(jax.hessian(total)(X)), -RIGHT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("platform", "there"), [("tpu", True), ("cpu", False), ("cuda", False)])
def test_each_platforms_program_has_its_own(platform, there):
    lowered = jax.jit(either).trace(X, Y).lower(lowering_platforms=(platform,)).as_text()
    assert ("12345" in lowered or "1.234500e+04" in lowered) == there


def test_a_tree_of_arrays_comes_back():
    pair = lambda x, y: {"sum": x + y, "both": (x, 2 * y)}
    found = jax.jit(lambda x, y: by_platform(x, y, tpu=wrong_on_purpose, default=pair))(X, Y)
    np.testing.assert_allclose(found["sum"], X + Y)
    np.testing.assert_allclose(found["both"][1], 2 * Y)


def test_one_export_holds_both_and_a_symbolic_size():
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    exported = export.export(jax.jit(either), platforms=("cpu", "cuda", "tpu"))(shape, shape)
    loaded = export.deserialize(exported.serialize())
    np.testing.assert_allclose(loaded.call(X, Y), RIGHT, rtol=1e-6)


def test_the_search_on_a_tpu_is_the_kernel_and_in_one_export_with_the_others():
    queries, items = jnp.ones((3, 8)), jnp.ones((2000, 8))
    search = lambda queries, items: top_k(queries, items, 5)
    lowered = jax.jit(search).trace(queries, items).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in lowered
    assert "tpu_custom_call" not in jax.jit(search).lower(queries, items).as_text()
    (n,) = export.symbolic_shape("n")
    shapes = jax.ShapeDtypeStruct((n, 8), jnp.float32), jax.ShapeDtypeStruct(items.shape, jnp.float32)
    exported = export.export(jax.jit(search), platforms=("cpu", "cuda", "tpu"))(*shapes)
    ids = export.deserialize(exported.serialize()).call(queries, items)[1]
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 3
