"""Conjugate gradients of padded rows of several lengths against NumPy, one row at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.kernels import conjugate_gradient as kernel
from jaxrec.kernels.conjugate_gradient import conjugate_gradient
from jaxrec.kernels.least_squares import CHUNK_FLOATS, Lists

TABLE, D = 40, 3
# On a CPU so few entries make chunks of 315: of 105 rows of 3 and 63 of 5 in one loop, of 35 rows of 9 (and of 8, which
# are padded) and 15 of 21 in another. A length of 4 has its own, because 5 would be a quarter more, and so does 400.
# Loops do not follow the order of the parts: none may write the rows of another.
SHAPES = [(5, 3), (30, 21), (70, 5), (37, 4), (50, 8), (120, 9), (0, 21), (3, 400)]


def random_parts(shapes, *, weights, seed=0, dtype=np.float64):
    """(table, parts): each part has a row without entries, NaN and infinity where masked, and some weights of 0."""
    rng = np.random.default_rng(seed)

    def part(n, length):
        where = rng.random((n, length)) < 0.6
        where[:1] = False
        y = np.where(where, rng.normal(size=(n, length)), np.nan)
        weight = np.where(where, rng.uniform(0, 2, (n, length)) * (rng.random((n, length)) < 0.8), np.inf)
        other = jnp.asarray(rng.integers(0, TABLE, (n, length)), jnp.int32)
        weight = jnp.asarray(weight, dtype) if weights else None
        return Lists(other, jnp.asarray(y, dtype), jnp.asarray(where), weight)

    return jnp.asarray(rng.normal(size=(TABLE, D)), dtype), [part(*shape) for shape in shapes]


def entries_of_rows(table, parts, intercept, other_offset, row_offset):
    """(x, y, weights) of every row's unmasked entries, as NumPy arrays, and the offsets subtracted."""
    number = 0
    for lists in parts:
        for row in range(len(lists.other)):
            where = np.asarray(lists.where[row])
            other = np.asarray(lists.other[row])[where]
            x = np.asarray(table)[other]
            x = np.concatenate([x, np.ones((len(x), 1))], axis=1) if intercept else x
            y = np.asarray(lists.y[row])[where]
            y = y if other_offset is None else y - np.asarray(other_offset)[other]
            y = y if row_offset is None else y - row_offset[number]
            yield x, y, np.ones(len(x)) if lists.weights is None else np.asarray(lists.weights[row])[where]
            number += 1


CASES = [
    (platform, intercept, weights, shared, offsets)
    for platform in ("cpu", "gpu")
    for intercept, weights, shared, offsets in [
        (True, False, False, True),
        (False, True, True, False),
        (True, True, True, True),
    ]
]


