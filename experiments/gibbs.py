"""How good is Bayesian factorization, what do features add to it, and what are its error bars worth?

Gibbs sampling whose prior means are linked to features: side information (users' age band, sex, occupation, region;
films' year and genres), the sets of items that a user rated and of users who rated an item (rows of length 1, from the
training part alone), or both. The noise has a precision per user and item, or (`one noise`) the same for all ratings.
It is normal, or (`ordinal`) a rating is the interval between two cut points in which a latent value lies.

Rank and number of sweeps are chosen for each model by the lowest RMSE of one chain on a validation part of train (a
tenth, drawn with the seed). The chosen model runs several chains on all of train, and test is read once: the mean of
single chains with its standard deviation, and all chains pooled. Predictions are means of clipped predictions.

The intervals are normal, with the mean over all chains and the variance over sweeps and chains plus that of the noise.
They are compared with intervals of the same predictions with one error for all, the RMSE on validation. `log density`
is the mean log density of the test ratings under each: higher is better.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from arviz_stats.base import array_stats
from scipy.stats import norm

from experiments import harness
from experiments.films import region
from jaxrec import bayes, check, data, models
from jaxrec.bayes.side_information import Basis, Priors, basis
from jaxrec.data import features
from jaxrec.types import Dataset, Ratings

MODELS = {  # name -> (groups of features, whether the noise is heteroscedastic, whether ratings are ordinal)
    "none, one noise": ((), False, False),
    "side, one noise": (("side",), False, False),
    "rated, one noise": (("rated",), False, False),
    "all, one noise": (("side", "rated"), False, False),
    "none": ((), True, False),
    "side": (("side",), True, False),
    "rated": (("rated",), True, False),
    "all": (("side", "rated"), True, False),
    "all, ordinal, one noise": (("side", "rated"), False, True),
    "all, ordinal": (("side", "rated"), True, True),
}
SHARES = (0.5, 0.8, 0.95)
AGES = (18, 25, 35, 45, 50, 56)  # lower limits of ml-1m's age bands


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The grid to choose from, and the chains."""

    models: tuple[str, ...] = tuple(MODELS)
    ranks: tuple[int, ...] = (8, 15, 23)
    sweeps: tuple[int, ...] = (100, 200, 400)
    burn_in: int = 40
    scale_matrix: float = 1.0
    chains: int = 3
    test_fraction: float = 0.2  # where split is 'random'


