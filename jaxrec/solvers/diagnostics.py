"""Have the chains met, and how many independent draws are theirs worth? Host functions of traces [sweeps, chains].

>>> draws = np.random.default_rng(0).normal(size=(500, 4))
>>> bool(r_hat(draws) < 1.01), bool(ess(draws) > 1500), bool(r_hat(draws + [0, 0, 0, 1]) > 1.1)
(True, True, True)
"""

import numpy as np
from scipy.stats import norm, rankdata

__all__ = ["ess", "r_hat"]


def r_hat(draws: np.ndarray) -> float:
    """How much wider all chains are together than each alone, 1 if they tell the same: below 1.01 is well.

    The larger of rank-normalized split R-hats of the draws and of their distances from the median (for chains of one
    center and other spreads). With half chains of n draws, W their mean variance and B / n the variance of their means:

        sqrt(((n - 1) / n W + B / n) / W)

    Args:
        draws: [sweeps, chains] of one number, after burn-in.

    Raises:
        ValueError: fewer than 4 sweeps, or not finite.

    Source: Vehtari et al. 2021, Rank-normalization, folding, and localization: an improved R-hat.
    """
    halves = _halves(draws)
    return max(_plain_r_hat(_normalized(each)) for each in (halves, np.abs(halves - np.median(halves))))


def ess(draws: np.ndarray) -> float:
    """How many independent draws say as much of the center (bulk effective sample size).

    draws / (1 + 2 sum of ρ(t)), ρ the autocorrelations of all chains together, rank-normalized and split, summed in
    pairs for as long as these are positive, and no pair counted as more than the one before it (Geyer).

    Args:
        draws: as in `r_hat`.

    Raises:
        ValueError: as `r_hat`.

    Source: Vehtari et al. 2021.
    """
    z = _normalized(_halves(draws))
    n, chains = z.shape
    within, plus = _variances(z)
    spectrum = np.fft.rfft(z - z.mean(axis=0), 2 * n, axis=0)  # padded: no wrapping around
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:n].mean(axis=1) / (n - 1)
    rho = 1 - (within - covariance) / plus if plus > 0 else np.ones(n)
    rho[0] = 1
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    first = np.argmax(pairs < 0) if (pairs < 0).any() else len(pairs)
    time = 2 * np.minimum.accumulate(pairs[:first]).sum() - 1
    return float(n * chains / max(time, 1 / np.log10(n * chains)))


def _halves(draws: np.ndarray) -> np.ndarray:
    draws = np.asarray(draws, np.float64)
    if draws.ndim != 2 or len(draws) < 4 or not np.isfinite(draws).all():
        raise ValueError(f"draws: expected finite numbers [sweeps >= 4, chains], got shape {draws.shape}.")
    n = len(draws) // 2
    return np.concatenate([draws[:n], draws[-n:]], axis=1)


def _normalized(draws: np.ndarray) -> np.ndarray:
    return norm.ppf((rankdata(draws).reshape(draws.shape) - 3 / 8) / (draws.size + 1 / 4))


def _variances(draws: np.ndarray) -> tuple[float, float]:
    """(W, (n - 1) / n W + B / n)."""
    n = len(draws)
    within = float(draws.var(axis=0, ddof=1).mean())
    return within, (n - 1) / n * within + float(draws.mean(axis=0).var(ddof=1))


def _plain_r_hat(draws: np.ndarray) -> float:
    within, plus = _variances(draws)
    return float(np.sqrt(plus / within)) if within > 0 else 1.0 if plus == 0 else np.inf
