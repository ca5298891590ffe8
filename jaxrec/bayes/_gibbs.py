r"""Bayesian matrix factorization with side information by Gibbs sampling: posterior draws instead of a point estimate.

The model of the rating of item i by user j, with a hierarchical prior for the rows of each side (`side_information`);
`model` lists all unknowns::

    y(i,j) ~ normal(mu + w(j) . x(i) + b(j) + c(i), 1 / (alpha τ(i) τ(j)))        alpha ~ gamma

Given the items, a user's (w, b) are the coefficients of a regression of y - c - mu on (x, 1), with weights
alpha τ(i) τ(j) and a normal prior. Their posterior is that of `solvers.ridge` with a matrix as penalty, and is sampled
exactly, for all users at once. An item's (x, c) regress y - b - mu on (w, 1) likewise. A sweep (`_gibbs_sweep`) draws
τ, prior and rows of each side, then alpha. A predicted rating is the mean over sweeps of predictions clipped to the
rating scale; the variance of predictions over sweeps, plus the noise variance, is its uncertainty.

With ordinal ratings (`ordinal`), the model describes a latent z, and cuts divide its range into levels. alpha is 1,
because the cuts set the unit of z.

Sources: Salakhutdinov, Mnih 2008, Bayesian probabilistic matrix factorization using MCMC; Simm et al. 2015, Macau:
scalable Bayesian multi-relational factorization with side information using MCMC; Albert, Chib 1993, Bayesian analysis
of binary and polychotomous response data.

>>> from jaxrec import data
>>> ratings = data.synthetic.low_rank(50, 40, 900, rng=0).ratings
>>> train, test = data.splits.random(ratings, test_fraction=0.2, rng=0)
>>> options = {"rank": 2, "chains": 2, "burn_in": 20, "sweeps": 60, "progress": False}
>>> state, posterior, _ = gibbs(train, test, key=jax.random.key(1), **options)
>>> posterior.mean.shape, pool_chains(posterior).mean.shape, int(state.step[0])  # two chains, and pooled
((2, 180), (180,), 60)
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from jaxrec import check
from jaxrec.bayes._gibbs_sweep import run_sweeps
from jaxrec.bayes.model import (
    Bases,
    ChainState,
    Features,
    as_bases,
    check_bases,
    check_mu,
    check_ratings,
    check_state,
    init_chains,
)
from jaxrec.bayes.posterior import Posterior, pool_chains
from jaxrec.bayes.row_posterior import TrainRatings
from jaxrec.bayes.side_information import Priors, check_priors
from jaxrec.checkpoints import Checkpoint, checkpointed
from jaxrec.data import layouts
from jaxrec.ratings import check_same_ids
from jaxrec.solvers.common import mean_rating
from jaxrec.types import Dense, Ratings

__all__ = ["GibbsResult", "gibbs"]

# Up to this many cells, products with a masked dense matrix are faster than padded lists of ratings.
DENSE_CELLS = 4_000_000


class GibbsResult(NamedTuple):
    """Result of a run of the sampler.

    Attributes:
        state: last state of the chains; `gibbs(..., init=state, posterior=posterior)` continues from it.
        posterior: of the test pairs, for each chain.
        trace: [sweeps of this call, chains], the noise's standard deviation. For ordinal ratings, the square root of
            the test pairs' mean noise variance.
    """

    state: ChainState
    posterior: Posterior
    trace: np.ndarray


def gibbs(
    train: Ratings | TrainRatings,
    test: Ratings | None = None,
    *,
    key: PRNGKeyArray,
    sweeps: int,
    burn_in: int,
    rank: int | None = None,
    init: ChainState | None = None,
    chains: int | None = None,
    levels: Sequence[float] | np.ndarray | None = None,
    mu: float | None = None,
    scale: tuple[float, float] | None = None,
    features: Features = (None, None),
    priors: Priors = Priors(),  # noqa: B008 (it is frozen)
    posterior: Posterior | None = None,
    sweeps_per_call: int = 20,
    callback: Callable[[int, ChainState, Posterior], bool | None] | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> GibbsResult:
    """Runs all chains until each has completed `sweeps` sweeps, and averages predictions over those after `burn_in`.

    The key of a sweep depends only on its number, so a run continued from a saved state and posterior is identical bit
    for bit.

    Args:
        train: the ratings to learn from, without weights. Or, prepared once for several calls or laid out over devices,
            Dense or a pair (Rows of side 'user', Rows of side 'item'). For ordinal ratings, a latent is drawn for every
            cell of Dense, so Rows are faster for sparse ratings.
        test: the pairs to predict; None: none. Their ratings are only used for the RMSE in the progress bar.
        key: of the whole run.
        sweeps: total number, including those of earlier calls.
        burn_in: how many of them, the first, are not averaged.
        rank: number of factors of each user and item. The chains start from `init_chains`.
        init: instead of `rank`, the state of the chains from `init_chains` or from an earlier call.
        chains: number of chains, with `rank` only; None: 1.
        levels: as in `init_chains`, with `rank` only: None for normal noise, or the possible ratings.
        mu: the mean rating; None: the mean of train's ratings, or 0 for ordinal ratings.
        scale: the rating scale (lowest, highest), to which predictions are clipped, as `Dataset.scale`; None: no
            clipping.
        features: (user features, item features). Each is a table [rows, features], with the row of train's user or
            item at each position; or several tables, each with its own link matrix and strength; or None. A table is
            decomposed in every call: where it is used again, as with `init`, pass its `basis`, which does that once.
        priors: hyperparameters.
        posterior: from an earlier call, to continue.
        sweeps_per_call: sweeps per compiled call, between two updates of the progress bar.
        callback: callback(step, state, posterior) after every compiled call, with step the number of completed sweeps.
            Return True to stop.
        checkpoint: a folder, or a `Checkpoint`, where the chains are saved after some compiled calls. The same call
            continues from there after the process was killed; on a CPU with the same bits as without the interruption.
            `sweeps` may grow; any other data or settings are refused. The callback is not called again for sweeps made
            before: what it collected is lost with its process.
        progress: show a progress bar: the RMSE so far, and the mean, R-hat and effective sample size of the noise's
            standard deviation.

    Raises:
        ValueError: neither or both of `rank` and `init`, or `chains` or `levels` with `init`; ratings of other sizes
            than the state, with weights, or not among its levels; a state with parts of inconsistent shapes; features
            that are not finite or of another number of rows, or others than the state was initialized with; priors that
            are not finite and positive; test pairs out of range, or other pairs than the posterior's; a scale that is
            not an interval; burn_in not in [0, sweeps); sweeps_per_call < 1; a checkpoint of another run.
        FloatingPointError: a chain is no longer finite.
        ImportError: with progress, without ArviZ (pip install 'jaxrec[bayes]').
    """
    check.random_key(key)
    if progress:
        _check_arviz()
    bases = as_bases(features)
    state = _initial_state(train, rank, init, chains, levels, bases, key)
    ratings = _layout(train, state) if isinstance(train, Ratings) else train
    n_chains = len(state.alpha) if np.ndim(state.alpha) == 1 else 0
    sizes = state.users.rows.shape[-2], state.items.rows.shape[-2]
    empty = np.zeros(0)
    test = Ratings(empty.astype(np.int32), empty.astype(np.int32), empty, *sizes) if test is None else test
    _check(ratings, state, test, bases, sweeps, burn_in, sweeps_per_call)
    if isinstance(train, Ratings):
        check_same_ids(train, test)
    check_priors(priors)
    if mu is None:
        mu = mean_rating(train) if state.levels is None else 0.0
    check_mu(mu)
    if scale is not None and not (len(scale) == 2 and scale[0] < scale[1]):
        raise ValueError(f"scale: expected (lowest, highest), got {scale}.")
    n = len(test)
    if posterior is None:
        zero, per_pair = jnp.zeros(n_chains, state.alpha.dtype), jnp.zeros((n_chains, n), state.alpha.dtype)
        posterior = Posterior(zero, per_pair, per_pair, per_pair, per_pair)
    moments = (posterior.mean, posterior.center, posterior.variance, posterior.noise_variance)
    if any(moment.shape != (n_chains, n) for moment in moments) or posterior.count.shape != (n_chains,):
        raise ValueError(f"posterior: expected {n_chains} chains of {n} pairs, got shape {posterior.mean.shape}.")
    if not isinstance(ratings, Dense):
        state, posterior = ratings[0].replicate((state, posterior))
    pairs, y = (jnp.asarray(test.user), jnp.asarray(test.item)), np.asarray(test.value)
    if int(state.step[0]) >= sweeps:
        raise ValueError(
            f"sweeps: expected more than the {int(state.step[0])} that `init` has made (they count), got {sweeps}."
        )
    options: dict[str, Any] = {"mu": mu, "bases": bases, "priors": priors, "burn_in": burn_in, "scale": scale}
    settings: dict[str, Any] = {
        "run": "gibbs",
        "train": ratings,
        "test": pairs,
        "key": key,
        "sweeps_per_call": sweeps_per_call,
    }
    settings |= {"init (or rank, chains, levels)": state, "posterior": posterior} | options
    with checkpointed(checkpoint, settings=settings, like=(state, posterior)) as run:
        trace, ended = [np.zeros((0, n_chains), state.alpha.dtype)], False
        if run.saved is not None:
            (state, posterior), ended = run.saved.state, run.saved.meta["ended"]
            trace.append(np.asarray(run.saved.meta["trace"], state.alpha.dtype).reshape(-1, n_chains))
        keys, completed = jax.random.split(key, n_chains), int(state.step[0])
        if completed > sweeps:
            raise ValueError(
                f"sweeps: expected at least the {completed} that the checkpoint has made (they count), got {sweeps}."
            )
        with tqdm(total=sweeps, initial=completed, desc="gibbs", unit="sweep", disable=not progress) as bar:
            while completed < sweeps and not ended:
                steps = min(sweeps_per_call, sweeps - completed)
                state, posterior, sigma = run_sweeps(state, posterior, ratings, pairs, keys, steps=steps, **options)
                trace.append(np.asarray(sigma).T)
                completed += steps
                if not np.isfinite(trace[-1]).all():
                    raise FloatingPointError(
                        f"sweep {completed}: a chain is no longer finite. Run in float64, or raise priors.scale_matrix."
                    )
                if completed > burn_in and progress:
                    bar.set_postfix(**_summary(trace, posterior, y, completed - burn_in))
                bar.update(steps)
                ended = bool(callback is not None and callback(completed, state, posterior))
                if ended or completed == sweeps or run.due(completed):
                    draws = np.concatenate(trace).tolist()
                    run.save(completed, (state, posterior), {"trace": draws, "ended": ended})
    return GibbsResult(state, posterior, np.concatenate(trace))


def _summary(trace: list[np.ndarray], posterior: Posterior, y: np.ndarray, n_draws: int) -> dict[str, str]:
    """What the progress bar shows: the RMSE so far, the noise, and how well the chains mix."""
    summary = {"noise": f"{trace[-1][-1].mean():.3f}"} | _diagnostics(trace, n_draws)
    if not len(y):
        return summary
    error = np.asarray(pool_chains(posterior).mean) - y
    return {"rmse": f"{float(np.sqrt(np.mean(error**2))):.4f}"} | summary


def _initial_state(
    train: Ratings | TrainRatings,
    rank: int | None,
    init: ChainState | None,
    chains: int | None,
    levels: Sequence[float] | np.ndarray | None,
    bases: Bases,
    key: PRNGKeyArray,
) -> ChainState:
    """Returns `init`, or new chains of this rank where it is None."""
    if (init is None) == (rank is None):
        raise ValueError(
            "expected either rank=, for chains with random rows, or init=, a state from `init_chains` or an earlier "
            f"call, got {'neither' if init is None else 'both'}."
        )
    if init is not None:
        if chains is not None or levels is not None:
            raise ValueError("chains, levels: already part of init=. Drop them, or pass rank= instead of init=.")
        return init
    assert rank is not None
    if isinstance(train, Ratings):
        sizes = train.n_users, train.n_items
    elif isinstance(train, Dense):
        sizes = np.shape(train.value)[1], np.shape(train.value)[0]
    else:
        sizes = len(train[0].position), train[0].n_others
    # The keys of the sweeps are fold_in(split(key), step): this key is not one of them.
    key = jax.random.fold_in(key, jnp.uint32(2**32 - 1))
    return init_chains(*sizes, rank, key=key, chains=1 if chains is None else chains, features=bases, levels=levels)


def _layout(train: Ratings, state: ChainState) -> TrainRatings:
    """Returns Dense if it is small and no latent is drawn for every cell, otherwise Rows."""
    if train.n_users * train.n_items <= DENSE_CELLS and state.levels is None:
        return layouts.dense(train)
    return layouts.rows(train, "user"), layouts.rows(train, "item")


def _check_arviz() -> None:
    """Raises an ImportError that names the extra, before the first sweep and not after it."""
    if importlib.util.find_spec("arviz_stats") is None:
        raise ImportError(
            "the progress bar shows R-hat and the effective sample size by ArviZ: pip install 'jaxrec[bayes]', or pass "
            "progress=False."
        )


def _diagnostics(trace: list[np.ndarray], n_draws: int) -> dict[str, str]:
    """R-hat and effective sample size of the noise's last n_draws, by ArviZ; empty for fewer than 4 draws."""
    draws = np.concatenate(trace)[-n_draws:]
    if len(draws) < 4:
        return {}
    from arviz_stats.base import array_stats  # takes a second to import, and only the progress bar needs it

    axes = {"chain_axis": 1, "draw_axis": 0}
    r_hat = {"r_hat": f"{float(array_stats.rhat(draws, **axes)):.2f}"} if draws.shape[1] > 1 else {}
    return r_hat | {"ess": f"{float(array_stats.ess(draws, **axes)):.0f}"}


