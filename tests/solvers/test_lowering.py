"""The programs of a sweep over 20M ratings, lowered for a GPU and a CPU from shapes alone: no GPU, and no ratings."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from benchmarks import shapes
from jaxrec import solvers
from jaxrec.counting_sort import CHUNK_ENTRIES

SIZES = 138_493, 26_744
SLOW_CASES = [("explicit", 3), ("implicit", None), ("implicit", 3)]  # tracing each takes some seconds


@pytest.fixture(scope="module")
def both_sides():
    """(by_user, by_item): shapes of rows of 20M ratings."""
    return shapes.rows(*SIZES, 20_000_000)


def loop_lengths(text):
    """The number of iterations of each loop of a lowered program: the constant that its counter is compared with."""
    counts = []
    for condition in re.findall(r"stablehlo\.while.*?cond \{(.*?)\n *\} do", text, flags=re.DOTALL):
        bound = re.search(r"compare +LT, %\w+, %(\w+)", condition).group(1)
        counts.append(int(re.search(rf"%{bound} = stablehlo\.constant dense<(\d+)>", condition).group(1)))
    return counts


def test_loop_lengths_are_counted():
    loop = lambda n: lambda x: jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x) + i, x)
    text = jax.jit(lambda x: loop(7)(loop(30)(x))).trace(shapes.f32((3,))).lower().as_text()
    assert sorted(loop_lengths(text)) == [7, 30]


def test_the_shapes_are_those_of_20_million_ratings(both_sides):
    for rows in both_sides:
        entries = sum(bucket.other.shape[0] * bucket.other.shape[1] for bucket in rows.buckets)
        assert 20_000_000 < entries < 30_000_000
        assert sum(len(bucket.row) for bucket in rows.buckets) == len(rows.position)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cg_steps"),
    [("explicit", None), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_a_sweep_on_a_gpu_has_few_large_steps_and_factorizes_by_cusolver(both_sides, name, cg_steps):
    factors = shapes.factors(*SIZES, 64, biases=name == "explicit")
    sweep = {
        "explicit": partial(solvers.sweep, l2=1.0, cg_steps=cg_steps),
        "implicit": partial(solvers.implicit_sweep, l2=1.0, unobserved_weight=0.1, cg_steps=cg_steps),
    }
    text = jax.jit(sweep[name]).trace(factors, *both_sides).lower(lowering_platforms=("cuda",)).as_text()
    assert sum(loop_lengths(text)) <= 100, loop_lengths(text)
    assert ("cusolver_potrf" in text) == (cg_steps is None)
    assert "lapack" not in text


def test_a_sweep_on_a_cpu_has_many_small_steps_and_never_calls_lapack(both_sides):
    sweep = jax.jit(partial(solvers.sweep, l2=1.0))
    text = (
        sweep.trace(shapes.factors(*SIZES, 64, biases=True), *both_sides).lower(lowering_platforms=("cpu",)).as_text()
    )
    assert "lapack" not in text  # two concurrent calls can deadlock: see kernels.cholesky
    factor = jax.jit(jnp.linalg.cholesky).trace(shapes.f32((3, 3))).lower(lowering_platforms=("cpu",))
    assert "lapack" in factor.as_text()  # so the assertion above can fail
    assert sum(loop_lengths(text)) > 1000


def test_the_buckets_of_a_sweep_by_conjugate_gradients_share_their_loops_on_a_cpu(both_sides):
    sweep = jax.jit(partial(solvers.sweep, l2=1.0, cg_steps=3))
    factors = shapes.factors(*SIZES, 64, biases=True)
    text = sweep.trace(factors, *both_sides).lower(lowering_platforms=("cpu",)).as_text()
    buckets = [bucket.other.shape[1] for rows in both_sides for bucket in rows.buckets]
    alone = sum(length > CHUNK_ENTRIES for length in buckets)
    assert len(buckets) - alone > 25
    # a side has at most five loops of chunks, by length, and one for each bucket of rows longer than a chunk; each has
    # a loop of steps in it
    assert len(loop_lengths(text)) <= 2 * (2 * 5 + alone)
