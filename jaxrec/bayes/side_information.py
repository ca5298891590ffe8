r"""The prior of one side's rows with its own unknowns, and their conditional draws: half of a Gibbs sampler.

::

    row(i) ~ normal(m + sum over groups of L' z(i), Λ^-1)       z(i): the row's features, centered and rotated
    m | Λ  ~ normal(0, (β Λ)^-1)           Λ ~ Wishart(ν, (s I)^-1)            the Normal-Wishart of BPMF
    L | Λ  ~ matrix normal(0, λ^-1 I, Λ^-1)    λ ~ gamma(shape, rate)           the link matrices of Macau
    τ(i)   ~ gamma(a, rate a)              a: uniform over `ROW_PRECISION_SHAPES`     the row's own precision

A link matrix has one row per feature, which are more than there are rows where the features are the set of what was
rated. Its prior does not care how features are rotated, so `basis` turns them, once and on the host, to where they are
orthogonal: Z'Z is diagonal, every (Z'Z + λ I)^-1 a division, and directions that no row has are left out. They are
centered, which makes L and m independent given Λ.

A rating's noise has precision alpha τ(i) τ(j): some users rate as their factors say and some at random, and nothing
helps a prediction on ml-100k more than to know which. τ is 1 on average; the larger a, the more even.

Sources: Salakhutdinov, Mnih 2008, Bayesian probabilistic matrix factorization using MCMC; Simm et al. 2017, Macau:
scalable Bayesian factorization with high-dimensional side information using MCMC.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.kernels.cholesky import cholesky, solve_transposed
from jaxrec.solvers.checks import floats

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

HIGHEST = jax.lax.Precision.HIGHEST
Number = int | float | Array

# What a is drawn from: from ratings of very different sureness to nearly equal ones.
ROW_PRECISION_SHAPES = np.geomspace(0.5, 200.0, 61)
NORMALIZER = (
    ROW_PRECISION_SHAPES * np.log(ROW_PRECISION_SHAPES)
    - ROW_PRECISION_SHAPES
    - np.array([math.lgamma(a) for a in ROW_PRECISION_SHAPES])
)


@register_dataclass
@dataclass(frozen=True)
class Priors:
    """What the unknowns of the prior are drawn from; arrays, so that vmap makes a grid of them.

    All are finite and > 0.

    Attributes:
        beta: β, in rows' worth of knowledge that m is 0.
        dof: ν less d (k = d + 1 coefficients), > 0.
        scale_matrix: s, the squared rows that are known beforehand.
        noise: (shape, rate) of the noise precision's gamma.
        strength: (shape, rate) of every λ's gamma; or a number, and λ is that and is not drawn.
        cuts: the deviation of the normals that, put in order, are the cuts of ratings that are levels.
        heteroscedastic: whether every row has a τ of its own; otherwise all are 1. Static.
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
    """Features of one side's rows, centered and rotated to orthogonal columns: z = (f - center) @ rotation.

    Attributes:
        z: [n, r], r at most the number of rows less 1, and of features.
        square: [r], the columns' squared lengths, largest first.
        center: [F], the features' means.
        rotation: [F, r], orthonormal columns: for rows that come later.
    """

    z: Array
    square: Array
    center: Array
    rotation: Array


@register_dataclass
@dataclass(frozen=True)
class SideState:
    """One side's rows, and what its prior is now.

    Attributes:
        rows: [n, k], (w, b) of every user or (x, c) of every item.
        mean: [k], m.
        precision: [k, k], Λ.
        row_precision: [n], τ.
        row_precision_shape: [], a.
        links: [r, k] for every group of features, L in the group's basis.
        strengths: [], λ for every group.
    """

    rows: Array
    mean: Array
    precision: Array
    row_precision: Array
    row_precision_shape: Array
    links: tuple[Array, ...] = ()
    strengths: tuple[Array, ...] = ()


def basis(features: np.ndarray, *, tol: float = 1e-9) -> Basis:
    """Features [n, F] as a Basis, by an eigendecomposition of the smaller of F'F and FF' in float64, on the host.

    Args:
        features: finite. Their common scale is λ's to find; their scales beside each other are yours to choose.
        tol: directions with less than this share of the largest eigenvalue are left out.

    Raises:
        ValueError: not a table of finite numbers; all rows are equal.

    >>> b = basis(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [1.0, 1.0, 2.0]]))
    >>> b.z.shape, b.rotation.shape  # the third feature is constant: nothing that m does not say
    ((3, 2), (3, 2))
    """
    f = np.asarray(features, np.float64)
    if f.ndim != 2 or not np.isfinite(f).all():
        raise ValueError(f"features: expected a table [rows, features] of finite numbers, got shape {f.shape}.")
    center = f.mean(axis=0)
    f = f - center
    wide = f.shape[1] > f.shape[0]
    square, vectors = np.linalg.eigh(f @ f.T if wide else f.T @ f)
    keep = np.flatnonzero(square > tol * max(square.max(initial=0), 1e-30))[::-1]
    if len(keep) == 0:
        raise ValueError(f"features: all {len(f)} rows are equal, so they say nothing. Leave the group out.")
    square, vectors = square[keep], vectors[:, keep]
    z = vectors * np.sqrt(square) if wide else f @ vectors
    rotation = f.T @ (vectors / np.sqrt(square)) if wide else vectors
    return Basis(*(jnp.asarray(each, jnp.float32) for each in (z, square, center, rotation)))