def side(dataset: Dataset) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(users', items') features from a dataset's metadata; an empty list where it has none. No rating is used."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    if dataset.users is not None and "zip_code" in dataset.users.columns:
        column = {name: dataset.users[name].to_list() for name in ("age", "sex", "occupation", "zip_code")}
        bands = [str(np.searchsorted(AGES, age, side="right")) for age in column["age"]]
        table = {"age": bands, "sex": column["sex"], "occupation": [str(each) for each in column["occupation"]]}
        table["region"] = [region(code) for code in column["zip_code"]]
        found[0].append(features.fit_encoder(table, {name: features.Category() for name in table})(table))
    if dataset.items is not None and "genres" in dataset.items.columns:
        year = dataset.items["year"].to_list()
        # by decade, but by year from 1990 on, since most films are from the nineties
        since = [None if y is None else str(y if y >= 1990 else max(1930, y // 10 * 10)) for y in year]
        films = {"year": year, "since": since, "genres": dataset.items["genres"].to_list()}
        declared: dict[str, features.Column] = {
            "year": features.Numeric(),
            "since": features.Category(),
            "genres": features.Tags(),
        }
        found[1].append(features.fit_encoder(films, declared)(films))
    return found


def rated(train: Ratings) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(the items that each user rated, the users who rated each item), as rows of length 1.

    An entry is 1 / sqrt(the row's rating count) where rated, and 0 elsewhere.
    """
    mask = np.zeros((train.n_users, train.n_items))
    mask[train.user, train.item] = 1
    unit_rows = lambda rows: rows / np.sqrt(np.maximum(rows.sum(axis=1, keepdims=True), 1))
    return [unit_rows(mask)], [unit_rows(mask.T)]


def groups(kinds: tuple[str, ...], dataset: Dataset, train: Ratings) -> bayes.Features:
    """(users', items') groups of features of a model, as `bayes.gibbs` takes them."""
    bases: tuple[list[Basis], list[Basis]] = ([], [])
    for kind in kinds:
        tables = side(dataset) if kind == "side" else rated(train)
        if not any(tables):
            raise ValueError(f"{dataset.name} has no side information: leave the models 'side' and 'all' out.")
        for side_bases, side_tables in zip(bases, tables, strict=True):
            side_bases.extend(basis(table) for table in side_tables)
    return tuple(bases[0]), tuple(bases[1])


def sample(
    known: Ratings,
    test: Ratings,
    dataset: Dataset,
    name: str,
    rank: int,
    sweeps: int,
    settings: Any,
    *,
    chains: int,
    callback: Any = None,
) -> tuple[bayes.Posterior, np.ndarray]:
    """(posterior of test's pairs, trace of the noise's standard deviation after burn-in [sweeps, chains])."""
    kinds, heteroscedastic, levels = MODELS[name]
    bases = groups(kinds, dataset, known)
    keys = jax.random.split(jax.random.key(settings.seed))
    init = partial(bayes.init_chains, known.n_users, known.n_items, rank, key=keys[0], chains=chains, features=bases)
    state = init(levels=known.value if levels else None)
    _, posterior, trace = bayes.gibbs(
        known,
        test,
        init=state,
        key=keys[1],
        mu=0.0 if levels else float(known.value.mean()),
        sweeps=sweeps,
        burn_in=settings.burn_in,
        scale=dataset.scale,
        features=bases,
        priors=Priors(scale_matrix=settings.scale_matrix, heteroscedastic=heteroscedastic),
        callback=callback,
        progress=False,
    )
    return posterior, trace[settings.burn_in :]


def choose(train: Ratings, dataset: Dataset, name: str, settings: Any) -> tuple[dict[tuple[int, int], float], Any]:
    """(validation RMSE by rank and number of sweeps, the best pair); test is not an argument."""
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    tried: dict[tuple[int, int], float] = {}
    for rank in settings.ranks:

        def validate(step: int, _: bayes.ChainState, posterior: bayes.Posterior, rank: int = rank) -> None:
            if step in settings.sweeps:
                tried[rank, step] = rmse(bayes.pool_chains(posterior).mean, validation)

        sample(part, validation, dataset, name, rank, max(settings.sweeps), settings, chains=1, callback=validate)
    return tried, min(tried, key=tried.__getitem__)


def rmse(predicted: Any, test: Ratings) -> float:
    """RMSE of predictions of test's ratings."""
    return float(np.sqrt(np.mean((np.asarray(predicted, np.float64) - test.value) ** 2)))


def intervals(mean: np.ndarray, deviation: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Coverage and mean width of central normal intervals, and the mean log density of the ratings y."""
    out: dict[str, float] = {}
    for share in SHARES:
        half = norm.ppf(0.5 + share / 2) * deviation
        out[f"{share:.0%}"] = float(np.mean(np.abs(y - mean) <= half))
        out[f"width {share:.0%}"] = float(np.mean(2 * half))
    return out | {"log density": float(np.mean(norm.logpdf(y, mean, deviation)))}


def main(settings: Settings) -> dict[str, Any]:
    """Chooses on validation, samples given train, reports on test; returns what it wrote to OUT/gibbs.json."""
    start = time.perf_counter()
    for name in settings.models:
        check.choice("models", name, tuple(MODELS))
    dataset = harness.load(settings)
    if settings.split == "random":
        train, test = data.splits.random(dataset.ratings, test_fraction=settings.test_fraction, rng=settings.seed)
        harness.audit(train, test, settings)
    else:
        train, test = harness.split(dataset, settings)
    by_biases = models.baselines.damped_biases(train)
    biases = harness.errors(by_biases, test, dataset.scale)["rmse"]
    values: dict[str, Any] = {"damped_biases_rmse": biases}
    predictions = {"damped biases": np.asarray(harness.clipped(by_biases, test, dataset.scale))}
    rows, bars = [], []
    for name in settings.models:
        tried, (rank, sweeps) = choose(train, dataset, name, settings)
        began = time.perf_counter()
        posterior, trace = sample(train, test, dataset, name, rank, sweeps, settings, chains=settings.chains)
        chain_rmses, pooled = [rmse(mean, test) for mean in posterior.mean], bayes.pool_chains(posterior)
        row = {"model": name, "rank": rank, "sweeps": sweeps, "validation": tried[rank, sweeps]}
        row |= {"one chain": float(np.mean(chain_rmses)), "deviation": float(np.std(chain_rmses))}
        row |= {"together": rmse(pooled.mean, test), "seconds a chain": _seconds(began, settings.chains)}
        rows.append(row)
        predictions[name] = np.asarray(pooled.mean)
        error = harness.rmse_error(predictions[name], test)
        values |= {} if np.isnan(error) else {f"{_label(name)}_together_se": error}
        mean, y = np.asarray(pooled.mean, np.float64), np.asarray(test.value, np.float64)
        deviation = np.sqrt(np.asarray(pooled.variance + pooled.noise_variance, np.float64))
        one_error = np.full(len(y), tried[rank, sweeps])
        both = {"": intervals(mean, deviation, y), ", one error": intervals(mean, one_error, y)}
        bars += [{"intervals": f"{name}{suffix}"} | measures for suffix, measures in both.items()]
        tenths = _tenths(deviation, mean - y)
        flat = row | both[""] | {f"one error, {k}": v for k, v in both[", one error"].items()}
        axes = {"chain_axis": 1, "draw_axis": 0}
        flat |= {"noise ess": float(array_stats.ess(trace, **axes))}
        flat |= {"noise r hat": float(array_stats.rhat(trace, **axes))} if settings.chains > 1 else {}
        flat |= {"surest tenth": tenths[0][1], "least sure tenth": tenths[-1][1]}
        values |= {f"{_label(name)}_{_label(k)}": v for k, v in flat.items() if k != "model"}
        listed = ", ".join(f"{r}/{s}: {error:.4f}" for (r, s), error in tried.items())
        print(f"{name}: validation RMSE by rank/sweeps {listed}", flush=True)
        harness.report("gibbs", settings, values, time.perf_counter() - start)
    print(f"damped biases: test RMSE {biases:.4f}")
    errors = [harness.rmse_error(predictions[row["model"]], test) for row in rows]
    harness.table(
        [row | {"together": harness.with_error(row["together"], e)} for row, e in zip(rows, errors, strict=True)]
    )
    results = {name: harness.squared_errors(predicted, test) for name, predicted in predictions.items()}
    comparison = harness.compare(results, ("damped biases",), metric="squared_error", lower_is_better=True)
    harness.table(bars)
    harness.plot("gibbs", settings, lambda axes: _draw(axes, tenths, settings))
    return harness.report("gibbs", settings, values, time.perf_counter() - start, comparison=comparison)


def _label(text: str) -> str:
    return text.replace(",", "").replace(" ", "_").replace("%", "")


def _seconds(began: float, chains: int) -> float:
    """Seconds per chain since `began`."""
    return round((time.perf_counter() - began) / chains, 1)


def _tenths(deviation: np.ndarray, error: np.ndarray) -> list[tuple[float, float]]:
    """(mean predicted deviation, RMSE) of each tenth of the predictions, smallest deviations first."""
    positions = np.array_split(np.argsort(deviation, kind="stable"), 10)
    return [(float(deviation[p].mean()), float(np.sqrt(np.mean(error[p] ** 2)))) for p in positions]


def _draw(axes: Any, tenths: list[tuple[float, float]], settings: Settings) -> None:
    predicted, measured = zip(*tenths, strict=True)
    axes.plot(predicted, measured, marker="o", label=f"tenths of test, {settings.models[-1]}")
    axes.plot(predicted, predicted, color="gray", linewidth=1, label="as predicted")
    axes.set(xlabel="predicted standard deviation", ylabel="test RMSE")
    axes.set_title(f"Which predictions to trust: {settings.data} {settings.split}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
