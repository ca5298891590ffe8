r"""The hierarchical prior of one side's rows and the conditional draws of its parameters.

The prior of a row v with centered and rotated features z in each group, and of the row's own precision τ::

    v      ~ normal(m + sum over groups of L' z, Λ^-1)
    m | Λ  ~ normal(0, (β Λ)^-1)                Λ ~ Wishart(ν, (s I)^-1)          the Normal-Wishart of BPMF
    L | Λ  ~ matrix normal(0, λ^-1 I, Λ^-1)     λ ~ gamma(shape, rate)            the link matrices of Macau
    τ      ~ gamma(a, rate a)                   a uniform over `ROW_PRECISION_SHAPES`

A link matrix L holds the coefficients of the regression of the rows on the features, one row per feature. Where the
features are indicators of the rated items (or of the raters), there are more features than rows. The prior of L is
invariant to rotations of the features, so `basis` rotates them, once and on the host, to orthogonal columns Z, which
are their principal components: Z'Z is diagonal, (Z'Z + λ I)^-1 is a division, and directions without variance are
dropped. The features are centered, which makes L and m independent given Λ.

The noise of a rating of item i by user j has precision alpha τ(i) τ(j): some users rate as their factors predict and
some at random, and nothing improves predictions on ml-100k more than knowing which. τ has mean 1; the larger a, the
closer every τ is to 1.

Sources: Salakhutdinov, Mnih 2008, Bayesian probabilistic matrix factorization using MCMC; Simm et al. 2015, Macau:
scalable Bayesian multi-relational factorization with side information using MCMC.
"""

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.bayes.distributions import Number, WishartDraw, gamma, unchecked_gamma, unchecked_wishart, wishart
from jaxrec.numerics import HIGHEST
from jaxrec.pytree import register_dataclass

__all__ = [
    "Basis",
    "Priors",
    "SideState",
    "WishartDraw",
    "basis",
    "check_priors",
    "draw",
    "draw_row_precision",
    "gamma",
    "prior_mean",
    "wishart",
]

# The grid of shapes a, from very different row precisions to nearly equal ones, and a log(a) - a - log Γ(a) of each.
ROW_PRECISION_SHAPES = np.geomspace(0.5, 200.0, 61)
LOG_NORMALIZER = (
    ROW_PRECISION_SHAPES * np.log(ROW_PRECISION_SHAPES)
    - ROW_PRECISION_SHAPES
    - np.array([math.lgamma(a) for a in ROW_PRECISION_SHAPES])
)