@pytest.mark.parametrize(
    ("platform", "intercept", "weights", "shared", "offsets"),
    [case if case[1:] == (True, True, True, True) else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_the_objective_never_rises_and_ends_at_the_solution(
    x64, monkeypatch, platform, intercept, weights, shared, offsets
):
    monkeypatch.setitem(CHUNK_FLOATS, platform, 100 * D)  # some parts in several chunks
    table, parts = random_parts(SHAPES, weights=weights)
    k, n = D + intercept, sum(rows for rows, _ in SHAPES)
    rng = np.random.default_rng(3)
    start, precision = jnp.asarray(rng.normal(size=(n, k))), jnp.asarray(rng.uniform(0.5, 2, (n, k)))
    root = rng.normal(size=(k, k)) * shared
    other_offset, row_offset = (rng.normal(size=TABLE), rng.normal(size=n)) if offsets else (None, None)

    @partial(jax.jit, static_argnames="steps")
    def solve(start, steps):
        return conjugate_gradient(
            table,
            parts,
            start,
            precision,
            jnp.asarray(root @ root.T) if shared else None,
            other_offset=None if other_offset is None else jnp.asarray(other_offset),
            row_offset=None if row_offset is None else jnp.asarray(row_offset),
            intercept=intercept,
            steps=steps,
            platform=platform,
        )

    converged, trace = solve(start, 3 * k), [solve(start, steps).objective for steps in range(k + 1)]
    assert (np.diff(np.array(trace), axis=0) <= 1e-9).all()
    assert converged.v.shape == (n, k)
    for row, (x, y, w) in enumerate(entries_of_rows(table, parts, intercept, other_offset, row_offset)):
        penalty = np.diag(precision[row]) + root @ root.T
        v = np.linalg.solve(x.T @ (w[:, None] * x) + penalty, x.T @ (w * y))
        np.testing.assert_allclose(converged.v[row], v, atol=1e-8)
        objective = lambda v, x=x, y=y, w=w, penalty=penalty: ((w * (x @ v - y) ** 2).sum() + v @ penalty @ v) / 2
        np.testing.assert_allclose(converged.objective[row], objective(v), atol=1e-9)
        np.testing.assert_allclose(trace[0][row], objective(np.asarray(start[row])), rtol=1e-10)


def test_all_rows_in_one_loop_equal_each_part_in_its_own(x64, monkeypatch):
    table, parts = random_parts(SHAPES, weights=True)
    n = sum(rows for rows, _ in SHAPES)
    rng = np.random.default_rng(1)
    rows = jnp.asarray(rng.normal(size=(n, D))), jnp.asarray(rng.uniform(0.5, 2, (n, D)))
    solve = partial(conjugate_gradient, table, parts, *rows, intercept=False, steps=2, platform="cpu")
    together = jax.jit(lambda: solve())()
    monkeypatch.setattr(kernel, "PADDING", -1.0)
    assert len(kernel._groups(SHAPES, D, "cpu")) == len(SHAPES) - 1  # one is empty
    apart = jax.jit(lambda: solve())()
    np.testing.assert_allclose(together.v, apart.v, rtol=1e-12)
    np.testing.assert_allclose(together.objective, apart.objective, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_have_converged_stay_where_they_are(x64, dtype):
    table, parts = random_parts(SHAPES, weights=True, dtype=dtype)
    n = sum(rows for rows, _ in SHAPES)
    rng = np.random.default_rng(3)
    start, precision = jnp.asarray(rng.normal(size=(n, D)), dtype), jnp.asarray(rng.uniform(0.5, 2, (n, D)), dtype)
    shared = jnp.asarray(np.diag([9.0, 1.0, 0.1]) + 0.5, dtype)
    solve = partial(conjugate_gradient, table, parts, start, precision, shared, intercept=False, platform="gpu")
    converged, later = jax.jit(lambda: (solve(steps=5), solve(steps=300)))()
    np.testing.assert_allclose(later.v, converged.v, atol=2e-5 if dtype == np.float32 else 1e-11)


def test_rows_without_entries_are_0_and_keep_their_start_without_steps():
    table, parts = random_parts([(4, 5)], weights=False, dtype=np.float32)
    start, no_penalty = jnp.ones((4, D)), jnp.zeros((4, D))
    solve = lambda steps: conjugate_gradient(
        table, parts, start, no_penalty, intercept=False, steps=steps, platform="cpu"
    )
    np.testing.assert_array_equal(solve(3).v[0], 0)
    assert np.isfinite(solve(3).v).all()
    np.testing.assert_array_equal(solve(0).v, 1)


def test_the_derivative_equals_finite_differences(x64):
    table, parts = random_parts([(6, 9), (50, 21)], weights=True)
    parts = [part._replace(y=jnp.where(part.where, part.y, 0)) for part in parts]
    rng = np.random.default_rng(2)
    start, precision = jnp.asarray(rng.normal(size=(56, D))), jnp.asarray(rng.uniform(0.5, 2, (56, D)))

    @jax.jit
    def total(table, precision):
        solved = conjugate_gradient(table, parts, start, precision, intercept=False, steps=2, platform="cpu")
        return jnp.sum(jnp.sin(solved.v)) + jnp.sum(solved.objective)

    gradients = jax.grad(total, argnums=(0, 1))(table, precision)
    changes = jnp.asarray(rng.normal(size=table.shape)), jnp.asarray(rng.normal(size=precision.shape))
    step = 1e-6
    up, down = (total(table + sign * step * changes[0], precision + sign * step * changes[1]) for sign in (1, -1))
    expected = (up - down) / (2 * step)
    np.testing.assert_allclose(
        sum(jnp.sum(g * c) for g, c in zip(gradients, changes, strict=True)), expected, rtol=1e-6
    )


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("d", [1, 3, 64, 65, 128, 1000, 5000])
def test_chunks_hold_every_row_once_and_fit_in_the_cache(platform, d):
    rng = np.random.default_rng(d)
    for _ in range(20):
        shapes = [(int(rng.integers(0, 3000)), int(length)) for length in rng.integers(1, 30_000, rng.integers(1, 9))]
        starts = np.cumsum([0, *(n for n, _ in shapes)])
        groups = kernel._groups(shapes, d, platform)
        assert sorted(number for group in groups for number in group.numbers) == [
            k for k, (n, _) in enumerate(shapes) if n
        ]
        solved = np.zeros(starts[-1], int)
        for group in groups:
            for number, (size, length) in zip(group.numbers, group.shapes, strict=True):
                assert size * length == group.n_entries
                assert size <= group.n_rows
                assert shapes[number][1] <= length <= (1 + kernel.PADDING) * shapes[number][1]
                assert size == 1 or size * length * d <= 2**0.5 * CHUNK_FLOATS[platform] or d > 1000
            schedule = kernel._schedule(group, [n for n, _ in shapes])
            for part, n_used, first, position in schedule.tolist():
                number = group.numbers[part]
                assert position == starts[number] + first
                assert 0 <= first <= first + n_used <= shapes[number][0]
                solved[position : position + n_used] += 1
        assert (solved >= 1).all()
