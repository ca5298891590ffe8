"""jaxrec compared with published figures: the same ratings, the same splits, the same metric.

The methods: damped biases; matrix factorization with biases by ALS, with l2 scaled by a power of each row's rating
count; and Bayesian factorization by Gibbs sampling with features (`experiments.gibbs`). Predictions are clipped to the
scale. There are two stages, so that test cannot choose:

    python -m experiments.published --stage choose     picks each fold's settings on a validation part of its train
    python -m experiments.published                    fits those settings on train and reads test, once

The first stage writes experiments/published_choices.json, which is committed before the second stage is run; the second
stage raises for a fold without a choice there. Both resume where they stopped: every fold is written as soon as it is
done. One row of the table is one command: `--tables "ml-1m 90/10" --methods Gibbs`.

In every fold ALS and the sampler are compared with the stronger of biases and ALS (other than itself), when they are
fitted; results of earlier runs stay as they are. What is compared are the sums of each user's squared errors, whose
mean is the square of the RMSE in the table: a user's ratings are not independent, so it is users that are resampled.

For ml-1m 90/10, ALS chose among the settings that its five folds had preferred (`--ranks 12 16 --l2s 10 12 14
--exponents 0.5`); for jester5k, whose scale is not stars, among `--ranks 4 8 16 --l2s 56 112 224 --exponents 0.5 1`.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import choices, gibbs, harness
from jaxrec import bayes, check, data, evaluation, models, solvers
from jaxrec.evaluation import Evaluation
from jaxrec.types import Dataset, Factors, Ratings

CHOICES = Path(__file__).with_name("published_choices.json")

# (RMSE, MAE): the sources' own figures on the same protocol (90/10: on other random splits). Surprise: its README, with
# default settings. GC-MC, IMC-GAE, GLocal-K: their papers. Two were measured for this project with the published
# packages, see its notes: Surprise's SVD tuned over 32 settings, and myFM with the features of the sampler here.
PUBLISHED: dict[str, dict[str, tuple[float, float | None]]] = {
    "ml-100k u1": {
        "GC-MC": (0.910, None),
        "GC-MC, features": (0.905, None),
        "IMC-GAE": (0.897, None),
        "GLocal-K": (0.889, None),
        "myFM, features": (0.887, None),
    },
    "ml-100k u1-u5": {},
    "ml-100k 5-fold": {
        "Surprise baseline": (0.944, 0.748),
        "Surprise kNN-baseline": (0.931, 0.733),
        "Surprise SVD": (0.934, 0.737),
        "Surprise SVD, tuned": (0.911, None),
        "Surprise SVD++": (0.919, 0.721),
    },
    "ml-1m 90/10": {"GC-MC": (0.832, None), "IMC-GAE": (0.829, None), "GLocal-K": (0.823, None)},
    "ml-1m 5-fold": {
        "Surprise baseline": (0.909, 0.719),
        "Surprise kNN-baseline": (0.895, 0.706),
        "Surprise SVD": (0.873, 0.686),
        "Surprise SVD++": (0.862, 0.672),
    },
    "jester5k 5-fold": {},
}


@dataclass(frozen=True)
class Chains:
    """What the sampler chooses from on a table's validation parts, and its number of chains on test.

    Models are those of `experiments.gibbs`.
    """

    models: tuple[str, ...]
    ranks: tuple[int, ...]
    chains: int
    sweeps: tuple[int, ...] = (100, 200, 400)


# One chain where a chain takes minutes. ml-1m only tries heteroscedastic noise, which ml-100k chose: half the runs.
SAMPLERS: dict[str, Chains] = {
    "ml-100k u1-u5": Chains(("all", "all, one noise"), (15, 23), 3),
    "ml-100k 5-fold": Chains(("all", "all, one noise"), (15, 23), 3),
    "ml-1m 90/10": Chains(("all",), (15, 31), 1),
    "jester5k 5-fold": Chains(("rated", "none"), (7,), 1, (100, 200)),
}


@dataclass(frozen=True)
class Settings:
    """The stage, and what ALS chooses from."""

    stage: str = "test"  # or 'choose'
    tables: tuple[str, ...] = ("ml-100k u1-u5", "ml-100k 5-fold", "ml-1m 90/10", "ml-1m 5-fold", "jester5k 5-fold")
    methods: tuple[str, ...] = ("biases", "ALS", "Gibbs")
    ranks: tuple[int, ...] = (4, 8, 12, 16)
    l2s: tuple[float, ...] = (8.0, 10.0, 12.0, 14.0)
    l2_biases: tuple[float, ...] = (3.0,)
    exponents: tuple[float, ...] = (0.0, 0.25, 0.5)
    sweeps: int = 40
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """Runs one stage; returns the choices, or what it wrote to OUT/published.json."""
    check.choice("stage", settings.stage, ("choose", "test"))
    for name in settings.tables:
        check.choice("tables", name, tuple(PUBLISHED)[1:])
    for name in settings.methods:
        check.choice("methods", name, tuple(METHODS))
    return _choose_all(settings) if settings.stage == "choose" else _test_all(settings)


def folds(table: str, seed: int) -> Iterator[tuple[str, Dataset, Ratings, Ratings]]:
    """(name, dataset, train, test) of every fold of a table."""
    name, protocol = table.split(" ", 1)
    dataset = data.load(name)
    if protocol == "u1-u5":
        for fold in ("u1", "u2", "u3", "u4", "u5"):
            yield f"{name} {fold}", dataset, *data.splits.canonical(dataset, fold)
    elif protocol == "90/10":
        for k in range(3):
            yield f"{table} {k}", dataset, *data.splits.random(dataset.ratings, test_fraction=0.1, rng=seed + k)
    else:
        for k, (train, test) in enumerate(data.splits.k_fold(dataset.ratings, 5, rng=seed)):
            yield f"{table} {k}", dataset, train, test


# ------------------------------------------------------------------------------------------- the methods


def fit(train: Ratings, choice: dict[str, Any], settings: Settings, layouts: Any = None) -> Factors:
    """Factors fitted by ALS. The l2 of a row is l2 * (its rating count / the mean count) ** exponent."""
    by_user, by_item = layouts or _layouts(train)

    def row_l2(ids: np.ndarray, size: int) -> jax.Array:
        count = np.bincount(ids, minlength=size)
        scale = (np.maximum(count, 1) / count.mean()) ** choice["exponent"]
        return jnp.asarray(choice["l2"] * scale, jnp.float32)

    l2 = row_l2(train.user, train.n_users), row_l2(train.item, train.n_items)
    key, mu = jax.random.key(settings.seed), float(train.value.mean())
    init = models.init(train.n_users, train.n_items, choice["rank"], key=key, mu=mu)
    penalties = {"l2": l2, "l2_bias": choice["l2_bias"]}
    return solvers.als((by_user, by_item), init=init, **penalties, sweeps=settings.sweeps, progress=False)[0]


def choose(train: Ratings, dataset: Dataset, table: str, settings: Settings) -> dict[str, Any]:
    """Settings of ALS with the lowest RMSE on a tenth of train, fitted on the rest; test is not an argument."""
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    layouts = _layouts(part)
    best: dict[str, Any] = {}
    for rank in settings.ranks:
        for l2 in settings.l2s:
            for l2_bias in settings.l2_biases:
                for exponent in settings.exponents:
                    choice = {"rank": rank, "l2": l2, "l2_bias": l2_bias, "exponent": exponent}
                    factors = fit(part, choice, settings, layouts)
                    error = harness.errors(factors, validation, dataset.scale)["rmse"]
                    if not best or error < best["validation_rmse"]:
                        best = choice | {"validation_rmse": error}
    return best


def choose_chain(train: Ratings, dataset: Dataset, table: str, settings: Settings) -> dict[str, Any]:
    """The sampler's model, rank and number of sweeps with the lowest RMSE of one chain on the same tenth of train."""
    candidates = SAMPLERS[table]
    chain_settings = gibbs.Settings(ranks=candidates.ranks, sweeps=candidates.sweeps, seed=settings.seed)
    best: dict[str, Any] = {}
    for name in candidates.models:
        tried, (rank, sweeps) = gibbs.choose(train, dataset, name, chain_settings)
        if not best or tried[rank, sweeps] < best["validation_rmse"]:
            best = {"model": name, "rank": rank, "sweeps": sweeps, "validation_rmse": tried[rank, sweeps]}
    return best


