"""Low-pass filters of the normalized item graph: closed forms without a parameter to learn.

R = Du^a X Di^b, with the degrees Du, Di of users and items and a = b = -1/2; R'R has eigenvalues s^2 in [0, 1], the
smooth ones near 1, and V its eigenvectors. A filter's scores are a function of R'R applied to the history x:

| filter | scores of x |
| --- | --- |
| `low_pass` | Di^d V s^(2e) V' Di^-d x  +  c Di^q S'S Di^-p x, with S = Du^-h X Di^-1/2 |
| GF-CF (Shen et al. 2021) | R'R x + alpha Di^(1/2) V V' Di^(-1/2) x: `low_pass` with c = 1 / alpha, times alpha |
| `turbo_cf` (Park et al. 2024) | a_0 x + a_1 R'R x + a_2 (R'R)^2 x + ... |
| `cheby_cf` (Kim et al. 2025) | Di^d (sum over k of c_k T_k(I - 2 R'R) + alpha V V') Di^-d x |

Nothing n_items x n_items is formed: R'R is two sparse products, and V V' two with a thin matrix. Scores of all gowalla
(30k users, 41k items, 810k pairs, rank 512) are 6e11 multiplications of the low pass and 5e10 of a hop.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxrec import check
from jaxrec.models.linear import (
    Chebyshev,
    Histories,
    Hop,
    LinearScorer,
    LowRank,
    Polynomial,
    Scaled,
    Sum,
    histories,
)
from jaxrec.solvers.linear import _spectrum
from jaxrec.solvers.linear._matrices import degree_power, degrees, scaled, sparse_product
from jaxrec.solvers.linear._spectrum import Spectrum
from jaxrec.types import Ratings

__all__ = ["cheby_cf", "low_pass", "normalized", "plateau", "turbo_cf"]


def normalized(interactions: Histories, *, user_power: float = -0.5, item_power: float = -0.5) -> Histories:
    """R = Du^user_power X Di^item_power, with the degrees of users and items; rows and columns without any stay 0."""
    degree = degrees(interactions)
    return scaled(interactions, degree_power(degree.users, user_power), degree_power(degree.items, item_power))


def low_pass(
    train: Ratings,
    *,
    rank: int,
    spectral_power: float = 0.0,
    degree_exponent: float = 0.5,
    hop_weight: float = 0.0,
    hop_exponents: tuple[float, float] = (0.0, 0.0),
    hop_user_exponent: float = 0.5,
    spectrum: Spectrum | None = None,
    key: PRNGKeyArray | None = None,
    power_steps: int = 5,
) -> LinearScorer:
    """A low-rank filter of the normalized item graph plus one hop, whose popularity is weighed apart.

    With R = Du^-1/2 X Di^-1/2, its singular values s and vectors V, and S = Du^-h X Di^-1/2: scores of a history x are

        Di^d V s^(2e) V' Di^-d x  +  c Di^q S'S Di^-p x

    GF-CF is e = 0, d = h = 1/2, p = q = 0 and c = 1 / alpha. With h = 0 the hop is by the cosine of items.

    Args:
        train: the interactions; values are not used, weights are.
        rank: of V.
        spectral_power: e; 0 passes all `rank` directions alike, 1 is a hop restricted to them.
        degree_exponent: d.
        hop_weight: c; 0 leaves the hop out.
        hop_exponents: (p, q), the powers of the degree that a history is divided by, and that the result is multiplied
            with.
        hop_user_exponent: h, how much less a user with many items says of their likeness.
        spectrum: the result of `spectrum(normalized(histories(train)), rank=...)`, of at least `rank`, for several
            filters of one graph; None computes it.
        key: for the random start of the spectrum; None: jax.random.key(0).
        power_steps: of the spectrum.

    Returns:
        A scorer of all users of train, and of new ones.

    Raises:
        ValueError: a rank above either side or above the spectrum's; numbers that are not finite; a key that is none.
    """
    check.random_key(key, optional=True)
    _check_finite(
        spectral_power=spectral_power,
        degree_exponent=degree_exponent,
        hop_weight=hop_weight,
        hop_exponents=hop_exponents,
        hop_user_exponent=hop_user_exponent,
    )
    x = histories(train)
    degree = degrees(x).items
    r = normalized(x)
    vectors = _spectrum_of(r, rank, spectrum, key, power_steps)
    weights = vectors.singular_values ** (2 * spectral_power) if spectral_power else jnp.ones_like(vectors[1])
    ideal = _ideal_pass(x, vectors, degree, degree_exponent, weights)
    if hop_weight == 0:
        return LinearScorer(x, ideal)
    p, q = hop_exponents
    graph = normalized(x, user_power=-hop_user_exponent)
    hop = Scaled(Hop(graph), degree_power(degree, -p), degree_power(degree, q))
    return LinearScorer(x, Sum((ideal, hop), jnp.array([1, hop_weight], degree.dtype)))


def turbo_cf(
    train: Ratings, *, coefficients: tuple[float, ...] = (0.0, 1.0), user_exponent: float = 0.5
) -> LinearScorer:
    """A polynomial of the normalized item graph: scores of x are a_0 x + a_1 P x + a_2 P^2 x + ..., with P = R'R.

    R = Du^-u X Di^(u - 1). The linear filter is (0, 1); the second-order one of the paper (0, 2, -1), the third-order
    one, P + 0.01 (-P^3 + 10 P^2 - 29 P), (0, 0.71, 0.1, -0.01). The paper's powers of P's entries are left out.

    Args:
        train: the interactions.
        coefficients: a_0, a_1, ...
        user_exponent: u, in [0, 1].

    Raises:
        ValueError: no coefficients; numbers that are not finite.
    """
    _check_finite(coefficients=coefficients, user_exponent=user_exponent)
    if len(coefficients) == 0:
        raise ValueError("coefficients: expected at least one, got none.")
    x = histories(train)
    graph = Hop(normalized(x, user_power=-user_exponent, item_power=user_exponent - 1))
    return LinearScorer(x, Polynomial(graph, jnp.asarray(coefficients, x.weight.dtype)))


def cheby_cf(
    train: Ratings,
    *,
    order: int = 8,
    flatness: float = 1.5,
    rank: int | None = None,
    ideal_weight: float = 0.0,
    degree_exponent: float = 0.0,
    spectrum: Spectrum | None = None,
    key: PRNGKeyArray | None = None,
    power_steps: int = 5,
) -> LinearScorer:
    """A plateau-shaped filter of the whole spectrum by Chebyshev interpolation, and an ideal low pass.

    Scores of x are Di^d (sum over k of c_k T_k(I - 2 R'R) + alpha V V') Di^-d x, with the coefficients of `plateau`.
    2 `order` sparse products of each history. The paper's setting of gowalla: order 8, flatness 1.5, rank 512,
    ideal_weight 0.2, degree_exponent 0.4.

    Args:
        train: the interactions.
        order: K, the degree of the polynomial, >= 1.
        flatness: phi > 0, of the plateau.
        rank: of V; None leaves the ideal pass out.
        ideal_weight: alpha.
        degree_exponent: d.
        spectrum: as for `low_pass`.
        key: as for `low_pass`.
        power_steps: as for `low_pass`.

    Raises:
        ValueError: as `low_pass`; an order below 1, or a flatness that is not positive; an ideal_weight without rank.

    Source: Kim, Sung, Han, Lee 2025, Graph spectral filtering with Chebyshev interpolation for recommendation, SIGIR.
    """
    check.random_key(key, optional=True)
    _check_finite(flatness=flatness, ideal_weight=ideal_weight, degree_exponent=degree_exponent)
    check.whole_number("order", order, least=1)
    check.positive("flatness", flatness)
    if rank is None and ideal_weight != 0:
        raise ValueError(f"rank: expected the ideal pass's, because ideal_weight is {ideal_weight}, got None.")
    x = histories(train)
    degree = degrees(x).items
    before, after = degree_power(degree, -degree_exponent), degree_power(degree, degree_exponent)
    r = normalized(x)
    smooth = Scaled(Chebyshev(Hop(r), jnp.asarray(plateau(order, flatness), degree.dtype)), before, after)
    if rank is None or ideal_weight == 0:
        return LinearScorer(x, smooth)
    vectors = _spectrum_of(r, rank, spectrum, key, power_steps)
    ideal = _ideal_pass(x, vectors, degree, degree_exponent, jnp.ones_like(vectors.singular_values))
    return LinearScorer(x, Sum((smooth, ideal), jnp.array([1, ideal_weight], degree.dtype)))


def plateau(order: int, flatness: float) -> np.ndarray:
    """Chebyshev coefficients [order + 1] of a filter that is flat in the middle: 1 at -1, 1/2 around 0, 0 at 1.

    The target is h(t) = (1 - sign(t) |t|^flatness) / 2 at t_k = cos(pi (order - k) / order), and the coefficients are
    c_j = 2 / (order + 1) * sum over k of T_j(u_k) h(t_k), half of that for j = 0, with the Chebyshev nodes u_k =
    cos(pi (order + 1/2 - k) / (order + 1)). This is what the authors' program computes: u_k and t_k differ a little, so
    that the filter is not quite an interpolation of h.
    """
    k = np.arange(order + 1)
    target = np.cos((order - k) / order * np.pi)
    height = 0.5 - 0.5 * np.sign(target) * np.abs(target) ** flatness
    angle = (order + 0.5 - k) / (order + 1) * np.pi
    coefficients = 2 / (order + 1) * np.cos(k[:, None] * angle[None, :]) @ height
    coefficients[0] /= 2
    return coefficients


def _ideal_pass(x: Histories, vectors: Spectrum, degree: jnp.ndarray, exponent: float, weights: jnp.ndarray) -> LowRank:
    """Di^d V diag(weights) V' Di^-d, with the projections of the users of train."""
    right = degree_power(degree, -exponent)[:, None] * vectors.item_vectors
    left = degree_power(degree, exponent)[:, None] * vectors.item_vectors * weights[None, :]
    return LowRank(left, right.T, sparse_product(x, right))


def _spectrum_of(
    r: Histories, rank: int, given: Spectrum | None, key: PRNGKeyArray | None, power_steps: int
) -> Spectrum:
    if given is None:
        return _spectrum.spectrum(r, rank=rank, key=key, power_steps=power_steps)
    n_items, available = given.item_vectors.shape
    if n_items != r.n_items or check.whole_number("rank", rank, least=1) > available:
        raise ValueError(
            f"spectrum: expected vectors of {r.n_items} items and at least rank {rank}, got {n_items} items and rank "
            f"{available}."
        )
    return Spectrum(given.item_vectors[:, :rank], given.singular_values[:rank])


def _check_finite(**numbers: float | tuple[float, ...]) -> None:
    for name, value in numbers.items():
        check.all_finite(name, np.asarray(value, np.float64))
