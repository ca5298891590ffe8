"""One function, a program per platform: each has its own form, and a kernel the derivative of what it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxrec.kernels.platform import by_platform, derived_as
from jaxrec.retrieval import top_k

MARKS = {"cpu": 12345.0, "gpu": 23456.0, "tpu": 34567.0}  # a number of each form's own, so that it shows where it is


def marked(x, y, *, on):
    return {"product": jnp.sin(x) * y, "mark": y + MARKS[on]}


X, Y = jnp.arange(3.0), jnp.array([2.0, 3.0, 4.0])


@pytest.mark.cpu
def test_here_it_is_the_cpus_eagerly_jitted_and_under_vmap():
    for run in (by_platform, jax.jit(by_platform, static_argnums=0)):
        found = run(marked, X, Y)
        np.testing.assert_allclose(found["product"], jnp.sin(X) * Y, rtol=1e-6)
        np.testing.assert_allclose(found["mark"], Y + MARKS["cpu"])
    both = jax.vmap(lambda x: by_platform(marked, x, Y)["product"])(jnp.stack([X, 2 * X]))
    np.testing.assert_allclose(both, jnp.sin(jnp.stack([X, 2 * X])) * Y[None], rtol=1e-6)


@pytest.mark.parametrize(("platform", "on"), [("cpu", "cpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")])
def test_a_program_holds_its_platforms_form_and_no_other(platform, on):
    run = jax.jit(lambda x, y: by_platform(marked, x, y))
    lowered = run.trace(X, Y).lower(lowering_platforms=(platform,)).as_text()
    assert [name for name, mark in MARKS.items() if f"{mark:e}" in lowered] == [on]


@pytest.mark.cpu
def test_one_export_holds_all_and_a_symbolic_size():
    (n,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    run = jax.jit(lambda x, y: by_platform(marked, x, y))
    exported = export.export(run, platforms=("cpu", "cuda", "tpu"))(shape, shape)
    found = export.deserialize(exported.serialize()).call(X, Y)
    np.testing.assert_allclose(found["mark"], Y + MARKS["cpu"])


def test_a_kernel_has_the_derivative_of_what_it_stands_for():
    given = {"x": X, "ids": jnp.array([2, 0, 1]), "nothing": None}
    reference = lambda given: jnp.sin(given["x"])[given["ids"]]
    kernel = derived_as(reference, lambda given: reference(given) + 1)  # wrong on purpose
    np.testing.assert_allclose(jax.jit(kernel)(given), reference(given) + 1, rtol=1e-6)
    total = lambda function: lambda x: jnp.sum(Y * function(given | {"x": x}))
    for derive in (jax.grad, jax.hessian, jax.jacfwd):
        np.testing.assert_allclose(derive(total(kernel))(X), derive(total(reference))(X), rtol=1e-6)


def test_the_search_on_a_tpu_is_the_kernel_and_elsewhere_it_is_not():
    queries, items = jnp.ones((3, 8)), jnp.ones((2000, 8))
    traced = jax.jit(lambda queries, items: top_k(queries, items, 5)).trace(queries, items)
    there = {on: "tpu_custom_call" in traced.lower(lowering_platforms=(on,)).as_text() for on in ("cpu", "cuda", "tpu")}
    assert there == {"cpu": False, "cuda": False, "tpu": True}