# (errors for the table, predictions of test)
Tested = tuple[dict[str, Any], np.ndarray]


def _biases(train: Ratings, test: Ratings, dataset: Dataset, table: str, choice: Any, settings: Settings) -> Tested:
    return _tested(models.baselines.damped_biases(train), test, dataset)


def _als(train: Ratings, test: Ratings, dataset: Dataset, table: str, choice: Any, settings: Settings) -> Tested:
    return _tested(fit(train, choice, settings), test, dataset)


def _tested(factors: Factors, test: Ratings, dataset: Dataset) -> Tested:
    predictions = harness.clipped(factors, test, dataset.scale)
    return harness.errors(factors, test, dataset.scale), np.asarray(predictions)


def _gibbs(train: Ratings, test: Ratings, dataset: Dataset, table: str, choice: Any, settings: Settings) -> Tested:
    """Errors of single chains (mean and standard deviation over chains), and of all chains pooled."""
    chain_settings, chains = gibbs.Settings(seed=settings.seed), SAMPLERS[table].chains
    chosen = choice["model"], choice["rank"], choice["sweeps"]
    posterior, _ = gibbs.sample(train, test, dataset, *chosen, chain_settings, chains=chains)
    pooled = bayes.pool_chains(posterior).mean
    mae = lambda mean: float(np.mean(np.abs(np.asarray(mean, np.float64) - test.value)))
    rmses = [gibbs.rmse(mean, test) for mean in posterior.mean]
    errors = {"rmse": float(np.mean(rmses)), "mae": float(np.mean([mae(mean) for mean in posterior.mean]))}
    errors |= {"rmse_deviation": float(np.std(rmses, ddof=1)) if chains > 1 else 0.0, "chains": chains}
    errors |= {"rmse_together": gibbs.rmse(pooled, test), "mae_together": mae(pooled)}
    return errors, np.asarray(pooled)