def _check(
    ratings: TrainRatings,
    state: ChainState,
    test: Ratings,
    bases: Bases,
    sweeps: int,
    burn_in: int,
    sweeps_per_call: int,
) -> None:
    if state.alpha.ndim != 1:
        raise ValueError(
            f"state: expected a leading axis of chains, got alpha of shape {state.alpha.shape}. See `init_chains`."
        )
    sizes = state.users.rows.shape[1], state.items.rows.shape[1]
    if any(jnp.shape(leaf)[:1] != state.alpha.shape for leaf in jax.tree.leaves(state)):
        raise ValueError(f"state: expected {len(state.alpha)} chains in every array, as in alpha. See `init_chains`.")
    check_state(state)
    check_ratings(ratings, state)
    check_bases(state, bases)
    if (test.n_users, test.n_items) != sizes:
        raise ValueError(
            f"test: expected {sizes} users and items, got {(test.n_users, test.n_items)}. Use train's tables: "
            "test.reindexed(user_ids=train.user_ids, item_ids=train.item_ids)."
        )
    if not 0 <= burn_in < sweeps:
        raise ValueError(f"burn_in: expected a number in [0, sweeps), got {burn_in} of {sweeps}.")
    if sweeps_per_call < 1:
        raise ValueError(f"sweeps_per_call: expected at least 1, got {sweeps_per_call}.")
