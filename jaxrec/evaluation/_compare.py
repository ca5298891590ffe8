"""Comparison of models by the metrics of the same users: how large a difference is, and whether it may be chance.

With d(j) = metric of user j by a - by b, n users with a value, mean D and standard deviation S::

    difference        D
    low, high         quantiles of the means of resampled d (bootstrap over users)
    effect size       D / S, how many standard deviations of users the difference is (Cohen's d)
    p                 share of random signs s(j) with |mean of s(j) d(j)| >= |D| (paired randomization test)
    p_t, p_wilcoxon   of the paired t test and the signed-rank test (SciPy)

Sources: Efron and Tibshirani 1993, An introduction to the bootstrap; Smucker, Allan and Carterette 2007, A comparison
of statistical significance tests for information retrieval evaluation; Holm 1979, A simple sequentially rejective
multiple test procedure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.evaluation._resampling import bootstrap_means, sign_flip_means
from jaxrec.evaluation._result import Evaluation

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Comparison", "Comparisons", "compare", "compare_all"]


@dataclass(frozen=True)
class Comparison:
    """The difference of two models in one metric; printed, one line, the effect before the p values.

    Attributes:
        metric: its name.
        n_users: users with a value by both.
        mean_a: the mean of a over them.
        mean_b: the mean of b over them.
        difference: mean_a - mean_b.
        low: the lower end of the difference's interval.
        high: the upper end.
        level: the interval's level.
        effect_size: difference / standard deviation of the users' differences; 0 if all are 0.
        p: of the randomization test, two-sided.
        p_t: of the paired t test, two-sided.
        p_wilcoxon: of Wilcoxon's signed-rank test, two-sided.
        n_runs: seeds or folds over which each user's values were averaged.
        run_deviation: the standard deviation over runs of the difference in a run; NaN with one.
    """

    metric: str
    n_users: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    level: float
    effect_size: float
    p: float
    p_t: float
    p_wilcoxon: float
    n_runs: int
    run_deviation: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.metric}: {self.mean_a:.4f} - {self.mean_b:.4f} = {self.difference:+.4f} "
            f"[{self.low:+.4f}, {self.high:+.4f}], effect size {self.effect_size:+.2f}, p = {self.p:.2g} "
            f"({self.n_users} users)"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: None where there is no number."""
        is_nan = lambda value: isinstance(value, float) and math.isnan(value)
        return {name: None if is_nan(value) else value for name, value in asdict(self).items()}