# name -> (function that chooses settings, None without any; function that fits, and returns what it found on test)
METHODS: dict[str, tuple[Callable[..., Any] | None, Callable[..., Tested]]] = {
    "biases": (None, _biases),
    "ALS": (choose, _als),
    "Gibbs": (choose_chain, _gibbs),
}
BASELINES = ("biases", "ALS")  # of ours; each fit is compared with the stronger one of the others


def _applies(method: str, table: str) -> bool:
    """Whether a table has this method: the sampler is not run on every table."""
    return method != "Gibbs" or table in SAMPLERS


def _layouts(ratings: Ratings) -> Any:
    return data.rows(ratings, "user"), data.rows(ratings, "item")


# ------------------------------------------------------------------------------------------- the stages


def _choose_all(settings: Settings) -> dict[str, Any]:
    found = choices.read(CHOICES)
    for table in settings.tables:
        for name, dataset, train, _ in folds(table, settings.seed):
            for method in settings.methods:
                choose_settings = METHODS[method][0]
                if choose_settings is None or not _applies(method, table):
                    continue
                if method not in found.get(name, {}):
                    found = choices.add(CHOICES, name, method, choose_settings(train, dataset, table, settings))
                print(f"{name}, {method}: {found[name][method]}", flush=True)
    print(f"\n{CHOICES}: commit it, then run without --stage.")
    return found


