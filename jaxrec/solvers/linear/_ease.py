"""EASE and ridge on items: weights W that predict each item from the others, or from all, by least squares.

With the interactions X [n_users, n_items], G = X'X and P = (G + l2)^-1:

| model | minimizes ‖X - X W‖^2 + l2 ‖W‖^2 | W | scores F x = W' x |
| --- | --- | --- | --- |
| ridge (a linear autoencoder) | over all W | I - l2 P = P G | x - l2 P x |
| EASE (Steck 2019) | with a diagonal of 0 | I - P diag(P)^-1 | x - P x / diag(P) |

Both are x - P x / d, and differ in the divisor d. P has three forms:

| form | what it holds | P x | P x(j) of a user of train |
| --- | --- | --- | --- |
| primal | P, items x items | P x | the same |
| dual | A = (X X' + l2)^-1, users x users | (x - X' A X x) / l2 | column j of X' A, because X X' A = I - l2 A |
| low rank | V, s of X ~ U s V' | x / l2 + V (1 / (s^2 + l2) - 1 / l2) V' x | the same |

With powers of degrees the same is done with R = Du^a X Di^b in place of X, and scores are Di^-b F Di^b x.

One penalty per item, L = diag(l2), adds ‖L^(1/2) W‖^2 in place of l2 ‖W‖^2. With V = L^(1/2) W L^(-1/2) column k of the
error is l2_k times that of R L^(-1/2) under a penalty of 1, so that each form is that of R L^(-1/2) with l2 = 1, and
its scores are L^(1/2) F L^(-1/2) x.

Sources: Steck 2019, Embarrassingly shallow autoencoders for sparse data; Jeunen, Van Balen, Goethals 2020; Steck 2020,
Autoencoders that don't overfit towards the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.models.linear import Diagonal, LinearScorer, LowRank, Matrix, Scaled, Sum, histories, transposed
from jaxrec.numerics import HIGHEST
from jaxrec.solvers.linear._dual import Dual, dual_diagonal
from jaxrec.solvers.linear._matrices import degree_power, degrees, gram, scaled, sparse_product
from jaxrec.solvers.linear._memory import Form, choose_form
from jaxrec.solvers.linear._sharded import mesh_of, replicated, sharded_weights
from jaxrec.solvers.linear._spectrum import Spectrum, spectrum
from jaxrec.solvers.linear._weights import check_l2, checked, inverse_in_place, weights_in_place
from jaxrec.types import Ratings

__all__ = ["ease", "ridge"]


def ease(
    train: Ratings,
    *,
    l2: float | Shaped[ArrayLike, "*n_items"],
    form: Form | None = None,
    rank: int | None = None,
    user_exponent: float = 0.0,
    item_exponent: float = 0.0,
    key: PRNGKeyArray | None = None,
    power_steps: int = 5,
    max_bytes: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> LinearScorer:
    """EASE: every item's score is predicted from the other items of the history, by ridge regression.

    Args:
        train: the interactions; values are not used, weights are.
        l2: the penalty, > 0; popular items need hundreds. A number, or one per item [n_items]: how much an item may
            count as a predictor of others. EDLAE (Steck 2020), the expectation over histories whose items are dropped
            with probability p, is l2(i) = l2 + p / (1 - p) G(i, i), with G(i, i) item i's number of users.
        form: 'primal' (n_items^2 numbers in memory, n_items^3 multiplications), 'dual' (n_users^2, n_users^3), or
            'low_rank'. None takes the smaller of the first two, or 'low_rank' where there is a rank.
        rank: of the low-rank form, an approximation: the directions beyond it count as unobserved.
        user_exponent: a, the power of users' degrees that their interactions are multiplied by; 0 leaves them.
        item_exponent: b, the same for items'.
        key: of the low-rank form's random start; None: jax.random.key(0).
        power_steps: of the low-rank form's `spectrum`.
        max_bytes: the memory that may be used; None: the device's.
        devices: for the primal form, the devices that share its columns; None: one device has all.

    Returns:
        A scorer for `evaluation.evaluate`, and of new users by its `scores`.

    Raises:
        ValueError: an l2 that is not positive and finite, of another shape, or too small for the type; a form that does
            not fit in memory, with the bytes that it takes and the form that fits; a rank above either side, or not
            passed where it is needed; a key that is none.

    >>> from jaxrec import Ratings
    >>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], n_users=3, n_items=3)
    >>> scores = ease(train, l2=1.0).scores(jnp.array([[0]]))  # a new user with item 0: both others had 1 with it
    >>> (3 * scores).round().tolist()
    [[0.0, 2.0, 0.0]]
    >>> count, dropped = jnp.array([2.0, 2.0, 1.0]), 0.5
    >>> edlae = ease(train, l2=1.0 + dropped / (1 - dropped) * count)
    >>> (5 * edlae.scores(jnp.array([[0]]))).round().tolist()  # 2 / (2 + 3)
    [[0.0, 2.0, 0.0]]
    """
    args = train, l2, form, rank, user_exponent, item_exponent, key, power_steps, max_bytes, devices
    return _fit(*args, zero_diagonal=True)


def ridge(
    train: Ratings,
    *,
    l2: float | Shaped[ArrayLike, "*n_items"],
    form: Form | None = None,
    rank: int | None = None,
    user_exponent: float = 0.0,
    item_exponent: float = 0.0,
    key: PRNGKeyArray | None = None,
    power_steps: int = 5,
    max_bytes: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> LinearScorer:
    """Ridge regression of every item on all, itself too: a linear autoencoder, W = (G + l2)^-1 G.

    Arguments and errors as `ease`. Its low-rank form is V s^2 / (s^2 + l2) V'.

    >>> from jaxrec import Ratings
    >>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], n_users=3, n_items=3)
    >>> (5 * ridge(train, l2=1.0).scores(jnp.array([[0]]))).round().tolist()
    [[2.0, 2.0, 0.0]]
    """
    args = train, l2, form, rank, user_exponent, item_exponent, key, power_steps, max_bytes, devices
    return _fit(*args, zero_diagonal=False)


def _fit(
    train: Ratings,
    l2: Any,
    form: Form | None,
    rank: int | None,
    user_exponent: float,
    item_exponent: float,
    key: PRNGKeyArray | None,
    power_steps: int,
    max_bytes: int | None,
    devices: Sequence[jax.Device] | None,
    *,
    zero_diagonal: bool,
) -> LinearScorer:
    check.random_key(key, optional=True)
    check_l2(l2)
    if jnp.shape(l2) not in ((), (train.n_items,)):
        raise ValueError(
            f"l2: expected one number or one per item, ({train.n_items},), got shape {jnp.shape(l2)}. For several fits "
            "use vmap over `ease_weights` or `ridge_weights`."
        )
    for name, exponent in (("user_exponent", user_exponent), ("item_exponent", item_exponent)):
        check.all_finite(name, exponent)
    x = histories(train)
    mesh = None if devices is None else mesh_of(devices)
    form = choose_form(x, form, rank, max_bytes, None if mesh is None else mesh.size)
    penalty = jnp.asarray(l2, x.weight.dtype)
    degree = degrees(x)
    users, items = degree_power(degree.users, user_exponent), degree_power(degree.items, item_exponent)
    back = degree_power(degree.items, -item_exponent) if item_exponent else jnp.ones_like(items)
    is_per_item = penalty.ndim == 1
    if is_per_item:  # the same fit of R L^(-1/2) with a penalty of 1
        items, back = items * penalty**-0.5, back * penalty**0.5
    is_scaled = bool(item_exponent) or is_per_item
    l2 = jnp.ones((), penalty.dtype) if is_per_item else penalty
    r = scaled(x, users, items) if user_exponent or is_scaled else x
    operator: Any
    if mesh is not None:
        operator = Matrix(checked(sharded_weights(r, l2, mesh, zero_diagonal=zero_diagonal), penalty))
        x, items, back = replicated(x, mesh), replicated(items, mesh), replicated(back, mesh)
    elif form == "primal":
        inverse = inverse_in_place(gram(r), l2, given=penalty)
        operator = Matrix(weights_in_place(inverse, zero_diagonal=zero_diagonal, l2=l2))
    elif form == "dual":
        a = inverse_in_place(gram(transposed(r)), l2, given=penalty)
        divisor = dual_diagonal(r, a, l2) if zero_diagonal else jnp.full(x.n_items, 1 / l2, l2.dtype)
        operator = Dual(r, a, l2, divisor, degree_power(degree.users, -user_exponent))
    else:
        vectors = spectrum(r, rank=int(rank or 0), key=key, power_steps=power_steps)
        projected = scaled(x, jnp.ones_like(users), items) if is_scaled else x
        operator = _low_rank(vectors, l2, sparse_product(projected, vectors.item_vectors), zero_diagonal=zero_diagonal)
    if is_scaled:
        operator = Scaled(operator, items, back)
    return LinearScorer(x, operator)


def _low_rank(vectors: Spectrum, l2: Array, user_vectors: Array, *, zero_diagonal: bool) -> Any:
    """Ridge's H = V s^2 / (s^2 + l2) V', or EASE's (H - diag(H)) / (1 - diag(H))."""
    v, square = vectors.item_vectors, vectors.singular_values**2
    gain = square / (square + l2)
    if not zero_diagonal:
        return LowRank(v * gain[None, :], v.T, user_vectors)
    left = 1 - jnp.einsum("mr,r,mr->m", v, gain, v, precision=HIGHEST)  # l2 diag(P)
    thin = LowRank(v * gain[None, :] / left[:, None], v.T, user_vectors)
    return Sum((Diagonal(1 - 1 / left), thin), jnp.ones(2, v.dtype))
