"""The counts of kernels and loop iterations are right for known programs, nested loops and unbounded loops."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.launches import count


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()


def times(n, f):
    return lambda x: jax.lax.fori_loop(0, n, lambda i, x: f(x), x)


@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (50, 1), (1, 40), (50, 40)])
def test_iterations_of_nested_loops_are_multiplied(inner, outer):
    step = lambda x: jnp.sin(x @ x)
    one, found = (count(compiled(times(n, times(m, step)), (200, 200))) for n, m in ((1, 1), (outer, inner)))
    assert found.kernels >= inner * outer
    assert found.kernels <= 4 * inner * outer + one.kernels
    trips = {1: 0}  # a loop of one iteration is compiled without a loop
    assert found.trips == (outer > 1) * outer + (inner > 1) * outer * trips.get(inner, inner)
    assert found.unknown == 0


def test_a_loop_with_an_unknown_number_of_iterations_counts_once():
    text = compiled(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: 2 * x @ x, x), (100, 100))
    assert count(text).unknown == 1
