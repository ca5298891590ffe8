"""Blocks of coordinates against a loop over rows and blocks in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.kernels.blocks import BlockRows, block_least_squares
from jaxrec.kernels.least_squares import Lists

N_OTHERS, D = 11, 7


def random_problem(*, weights, dtype=np.float64, seed=0):
    """(table, rows of lengths 3 and 9, shared); the first row of each part has no entries."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(N_OTHERS, D))
    rows = []
    for n, length in ((4, 3), (3, 9)):
        where = rng.random((n, length)) < 0.7
        where[0] = False
        y = np.where(where, rng.normal(size=(n, length)), np.nan)  # what is masked must not matter
        weight = np.where(where, rng.uniform(0, 3, (n, length)), np.nan) if weights else None
        lists = Lists(
            jnp.asarray(rng.integers(0, N_OTHERS, (n, length)), jnp.int32),
            jnp.asarray(y, dtype),
            jnp.asarray(where),
            None if weight is None else jnp.asarray(weight, dtype),
        )
        start, precision = rng.normal(size=(n, D)), rng.uniform(0.5, 2, (n, D))
        rows.append(BlockRows(lists, jnp.asarray(start, dtype), jnp.asarray(precision, dtype)))
    root = rng.normal(size=(D, D))
    return jnp.asarray(table, dtype), rows, jnp.asarray(root @ root.T, dtype)


def equations(table, part, row, shared):
    """(matrix, right-hand side, y'D y) of one row, in NumPy."""
    where = np.asarray(part.lists.where[row])
    x, y = np.asarray(table)[np.asarray(part.lists.other[row])[where]], np.asarray(part.lists.y[row])[where]
    weight = np.ones(len(y)) if part.lists.weights is None else np.asarray(part.lists.weights[row])[where]
    matrix = x.T @ (weight[:, None] * x) + np.diag(np.asarray(part.precision[row])) + np.asarray(shared)
    return matrix, x.T @ (weight * y), (weight * y * y).sum()


def one_pass(matrix, rhs, v, block_size):
    """A row's coefficients after one pass, each block solved with the others held fixed."""
    v = np.array(v)
    for first in range(0, len(v), block_size):
        block = slice(first, first + block_size)
        v[block] += np.linalg.solve(matrix[block, block], (rhs - matrix @ v)[block])
    return v


@pytest.mark.parametrize(
    ("block_size", "weights", "platform"),
    [(1, True, "cpu"), (3, True, "cpu"), (3, False, "cpu"), (7, True, "cpu"), (2, True, "gpu"), (3, False, "gpu")],
)
def test_a_pass_solves_one_block_after_another(x64, block_size, weights, platform):
    table, rows, shared = random_problem(weights=weights)
    solved = block_least_squares(table, rows, shared, block_size=block_size, platform=platform)
    for part, found in zip(rows, solved, strict=True):
        for row in range(len(part.v)):
            matrix, rhs, square = equations(table, part, row, shared)
            v = one_pass(matrix, rhs, part.v[row], block_size)
            np.testing.assert_allclose(found.v[row], v, atol=1e-10)
            np.testing.assert_allclose(found.objective[row], (square - 2 * rhs @ v + v @ matrix @ v) / 2, atol=1e-10)


@pytest.mark.slow
def test_passes_converge_to_the_exact_solution_and_stay_there(x64):
    table, rows, shared = random_problem(weights=True)
    objectives = []
    for _ in range(200):
        solved = block_least_squares(table, rows, shared, block_size=3, platform="cpu")
        rows = [part._replace(v=found.v) for part, found in zip(rows, solved, strict=True)]
        objectives.append(np.concatenate([found.objective for found in solved]))
    assert (np.diff(objectives, axis=0) <= 1e-12).all()
    for part in rows:
        for row in range(len(part.v)):
            matrix, rhs, _ = equations(table, part, row, shared)
            np.testing.assert_allclose(part.v[row], np.linalg.solve(matrix, rhs), atol=1e-8)


def test_the_derivative_equals_finite_differences(x64):
    table, rows, shared = random_problem(weights=True)

    def objective(table, shared, precision):
        parts = [part._replace(precision=precision * part.precision) for part in rows]
        solved = block_least_squares(table, parts, shared, block_size=3, platform="cpu")
        return sum(jnp.sum(found.objective) for found in solved)

    check_grads(jax.jit(objective), (table, shared, jnp.asarray(1.5)), order=1, modes=("rev",), rtol=1e-6)