def prior_mean(level: SideState, bases: tuple[Basis, ...]) -> Float[Array, "n k"]:
    """M + the sum over groups of L' z(i), of every row.

    Raises:
        ValueError: features that the level's links do not fit.
    """
    _check_bases(level, bases)
    return _prior_mean(level, bases)


@jax.jit
def _prior_mean(level: SideState, bases: tuple[Basis, ...]) -> Array:
    linked = [jnp.matmul(b.z, link, precision=HIGHEST) for b, link in zip(bases, level.links, strict=True)]
    return sum(linked, start=jnp.broadcast_to(level.mean, level.rows.shape))


def draw(level: SideState, bases: tuple[Basis, ...], priors: Priors, *, key: PRNGKeyArray) -> SideState:
    """(Λ, m), then every L and its λ, each from its conditional given the rows and all the others.

    Raises:
        ValueError: priors that are not finite and positive; features that the level's links do not fit.
    """
    check_priors(priors)
    _check_bases(level, bases)
    return _draw(level, bases, priors, key=key)


@jax.jit
def _draw(level: SideState, bases: tuple[Basis, ...], priors: Priors, *, key: PRNGKeyArray) -> SideState:
    n, k = level.rows.shape
    key_precision, key_mean, *keys = jax.random.split(key, 2 + 2 * len(bases))
    own = level.rows - (_prior_mean(level, bases) - level.mean[None])  # what the links do not explain
    center = jnp.mean(own, axis=0)
    dof, scale_matrix = (
        k - 1 + priors.dof + n,
        priors.scale_matrix * jnp.eye(k, dtype=own.dtype) + _square(own - center[None]),
    )
    scale_matrix = scale_matrix + priors.beta * n / (priors.beta + n) * center[:, None] * center[None, :]
    for link, strength in zip(level.links, level.strengths, strict=True):  # for the prior of L has Λ in it
        dof, scale_matrix = dof + len(link), scale_matrix + strength * _square(link)
    precision, root = _wishart(key_precision, dof, scale_matrix)
    noise = lambda key, *shape: jnp.matmul(jax.random.normal(key, (*shape, k), own.dtype), root.T, precision=HIGHEST)
    mean = n / (priors.beta + n) * center + noise(key_mean) / jnp.sqrt(priors.beta + n)

    links, strengths = list(level.links), list(level.strengths)
    residual = own - mean[None]
    for g, b in enumerate(bases):
        residual = residual + jnp.matmul(b.z, links[g], precision=HIGHEST)  # all but this group's
        sharpness = (b.square + strengths[g])[:, None]
        links[g] = jnp.matmul(b.z.T, residual, precision=HIGHEST) / sharpness
        links[g] = links[g] + noise(keys[2 * g], len(b.square)) / jnp.sqrt(sharpness)
        residual = residual - jnp.matmul(b.z, links[g], precision=HIGHEST)
        if isinstance(priors.strength, tuple):
            shape, rate = priors.strength
            size = jnp.sum(jnp.matmul(links[g], precision, precision=HIGHEST) * links[g])
            strengths[g] = _gamma(keys[2 * g + 1], shape + links[g].size / 2, rate + size / 2)
        else:
            strengths[g] = jnp.full_like(strengths[g], priors.strength)
    return replace(level, mean=mean, precision=precision, links=tuple(links), strengths=tuple(strengths))


def draw_row_precision(
    level: SideState, count: Shaped[ArrayLike, " n"], error: Shaped[ArrayLike, " n"], *, key: PRNGKeyArray
) -> SideState:
    """Every τ given a, then a given every τ.

    Args:
        level: the side.
        count: how many ratings a row has.
        error: their squared errors, each times all that the rating's precision has beside τ.
        key: of the draw.

    Raises:
        ValueError: columns of other lengths than the side's rows.
    """
    check.same_shape(row_precision=level.row_precision, count=count, error=error)
    return _draw_sureness(level, count, error, key=key)


