"""`by_platform` selects the implementation for a program's platform; `with_derivative_of` adds a derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxrec.kernels.platform import by_platform, with_derivative_of
from jaxrec.retrieval import top_k

# Each form adds a constant of its own, by which the test finds it in a lowered program.
CONSTANTS = {"cpu": 12345.0, "gpu": 23456.0, "tpu": 34567.0}


def with_constant(x, y, *, platform):
    return {"product": jnp.sin(x) * y, "sum": y + CONSTANTS[platform]}


X, Y = jnp.arange(3.0), jnp.array([2.0, 3.0, 4.0])


@pytest.mark.cpu
def test_on_a_cpu_the_cpus_form_runs_eagerly_under_jit_and_under_vmap():
    for run in (by_platform, jax.jit(by_platform, static_argnums=0)):
        found = run(with_constant, X, Y)
        np.testing.assert_allclose(found["product"], jnp.sin(X) * Y, rtol=1e-6)
        np.testing.assert_allclose(found["sum"], Y + CONSTANTS["cpu"])
    both = jax.vmap(lambda x: by_platform(with_constant, x, Y)["product"])(jnp.stack([X, 2 * X]))
    np.testing.assert_allclose(both, jnp.sin(jnp.stack([X, 2 * X])) * Y[None], rtol=1e-6)


@pytest.mark.parametrize(("platform", "on"), [("cpu", "cpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")])
def test_a_program_contains_only_the_form_of_its_platform(platform, on):
    run = jax.jit(lambda x, y: by_platform(with_constant, x, y))
    lowered = run.trace(X, Y).lower(lowering_platforms=(platform,)).as_text()
    assert [name for name, constant in CONSTANTS.items() if f"{constant:e}" in lowered] == [on]


@pytest.mark.cpu
def test_one_export_holds_the_forms_of_all_platforms_and_takes_a_symbolic_size():
    (n,) = export.symbolic_shape("n")
    struct = jax.ShapeDtypeStruct((n,), jnp.float32)
    run = jax.jit(lambda x, y: by_platform(with_constant, x, y))
    exported = export.export(run, platforms=("cpu", "cuda", "tpu"))(struct, struct)
    found = export.deserialize(exported.serialize()).call(X, Y)
    np.testing.assert_allclose(found["sum"], Y + CONSTANTS["cpu"])


def test_with_derivative_of_has_the_values_of_the_kernel_and_the_derivatives_of_the_reference():
    args = {"x": X, "ids": jnp.array([2, 0, 1]), "nothing": None}
    reference = lambda args: jnp.sin(args["x"])[args["ids"]]
    kernel = with_derivative_of(
        reference, lambda args: reference(args) + 1
    )  # wrong on purpose: the two can be told apart
    np.testing.assert_allclose(jax.jit(kernel)(args), reference(args) + 1, rtol=1e-6)
    total = lambda function: lambda x: jnp.sum(Y * function(args | {"x": x}))
    for derive in (jax.grad, jax.hessian, jax.jacfwd):
        np.testing.assert_allclose(derive(total(kernel))(X), derive(total(reference))(X), rtol=1e-6)


def test_top_k_has_the_pallas_kernel_on_a_tpu_only():
    queries, items = jnp.ones((3, 8)), jnp.ones((2000, 8))
    traced = jax.jit(lambda queries, items: top_k(queries, items, 5)).trace(queries, items)
    lowered = lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()
    has_kernel = {platform: "tpu_custom_call" in lowered(platform) for platform in ("cpu", "cuda", "tpu")}
    assert has_kernel == {"cpu": False, "cuda": False, "tpu": True}
