"""What a sweep over 20M ratings is for a GPU, read off the program: no GPU is needed, and no ratings."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from benchmarks import shapes
from jaxrec import solvers

SIZES = 138_493, 26_744
CASES = [("explicit", 3), ("implicit", None), ("implicit", 3)]  # each is traced for some seconds


@pytest.fixture(scope="module")
def sides():
    return shapes.rows(*SIZES, 20_000_000)


def trips(text):
    """Of each loop of a lowered program, how often its body runs: counted loops compare with a constant."""
    counts = []
    for condition in re.findall(r"stablehlo\.while.*?cond \{(.*?)\n *\} do", text, flags=re.DOTALL):
        bound = re.search(r"compare +LT, %\w+, %(\w+)", condition).group(1)
        counts.append(int(re.search(rf"%{bound} = stablehlo\.constant dense<(\d+)>", condition).group(1)))
    return counts


def test_trips_are_counted():
    loop = lambda n: lambda x: jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x) + i, x)
    text = jax.jit(lambda x: loop(7)(loop(30)(x))).trace(shapes.f32((3,))).lower().as_text()
    assert sorted(trips(text)) == [7, 30]


def test_the_ratings_that_are_not_there_are_20_million(sides):
    for rows in sides:
        entries = sum(bucket.other.shape[0] * bucket.other.shape[1] for bucket in rows.buckets)
        assert 20_000_000 < entries < 30_000_000
        assert sum(len(bucket.row) for bucket in rows.buckets) == len(rows.position)


@pytest.mark.parametrize(
    ("name", "cg_steps"),
    [("explicit", None), *(pytest.param(*each, marks=pytest.mark.slow) for each in CASES)],
)
def test_a_gpus_sweep_is_few_large_steps_and_cusolvers(sides, name, cg_steps):
    factors = shapes.factors(*SIZES, 64, biases=name == "explicit")
    sweep = {
        "explicit": partial(solvers.sweep, l2=1.0, cg_steps=cg_steps),
        "implicit": partial(solvers.implicit_sweep, l2=1.0, unobserved_weight=0.1, cg_steps=cg_steps),
    }
    text = jax.jit(sweep[name]).trace(factors, *sides).lower(lowering_platforms=("cuda",)).as_text()
    assert sum(trips(text)) <= 100, trips(text)
    assert ("cusolver_potrf" in text) == (cg_steps is None)
    assert "lapack" not in text


def test_a_cpus_sweep_is_many_small_steps_and_never_lapacks(sides):
    sweep = jax.jit(partial(solvers.sweep, l2=1.0))
    text = sweep.trace(shapes.factors(*SIZES, 64, biases=True), *sides).lower(lowering_platforms=("cpu",)).as_text()
    assert "lapack" not in text  # two at once wait for each other for ever: kernels.cholesky
    factor = jax.jit(jnp.linalg.cholesky).trace(shapes.f32((3, 3))).lower(lowering_platforms=("cpu",))
    assert "lapack" in factor.as_text()  # what the line above looks for
    assert sum(trips(text)) > 1000
