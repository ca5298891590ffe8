"""The error of each user's row under the weights that are fitted without that user, in closed form.

Without user j, whose history is the column x, the inverse is P + (P x)(P x)' / (1 - h) with h = x' P x (Sherman and
Morrison), so that the residuals of the user's items i are, with P of all users,

    ridge   r_i = (x_i - (F x)_i) / (1 - h)                               F x the fit with the user
    EASE    r_i = q_i / (1 - h + q_i (P x)_i),    q_i = (P x)_i / P_ii    = x_i - (F x)_i

One inverse for each l2, where refits would take one for each user. In the dual form P x is a column of R' A and h =
1 - l2 A_jj.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrec import check
from jaxrec.kernels.chunks import by_chunks
from jaxrec.models.linear import Histories, histories, history_columns, transposed
from jaxrec.numerics import HIGHEST, product
from jaxrec.solvers.linear._dual import dual_diagonal, penalized_columns
from jaxrec.solvers.linear._matrices import COLUMNS, gram
from jaxrec.solvers.linear._memory import Form, choose_form
from jaxrec.solvers.linear._weights import check_l2, inverse_in_place
from jaxrec.types import Ratings

__all__ = ["leave_one_user_out"]


def leave_one_user_out(
    train: Ratings,
    *,
    l2: Shaped[ArrayLike, "*k"] | Sequence[float],
    zero_diagonal: bool = True,
    form: Form | None = None,
    max_bytes: int | None = None,
) -> Float[Array, "*k n_users"]:
    """Each user's sum of squared residuals over all items, under the weights fitted to the other users, for every l2.

    The mean over users chooses l2 without a validation part. It is the objective of EASE, not a ranking metric: with
    `zero_diagonal` an item's own interaction does not help to predict it; ridge's does, so that its error only shows
    what shrinks too much.

    Args:
        train: the interactions.
        l2: one penalty or several, > 0; one inverse each.
        zero_diagonal: True for `ease`, False for `ridge`.
        form: 'primal' or 'dual', as for `ease`; None: the smaller.
        max_bytes: as for `ease`.

    Raises:
        ValueError: as `ease`.

    >>> train = Ratings([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 2], [1] * 6, n_users=3, n_items=3)
    >>> errors = leave_one_user_out(train, l2=[0.1, 1.0, 10.0])  # [3, n_users]
    >>> int(errors.mean(axis=1).argmin())  # the first is the best of them
    0
    """
    check_l2(l2)
    x = histories(train)
    if form is not None:
        check.choice("form", form, ("primal", "dual"))
    form = choose_form(x, form, None, max_bytes)
    penalties = check.as_array("l2", l2).astype(x.weight.dtype)
    side, errors_of = (x, _primal_errors) if form == "primal" else (transposed(x), _dual_errors)
    errors = [
        errors_of(x, inverse_in_place(gram(side), penalty), penalty, zero_diagonal=zero_diagonal)
        for penalty in penalties.reshape(-1)
    ]
    return jnp.reshape(jnp.stack(errors), (*penalties.shape, x.n_users))


@partial(jax.jit, static_argnames="zero_diagonal")
def _primal_errors(x: Histories, p: Array, l2: Array, *, zero_diagonal: bool) -> Array:
    def errors_of(users: Array) -> Array:
        columns = history_columns(x, users)
        px = product(p, columns)
        rest = 1 - jnp.einsum("mn,mn->n", columns, px, precision=HIGHEST)
        return _squared_error(px, rest, jnp.diagonal(p) if zero_diagonal else None, l2)

    return by_chunks(errors_of, jnp.arange(x.n_users, dtype=jnp.int32), COLUMNS)


@partial(jax.jit, static_argnames="zero_diagonal")
def _dual_errors(x: Histories, a: Array, l2: Array, *, zero_diagonal: bool) -> Array:
    diagonal = dual_diagonal(x, a, l2) if zero_diagonal else None

    def errors_of(users: Array) -> Array:
        rest = l2 * a[users, users]
        return _squared_error(penalized_columns(x, a, users), rest, diagonal, l2)

    return by_chunks(errors_of, jnp.arange(x.n_users, dtype=jnp.int32), COLUMNS)


def _squared_error(px: Array, rest: Array, diagonal: Array | None, l2: Array) -> Array:
    """The sum of squared residuals of each user, from P x [n_items, n] and 1 - h [n]; the diagonal of P is EASE's."""
    if diagonal is None:
        residual = l2 * px / rest[None, :]
    else:
        q = px / diagonal[:, None]
        residual = q / (rest[None, :] + q * px)
    return jnp.sum(residual**2, axis=0)