@jax.jit
def _draw_sureness(level: SideState, count: Array, error: Array, *, key: PRNGKeyArray) -> SideState:
    key_row_precision, key_shape = jax.random.split(key)
    a = level.row_precision_shape
    # above 0, for its logarithm
    row_precision = jnp.maximum(_gamma(key_row_precision, a + count / 2, a + error / 2), jnp.finfo(a.dtype).tiny)
    # The log density of every candidate, n a log(a) - n log Γ(a) + sum of a (log τ - τ), without large numbers.
    normalizer, candidates = (jnp.asarray(each, a.dtype) for each in (NORMALIZER, ROW_PRECISION_SHAPES))
    log_density = len(row_precision) * (normalizer + candidates * jnp.mean(jnp.log(row_precision) - row_precision + 1))
    return replace(
        level,
        row_precision=row_precision,
        row_precision_shape=candidates[jax.random.categorical(key_shape, log_density)],
    )


class WishartDraw(NamedTuple):
    """A draw from a Wishart distribution.

    Attributes:
        precision: [k, k], Λ.
        root: [k, k], R with R R' = Λ^-1.
    """

    precision: Array
    root: Array


def wishart(dof: Number, scale_matrix: Float[ArrayLike, "k k"], *, key: PRNGKeyArray) -> WishartDraw:
    """(Λ ~ Wishart(dof, scatter^-1), a root R of its inverse: R R' = Λ^-1), by Bartlett's decomposition.

    With scatter = K K' and A lower triangular, normal below a diagonal of roots of chi-squares of dof, dof - 1, ..,
    Λ = (K'^-1 A) (K'^-1 A)' and R = K A'^-1. dof > k - 1; the mean of Λ is dof scatter^-1.

    Raises:
        ValueError: a scatter that is no square matrix; degrees of freedom that are too few.

    Source: Bartlett 1934, The vector representation of a sample.
    """
    if np.ndim(scale_matrix) != 2 or np.shape(scale_matrix)[0] != np.shape(scale_matrix)[1]:
        raise ValueError(f"scale_matrix: expected a square matrix, got shape {np.shape(scale_matrix)}.")
    if not check.traced(dof) and not np.shape(scale_matrix)[0] - 1 < float(dof) < np.inf:
        raise ValueError(
            f"dof: expected a finite number > {np.shape(scale_matrix)[0] - 1}, the matrix' size less 1, got {dof}."
        )
    return WishartDraw(*_wishart(key, dof, jnp.asarray(scale_matrix)))


@jax.jit
def _wishart(key: PRNGKeyArray, dof: Number, scale_matrix: Array) -> tuple[Array, Array]:
    k = len(scale_matrix)
    key_below, key_diagonal = jax.random.split(key)
    dtype = scale_matrix.dtype
    chi_square = 2 * _gamma(key_diagonal, (dof - jnp.arange(k, dtype=dtype)) / 2, 1.0)
    chi_square = jnp.maximum(chi_square, jnp.finfo(dtype).tiny)  # of few degrees of freedom some draws are 0
    a = jnp.tril(jax.random.normal(key_below, (k, k), dtype), -1) + jnp.diag(jnp.sqrt(chi_square))
    # rounding can take what a small scatter adds to rows that lie in a plane
    lower = cholesky(scale_matrix + jnp.diag(2 * k * jnp.finfo(dtype).eps * jnp.diagonal(scale_matrix)))
    transposed_solve = lambda lower, columns: solve_transposed(jnp.broadcast_to(lower, (k, k, k)), columns.T).T
    half = transposed_solve(lower, a)
    root = jnp.matmul(lower, transposed_solve(a, jnp.eye(k, dtype=dtype)), precision=HIGHEST)
    return jnp.matmul(half, half.T, precision=HIGHEST), root


def gamma(shape: Number, rate: Number, *, key: PRNGKeyArray) -> Array:
    """A draw of mean shape / rate.

    Raises:
        ValueError: a shape or rate that is not finite and positive.
    """
    check.strength("shape", shape)
    check.strength("rate", rate)
    shape, rate = floats(shape, rate)
    return _gamma(key, shape, rate)


@jax.jit
def _gamma(key: PRNGKeyArray, shape: Number, rate: Number) -> Array:
    shape = jnp.asarray(shape)
    return jax.random.gamma(key, shape, dtype=shape.dtype) / rate


def check_priors(priors: Priors) -> None:
    """All of them finite and positive, where they are concrete; raises a ValueError otherwise."""
    for name in ("beta", "dof", "scale_matrix", "noise", "strength", "cuts"):
        check.strength(f"priors.{name}", getattr(priors, name))


def _check_bases(level: SideState, bases: tuple[Basis, ...]) -> None:
    got = [b.z.shape for b in bases]
    if got != (expected := [(len(level.rows), len(link)) for link in level.links]):
        raise ValueError(f"bases: expected features of shapes {expected}, one for each of the links, got {got}.")


def _square(a: Float[Array, "n k"]) -> Float[Array, "k k"]:
    return jnp.matmul(a.T, a, precision=HIGHEST)
