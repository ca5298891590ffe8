"""What a sweep over 20M ratings is for a GPU, read off the program: no GPU is needed, and no ratings."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import solvers
from jaxrec.data import layouts
from jaxrec.types import Bucket, Factors, Rows

N_USERS, N_ITEMS, N = 138_493, 26_744, 20_000_000
f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
i32 = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)


def rows(n_rows, n_others, side, sigma):
    """The shapes of Rows whose lengths are log-normal, as MovieLens' are."""
    length = np.random.default_rng(0).lognormal(0, sigma, n_rows)
    length = np.minimum(np.maximum(1, length * N / length.sum()), n_others).astype(int)
    buckets = [
        Bucket(i32((n,)), i32((n, longest)), f32((n, longest)), jax.ShapeDtypeStruct((n, longest), jnp.bool_))
        for _, n, longest in layouts._plan(length, bucket_growth=None, shortest=8, multiple=1)
    ]
    return Rows(tuple(buckets), i32((n_rows,)), side, n_others)


@pytest.fixture(scope="module")
def sides():
    return rows(N_USERS, N_ITEMS, "user", 1.2), rows(N_ITEMS, N_USERS, "item", 2.2)


def trips(text):
    """Of each loop of a lowered program, how often its body runs: counted loops compare with a constant."""
    counts = []
    for condition in re.findall(r"stablehlo\.while.*?cond \{(.*?)\n *\} do", text, flags=re.DOTALL):
        bound = re.search(r"compare +LT, %\w+, %(\w+)", condition).group(1)
        counts.append(int(re.search(rf"%{bound} = stablehlo\.constant dense<(\d+)>", condition).group(1)))
    return counts


def test_trips_are_counted():
    loop = lambda n: lambda x: jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x) + i, x)
    text = jax.jit(lambda x: loop(7)(loop(30)(x))).trace(f32((3,))).lower().as_text()
    assert sorted(trips(text)) == [7, 30]


@pytest.mark.parametrize("cg_steps", [None, 3])
@pytest.mark.parametrize("name", ["explicit", "implicit"])
def test_a_gpus_sweep_is_few_large_steps_and_cusolvers(sides, name, cg_steps):
    table = lambda n: f32((n, 64))
    factors = Factors(table(N_USERS), f32((N_USERS,)), table(N_ITEMS), f32((N_ITEMS,)), f32(()))
    sweep = partial(solvers.sweep, l2=1.0, cg_steps=cg_steps)
    if name == "implicit":
        factors = Factors(factors.w, factors.b, factors.x)
        sweep = partial(solvers.implicit_sweep, l2=1.0, unobserved=0.1, cg_steps=cg_steps)
    text = jax.jit(sweep).trace(factors, *sides).lower(lowering_platforms=("cuda",)).as_text()
    assert sum(trips(text)) <= 100, trips(text)
    assert ("cusolver_potrf" in text) == (cg_steps is None)
    assert "lapack" not in text


def test_a_cpus_sweep_is_many_small_steps_and_never_lapacks(sides):
    factors = Factors(f32((N_USERS, 64)), f32((N_USERS,)), f32((N_ITEMS, 64)), f32((N_ITEMS,)), f32(()))
    sweep = jax.jit(partial(solvers.sweep, l2=1.0))
    text = sweep.trace(factors, *sides).lower(lowering_platforms=("cpu",)).as_text()
    assert "lapack" not in text  # two at once wait for each other for ever: kernels.cholesky
    assert sum(trips(text)) > 1000