@register_dataclass
@dataclass(frozen=True)
class Priors:
    """Hyperparameters, all finite and > 0. They may be arrays, so that vmap runs a grid of them.

    Attributes:
        beta: β, how many rows the prior of m counts as, whose mean is 0.
        dof: ν - d, where a row has k = d + 1 coefficients.
        scale_matrix: s, the prior sum of squares of each coefficient.
        noise: (shape, rate) of the gamma prior of the noise precision alpha.
        strength: (shape, rate) of the gamma prior of every λ, the strength of the penalty of a link matrix; or a
            number, at which every λ is held fixed.
        cuts: standard deviation of the normals whose sorted values are the cuts of ordinal ratings.
        heteroscedastic: True: every row has its own τ. False: every τ is 1. Static.
    """

    beta: Number = 1.0
    dof: Number = 1.0
    scale_matrix: Number = 1.0
    noise: tuple[Number, Number] = (1.0, 1.0)
    strength: tuple[Number, Number] | Number = (1.0, 1.0)
    cuts: Number = 3.0
    heteroscedastic: bool = field(default=True, metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class Basis:
    """Principal components of one side's features f: coordinates = (f - center) @ rotation, with orthogonal columns.

    Attributes:
        coordinates: [n, r], z of every row, with r <= min(n - 1, F).
        squared_norms: [r], of the columns of the coordinates, descending.
        center: [F], means of the features.
        rotation: [F, r], orthonormal columns, also for rows that are added later.
    """

    coordinates: Array
    squared_norms: Array
    center: Array
    rotation: Array


@register_dataclass
@dataclass(frozen=True)
class SideState:
    """The current draw of one side's rows and of their prior.

    Attributes:
        rows: [n, k], (w, b) of every user or (x, c) of every item.
        mean: [k], m.
        precision: [k, k], Λ.
        row_precision: [n], τ of every row.
        row_precision_shape: [], a.
        link_matrices: [r, k] per group of features, L in the group's basis.
        strengths: [] per group, λ.
    """

    rows: Array
    mean: Array
    precision: Array
    row_precision: Array
    row_precision_shape: Array
    link_matrices: tuple[Array, ...] = ()
    strengths: tuple[Array, ...] = ()


def basis(features: ArrayLike, *, tol: float = 1e-9) -> Basis:
    """Centers and rotates features [n, F], by an eigendecomposition of F'F or FF' (the smaller) in float64 on the host.

    Args:
        features: finite. λ adapts to their common scale; their relative scales are the caller's choice.
        tol: directions with an eigenvalue below tol times the largest are dropped.

    Raises:
        ValueError: not a table of finite numbers; all rows are equal.

    >>> b = basis(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [1.0, 1.0, 2.0]]))
    >>> b.coordinates.shape, b.rotation.shape  # the third feature is constant, which m already covers
    ((3, 2), (3, 2))
    """
    f = np.asarray(features, np.float64)
    if f.ndim != 2 or not np.isfinite(f).all():
        raise ValueError(f"features: expected a table [rows, features] of finite numbers, got shape {f.shape}.")
    center = f.mean(axis=0)
    f = f - center
    wide = f.shape[1] > f.shape[0]
    squared_norms, vectors = np.linalg.eigh(f @ f.T if wide else f.T @ f)
    keep = np.flatnonzero(squared_norms > tol * max(squared_norms.max(initial=0), 1e-30))[::-1]
    if len(keep) == 0:
        raise ValueError(f"features: all {len(f)} rows are equal, so they carry no information. Leave the group out.")
    squared_norms, vectors = squared_norms[keep], vectors[:, keep]
    coordinates = vectors * np.sqrt(squared_norms) if wide else f @ vectors
    rotation = f.T @ (vectors / np.sqrt(squared_norms)) if wide else vectors
    return Basis(*(jnp.asarray(each, jnp.float32) for each in (coordinates, squared_norms, center, rotation)))


def prior_mean(side: SideState, bases: tuple[Basis, ...]) -> Float[Array, "n k"]:
    """Prior mean of every row: m + the sum over groups of L' z.

    Raises:
        ValueError: bases that do not fit the side's link matrices.
    """
    _check_bases(side, bases)
    return _prior_mean(side, bases)


@jax.jit
def _prior_mean(side: SideState, bases: tuple[Basis, ...]) -> Array:
    by_features = [
        jnp.matmul(b.coordinates, link, precision=HIGHEST) for b, link in zip(bases, side.link_matrices, strict=True)
    ]
    return sum(by_features, start=jnp.broadcast_to(side.mean, side.rows.shape))


def draw(side: SideState, bases: tuple[Basis, ...], priors: Priors, *, key: PRNGKeyArray) -> SideState:
    """Draws (Λ, m), then L and λ of each group, from their conditionals given the rows and all other parameters.

    With V the n rows and, per group, Z the features and L [r, k] the link matrix::

        U = V - sum over groups of Z L                      what the features leave unexplained; u: mean of its rows
        S = sum over the rows of U of (row - u) (row - u)'

        Λ ~ Wishart(ν + n + sum of r, (s I + S + β n / (β + n) u u' + sum over groups of λ L'L)^-1)
        m ~ normal(n / (β + n) u, ((β + n) Λ)^-1)

    The sums of r and λ L'L are there because the prior of L depends on Λ. Then, group by group, each with the newest
    draws of the others::

        E = V - m - sum over the other groups of Z L
        L ~ matrix normal((Z'Z + λ I)^-1 Z'E, (Z'Z + λ I)^-1, Λ^-1)
        λ ~ gamma(shape + r k / 2, rate + trace(L Λ L') / 2)

    Raises:
        ValueError: priors that are not finite and positive; bases that do not fit the side's link matrices.
    """
    check.random_key(key)
    check_priors(priors)
    _check_bases(side, bases)
    return _draw(side, bases, priors, key=key)


@jax.jit
def _draw(side: SideState, bases: tuple[Basis, ...], priors: Priors, *, key: PRNGKeyArray) -> SideState:
    n, k = side.rows.shape
    key_precision, key_mean, *keys = jax.random.split(key, 2 + 2 * len(bases))
    unexplained = side.rows - (_prior_mean(side, bases) - side.mean[None])  # U
    center, dtype = jnp.mean(unexplained, axis=0), unexplained.dtype
    dof = k - 1 + priors.dof + n
    scale_matrix = priors.scale_matrix * jnp.eye(k, dtype=dtype) + _gram(unexplained - center[None])
    scale_matrix = scale_matrix + priors.beta * n / (priors.beta + n) * center[:, None] * center[None, :]
    for link, strength in zip(side.link_matrices, side.strengths, strict=True):
        dof, scale_matrix = dof + len(link), scale_matrix + strength * _gram(link)
    precision, root = unchecked_wishart(dof, scale_matrix, key=key_precision)

    def noise(key: Array, *shape: int) -> Array:  # rows of covariance Λ^-1
        return jnp.matmul(jax.random.normal(key, (*shape, k), dtype), root.T, precision=HIGHEST)

    mean = n / (priors.beta + n) * center + noise(key_mean) / jnp.sqrt(priors.beta + n)

    links, strengths = list(side.link_matrices), list(side.strengths)
    residual = unexplained - mean[None]
    for g, b in enumerate(bases):
        residual = residual + jnp.matmul(b.coordinates, links[g], precision=HIGHEST)  # E: this group's part added back
        link_precision = (b.squared_norms + strengths[g])[:, None]  # the diagonal of Z'Z + λ I
        links[g] = jnp.matmul(b.coordinates.T, residual, precision=HIGHEST) / link_precision
        links[g] = links[g] + noise(keys[2 * g], len(b.squared_norms)) / jnp.sqrt(link_precision)
        residual = residual - jnp.matmul(b.coordinates, links[g], precision=HIGHEST)
        if isinstance(priors.strength, tuple):
            shape, rate = priors.strength
            trace = jnp.sum(jnp.matmul(links[g], precision, precision=HIGHEST) * links[g])
            strengths[g] = unchecked_gamma(shape + links[g].size / 2, rate + trace / 2, key=keys[2 * g + 1])
        else:
            strengths[g] = jnp.full_like(strengths[g], priors.strength)
    return replace(side, mean=mean, precision=precision, link_matrices=tuple(links), strengths=tuple(strengths))


def draw_row_precision(
    side: SideState, count: Shaped[ArrayLike, " n"], error: Shaped[ArrayLike, " n"], *, key: PRNGKeyArray
) -> SideState:
    """Draws every row's τ given a, then a given all τ.

    Args:
        side: the users' or the items' state.
        count: number of ratings of every row.
        error: sum of every row's squared errors, each weighted by the rating's precision without the factor τ.
        key: of the draw.

    Raises:
        ValueError: columns that do not have one entry per row.
    """
    check.random_key(key)
    check.same_shape(row_precision=side.row_precision, count=count, error=error)
    return _draw_row_precision(side, count, error, key=key)


@jax.jit
def _draw_row_precision(side: SideState, count: Array, error: Array, *, key: PRNGKeyArray) -> SideState:
    key_row_precision, key_shape = jax.random.split(key)
    a = side.row_precision_shape
    row_precision = unchecked_gamma(a + count / 2, a + error / 2, key=key_row_precision)
    row_precision = jnp.maximum(row_precision, jnp.finfo(a.dtype).tiny)  # above 0, because its logarithm is taken
    # The log density of every a in the grid, n a log(a) - n log Γ(a) + sum of a (log τ - τ), without large numbers.
    log_normalizer, shapes = (jnp.asarray(each, a.dtype) for each in (LOG_NORMALIZER, ROW_PRECISION_SHAPES))
    log_density = len(row_precision) * (log_normalizer + shapes * jnp.mean(jnp.log(row_precision) - row_precision + 1))
    return replace(
        side,
        row_precision=row_precision,
        row_precision_shape=shapes[jax.random.categorical(key_shape, log_density)],
    )


def check_priors(priors: Priors) -> None:
    """Checks that all priors are finite and positive; raises a ValueError otherwise. Traced values are not checked."""
    for name in ("beta", "dof", "scale_matrix", "noise", "strength", "cuts"):
        check.strength(f"priors.{name}", getattr(priors, name))


def _check_bases(side: SideState, bases: tuple[Basis, ...]) -> None:
    got = [b.coordinates.shape for b in bases]
    if got != (expected := [(len(side.rows), len(link)) for link in side.link_matrices]):
        raise ValueError(f"bases: expected coordinates of shapes {expected}, one for each link matrix, got {got}.")


def _gram(a: Float[Array, "n k"]) -> Float[Array, "k k"]:
    return jnp.matmul(a.T, a, precision=HIGHEST)