def _test_all(settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    chosen = choices.read(CHOICES)
    done: dict[str, Any] = {}
    previous = Path(settings.out) / "published.json"
    if previous.exists():
        done = json.loads(previous.read_text())["metrics"]["rows"]
    result: dict[str, Any] = {}
    for table in settings.tables:
        for name, dataset, train, test in folds(table, settings.seed):
            harness.audit(train, test, settings, name=name)
            by_user: dict[str, Evaluation] = {}  # the users' errors of the methods that are fitted in this run
            for method in (method for method in settings.methods if _applies(method, table)):
                choose_settings, run = METHODS[method]
                choice, row = chosen.get(name, {}).get(method, {}), f"{name}, {method}"
                if choose_settings is not None and not choice:
                    raise ValueError(
                        f"{row}: no settings chosen in {CHOICES.name}. Run with --stage choose; commit it."
                    )
                if done.get(row, {}).get("choice") != choice:
                    began = time.perf_counter()
                    errors, predictions = run(train, test, dataset, table, choice, settings)
                    seconds = round((time.perf_counter() - began) / errors.get("chains", 1), 3)
                    by_user[method] = harness.squared_errors(predictions, test)
                    done[row] = errors | {"choice": choice, "seconds": seconds, "table": table, "method": method}
                    if (baseline := _strongest_baseline(name, method, done)) is not None:
                        if baseline not in by_user:  # its row is of an earlier run
                            of_baseline = done[f"{name}, {baseline}"]["choice"]
                            predictions = METHODS[baseline][1](train, test, dataset, table, of_baseline, settings)[1]
                            by_user[baseline] = harness.squared_errors(predictions, test)
                        found = evaluation.compare(by_user[method], by_user[baseline], metric="squared_error")
                        done[row]["against"] = {"baseline": baseline, "lower_is_better": True} | found.to_dict()
                result = harness.report("published", settings, {"rows": done}, time.perf_counter() - start)
                print(f"{row}: RMSE {done[row]['rmse']:.4f}, MAE {done[row]['mae']:.4f}", flush=True)
    lines = [line for table in settings.tables for line in _compared(table, done)]
    print("less baseline: mean squared error less that of the strongest other of ours, biases or ALS, as a mean over")
    print("folds; and in how many of these its 95 % interval over users is below 0. Of several chains, all together.")
    harness.table(lines, keys=2)
    harness.plot("published", settings, lambda axes: _draw(axes, lines))
    return result


def _strongest_baseline(fold: str, method: str, done: dict[str, Any]) -> str | None:
    """The other baseline with the lowest error on test, among those with a row; None without any, and for itself."""
    if method == BASELINES[0]:
        return None
    rows = {name: done.get(f"{fold}, {name}") for name in BASELINES if name != method}
    with_row = {name: row["rmse"] for name, row in rows.items() if row is not None}
    return min(with_row, key=with_row.__getitem__, default=None)


def _compared(table: str, done: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table: jaxrec's mean over the folds with its standard deviation, and the published figures."""
    ours = [(name, result) for name, result in done.items() if result["table"] == table]
    parts = {table: [result for _, result in ours]}
    if table == "ml-100k u1-u5":
        parts = {"ml-100k u1": [result for name, result in ours if name.startswith("ml-100k u1,")]} | parts
    lines = []
    for part, results in parts.items():
        for method in METHODS:
            if by_fold := [result for result in results if result["method"] == method]:
                lines.append({"data": part, "model": f"jaxrec: {method}"} | _mean(by_fold, ""))
                if (chains := by_fold[0].get("chains", 1)) > 1:
                    pooled = _mean(by_fold, "_together", chains)
                    lines.append({"data": part, "model": f"jaxrec: {method}, {chains} chains together"} | pooled)
        for model, (rmse, mae) in PUBLISHED[part].items():
            unknown = {"±": "-", "over": "-", "seconds": "-", "less baseline": "-"}
            lines.append({"data": part, "model": model, "RMSE": rmse, "MAE": mae or "-"} | unknown)
    return lines


def _mean(by_fold: list[dict[str, Any]], suffix: str, chains: int = 1) -> dict[str, Any]:
    """Mean errors over folds, with the standard deviation over folds, or over the chains of a single fold.

    Args:
        by_fold: results of one method, one per fold.
        suffix: '' for single chains, '_together' for all chains pooled.
        chains: how many chains a fit is; its seconds are this multiple of one chain's.
    """
    rmses = [result[f"rmse{suffix}"] for result in by_fold]
    deviation, over = (float(np.std(rmses, ddof=1)), f"{len(by_fold)} folds") if len(by_fold) > 1 else ("-", "-")
    if len(by_fold) == 1 and by_fold[0].get("chains", 1) > 1 and not suffix:
        deviation, over = by_fold[0]["rmse_deviation"], f"{by_fold[0]['chains']} chains"
    seconds = round(chains * float(np.mean([result["seconds"] for result in by_fold])), 1)
    mae = float(np.mean([result[f"mae{suffix}"] for result in by_fold]))
    return {"RMSE": float(np.mean(rmses)), "MAE": mae, "±": deviation, "over": over, "seconds": str(seconds)} | {
        "less baseline": _less_baseline(by_fold) if suffix or by_fold[0].get("chains", 1) == 1 else "-"
    }


def _less_baseline(by_fold: list[dict[str, Any]]) -> str:
    """The paired differences of squared errors, in a cell: mean over folds, the baseline, folds where it is below 0."""
    found = [result["against"] for result in by_fold if "against" in result]
    if not found:
        return "-"
    mean, below = np.mean([each["difference"] for each in found]), sum(each["high"] < 0 for each in found)
    baselines = "/".join(dict.fromkeys(each["baseline"] for each in found))
    return f"{baselines} {mean:+.4f} ({below} of {len(found)})"


def _draw(axes: Any, lines: list[dict[str, Any]]) -> None:
    lines = [line for line in lines if line["RMSE"] < 2][::-1]  # jester's scale is wider and does not fit the axis
    names = [f"{line['data']}: {line['model']}" for line in lines]
    colors = ["tab:blue" if "jaxrec" in name else "tab:gray" for name in names]
    axes.barh(names, [line["RMSE"] for line in lines], color=colors)
    axes.set(xlabel="RMSE on test", xlim=(0.8, 1.0))
    axes.tick_params(axis="y", labelsize=5)


if __name__ == "__main__":
    harness.run(main, Settings)