def compare(
    a: Evaluation | Sequence[Evaluation],
    b: Evaluation | Sequence[Evaluation],
    *,
    metric: str = "ndcg@10",
    level: float = 0.95,
    resamples: int = 10_000,
    rng: int = 0,
) -> Comparison:
    """Compares two models by the paired metrics of the same users. See the formulas of this module.

    Args:
        a: the evaluation of one model; or one per seed or fold, whose values are averaged per user (a user without a
            value in a fold is averaged over the others), because runs of one user are no independent users.
        b: of the other, of the same users and, run by run, of the same data.
        metric: the name, such as "ndcg@10".
        level: of the interval.
        resamples: bootstrap resamples, and sign flips of the randomization test; p is at least 1 / (resamples + 1).
        rng: the seed of both.

    Raises:
        ValueError: evaluations of different users, of different protocols, or of different numbers of runs; an unknown
            metric; fewer than two users with values by both; a level outside (0, 1).

    >>> values, gain = np.float32([0.2, 0.4, 0.1, 0.5, 0.3, 0.0]), np.float32([0.1, 0, 0.2, 0.1, 0, 0.1])
    >>> a, b = (Evaluation({"ndcg@10": v}, n_users=6, left_out={}, protocol={}) for v in (values + gain, values))
    >>> print(compare(a, b))
    ndcg@10: 0.3333 - 0.2500 = +0.0833 [+0.0333, +0.1333], effect size +1.11, p = 0.13 (6 users)
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), such as 0.95, got {level}.")
    check.whole_number("resamples", resamples, least=1)
    runs_a, runs_b = _values(a, metric), _values(b, metric)
    _check_same(a, b, runs_a, runs_b)
    per_run = runs_a - runs_b  # [runs, users], NaN where either has no value
    with_value = ~np.isnan(per_run).all(axis=0)
    n_users = int(with_value.sum())
    if n_users < 2:
        raise ValueError(f"{metric}: expected at least two users with a value by both, got {n_users}.")
    both = np.isnan(per_run)
    mean_of = lambda runs: np.nanmean(np.where(both, np.nan, runs)[:, with_value], axis=0)
    d = mean_of(per_run)
    difference, deviation = float(d.mean()), float(d.std(ddof=1))
    d32, (draw_key, sign_key) = jnp.asarray(d, jnp.float32), jax.random.split(jax.random.key(rng))
    resampled = bootstrap_means(d32, draw_key, resamples=resamples)
    flipped = sign_flip_means(d32, sign_key, resamples=resamples)
    low, high = np.quantile(np.asarray(resampled, np.float64), [(1 - level) / 2, (1 + level) / 2])
    # The sum's own rounding must not make an equal sum smaller: the observed signs count among the random ones.
    as_large = np.abs(np.asarray(flipped, np.float64)) >= abs(difference) - 1e-6 * np.abs(d).mean()
    p_t, p_wilcoxon = _tests(d)
    run_means = [float(np.nanmean(run)) for run in per_run]
    return Comparison(
        metric=metric,
        n_users=n_users,
        mean_a=float(mean_of(runs_a).mean()),
        mean_b=float(mean_of(runs_b).mean()),
        difference=difference,
        low=float(low),
        high=float(high),
        level=level,
        effect_size=_effect_size(difference, deviation),
        p=float((1 + as_large.sum()) / (1 + resamples)),
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
        n_runs=len(per_run),
        run_deviation=float(np.std(run_means, ddof=1)) if len(run_means) > 1 else math.nan,
    )


@dataclass(frozen=True, repr=False)
class Comparisons:
    """Comparisons of several models with one baseline, their p values corrected for their number; printed, a table.

    Attributes:
        models: the compared model of each comparison.
        comparisons: the comparisons, each of a model (a) with the baseline (b).
        p_corrected: p of each by Holm's correction over all of them.
        baseline: the model that all are compared with.
    """

    models: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    p_corrected: tuple[float, ...]
    baseline: str

    def __repr__(self) -> str:
        """A table: model, metric, difference with its interval, effect size, corrected p."""
        width = max(map(len, ("model", *self.models)))
        metric = max(map(len, ("metric", *(each.metric for each in self.comparisons))))
        lines = [f"{'model':<{width}}  {'metric':<{metric}}  difference  interval            effect size  p (Holm)"]
        for name, each, p in zip(self.models, self.comparisons, self.p_corrected, strict=True):
            interval = f"[{each.low:+.4f}, {each.high:+.4f}]"
            lines.append(
                f"{name:<{width}}  {each.metric:<{metric}}  {each.difference:+10.4f}  {interval:<18}  "
                f"{each.effect_size:+11.2f}  {p:8.2g}"
            )
        return "\n".join([*lines, f"each minus {self.baseline}, over {self.comparisons[0].n_users} users"])

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"baseline": self.baseline, "comparisons": self._rows()}

    def to_polars(self) -> pl.DataFrame:
        """One row per comparison."""
        import polars as pl

        return pl.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        rows = zip(self.models, self.comparisons, self.p_corrected, strict=True)
        return [{"model": name} | each.to_dict() | {"p_corrected": p} for name, each, p in rows]


def compare_all(
    models: Mapping[str, Evaluation | Sequence[Evaluation]],
    *,
    baseline: str,
    metrics: Sequence[str] = ("ndcg@10",),
    level: float = 0.95,
    resamples: int = 10_000,
    rng: int = 0,
) -> Comparisons:
    """Compares every model with a baseline in every metric, and corrects the p values for their number by Holm.

    Args:
        models: name -> as in `compare`.
        baseline: the name of the model that the others are compared with, such as the strongest simple one.
        metrics: the metrics' names.
        level: as in `compare`.
        resamples: as in `compare`; with m comparisons the smallest corrected p is m / (resamples + 1).
        rng: as in `compare`.

    Raises:
        ValueError: as `compare`; a baseline that is not among the models; nothing to compare.
    """
    check.choice("baseline", baseline, tuple(models))
    pairs = [(name, metric) for metric in metrics for name in models if name != baseline]
    if not pairs:
        raise ValueError("models, metrics: expected at least one model beside the baseline and one metric, got none.")
    options: dict[str, Any] = {"level": level, "resamples": resamples, "rng": rng}
    found = tuple(compare(models[name], models[baseline], metric=metric, **options) for name, metric in pairs)
    p_corrected = tuple(holm([each.p for each in found]).tolist())
    return Comparisons(tuple(name for name, _ in pairs), found, p_corrected, baseline)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's corrected p values: the r-th smallest of m is multiplied by m - r + 1, and never below a smaller one's.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p, np.float64)
    order, m = np.argsort(p_values, kind="stable"), len(p_values)
    corrected = np.empty(m)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(m, 0, -1)), 1)
    return corrected


def _effect_size(difference: float, deviation: float) -> float:
    if deviation > 0:
        return difference / deviation
    return 0.0 if difference == 0 else math.copysign(math.inf, difference)


def _tests(d: np.ndarray) -> tuple[float, float]:
    """P of the paired t test and of Wilcoxon's signed-rank test; 1 if all differences are 0."""
    from scipy import stats  # a third of a second to import, and only comparisons need it

    if not d.any():
        return 1.0, 1.0
    p_t = 0.0 if d.std() == 0 else float(stats.ttest_1samp(d, 0.0).pvalue)
    return p_t, float(stats.wilcoxon(d, method="approx").pvalue)


def _values(results: Evaluation | Sequence[Evaluation], metric: str) -> np.ndarray:
    """The users' values in each run, float64 [runs, n_users]."""
    runs = [results] if isinstance(results, Evaluation) else list(results)
    if not runs or not all(isinstance(run, Evaluation) for run in runs):
        raise ValueError(f"expected results of `evaluate`, one or one per run, got {type(results).__name__}.")
    try:
        return np.stack([run[metric] for run in runs]).astype(np.float64)
    except KeyError as error:
        raise ValueError(f"metric: {error.args[0]}") from error


def _check_same(a: Any, b: Any, runs_a: np.ndarray, runs_b: np.ndarray) -> None:
    first = lambda results: results if isinstance(results, Evaluation) else results[0]
    one, other = first(a), first(b)
    if runs_a.shape != runs_b.shape:
        raise ValueError(f"a, b: expected the same [runs, users], got {runs_a.shape} and {runs_b.shape}.")
    ids = [None if each.user_ids is None else np.asarray(each.user_ids) for each in (one, other)]
    if ids[0] is not None and ids[1] is not None and not np.array_equal(ids[0], ids[1]):
        raise ValueError("a, b: expected evaluations of the same users, got other raw ids.")
    for name in one.protocol.keys() | other.protocol.keys():
        if one.protocol.get(name) != other.protocol.get(name):
            raise ValueError(
                f"a, b: expected evaluations of one protocol, got {name}: {one.protocol.get(name)} and "
                f"{other.protocol.get(name)}. Evaluate both in the same way."
            )
