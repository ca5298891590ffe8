"""Rows that share a Gram matrix, solved step by step with its eigenvectors as coordinates."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.kernels.platform import with_derivative_of
from jaxrec.numerics import product
from jaxrec.solvers import batched_ridge
from jaxrec.solvers.batched_ridge import RowProblem
from jaxrec.types import Rows

__all__ = ["solve_in_eigenbasis"]


def solve_in_eigenbasis(
    rows: Rows, problem: RowProblem, cg_steps: int | None, block_size: int | None
) -> tuple[Array, Array]:
    """Solves with the eigenvectors Q of the shared Gram matrix S as coordinates, the largest eigenvalue first.

    With z = Q' v and features X Q a row's equations have the same form, because its penalty is a number times I::

        (Q'X' D X Q + l2 I + diag(s)) z = Q'X' D y        S = Q diag(s) Q'

    S, which is most of a row's matrix, is diagonal. So the diagonal preconditioner of conjugate gradients solves it,
    and no step takes a product with it; it does not couple blocks with one another; and exact solutions, those with
    neither `cg_steps` nor `block_size`, are made in the dual where that is smaller. Badly scaled rows are not refitted.

    For the derivative Q is a constant, and Q' S Q is a matrix: no row's solution depends on its coordinates, and the
    derivatives of eigenvectors are infinite where eigenvalues are equal.
    """
    assert problem.shared_gram is not None
    _, q = jnp.linalg.eigh(jax.lax.stop_gradient(problem.shared_gram))
    q = q[:, ::-1]
    rotated = dataclasses.replace(
        problem,
        features=product(problem.features, q),
        coefficients=product(problem.coefficients, q),
        shared_gram=product(q.T, product(problem.shared_gram, q)),
    )
    if block_size is not None:
        z, objective = batched_ridge.solve_by_blocks(rows, rotated, block_size)
    else:
        solve = partial(_solve, cg_steps)
        z, objective = with_derivative_of(solve, partial(solve, diagonal=True))(rows, rotated)
    return product(z, q.T), objective


def _solve(steps: int | None, rows: Rows, problem: RowProblem, *, diagonal: bool = False) -> tuple[Array, Array]:
    if diagonal:  # of a diagonal matrix the diagonal is enough
        assert problem.shared_gram is not None
        l2 = problem.l2 + jnp.diagonal(problem.shared_gram)[None]
        problem = dataclasses.replace(problem, l2=l2, shared_gram=None)
    return batched_ridge.solve(rows, problem, steps, refit=False)
