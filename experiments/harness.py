"""Shared by all experiments: settings from the command line, a split, errors, a table, a JSON file, a plot."""

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrec
from jaxrec import data, evaluation, metrics, models
from jaxrec.atomic import replacing
from jaxrec.counting_sort import group_by
from jaxrec.evaluation import Evaluation
from jaxrec.types import Dataset, Factors, Ratings

WIDTH = 100  # of a table on a terminal


@dataclass(frozen=True)
class Settings:
    """Settings of every experiment; each experiment adds its own."""

    data: str = "ml-100k"  # a name that data.load knows, or 'synthetic'
    path: str = ""  # the folder of its files; '' searches the usual places
    split: str = "u1"  # u1 .. u5 (ml-100k's own), or 'random' (a fifth, drawn with the seed)
    seed: int = 0
    out: str = "results"  # the folder for NAME.json and the plot


def run(main: Callable[[Any], dict[str, Any]], settings_type: type[Any]) -> None:
    """Runs main with settings from the command line; an unknown or mistyped option is an error (exit status 2)."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {sys.modules[main.__module__].__spec__.name}",  # type: ignore[union-attr]
        description=sys.modules[main.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for f in dataclasses.fields(settings_type):
        if isinstance(f.default, tuple):
            kind = type(f.default[0]) if f.default else str
            parser.add_argument(f"--{f.name}", type=kind, nargs="+", default=f.default, help=f"default: {f.default}")
        else:
            parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default, help=f"default: {f.default!r}")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(parser.parse_args()).items()}
    main(settings_type(**options))


def load(settings: Settings) -> Dataset:
    """Loads the dataset that the settings name; prints its source."""
    if settings.data == "synthetic":
        dataset = data.synthetic.low_rank(943, 1682, 100_000, rng=settings.seed)
    else:
        dataset = data.load(settings.data, path=settings.path or None)
    print(f"{dataset.name}: {dataset.ratings}\n  from {dataset.source}")
    return dataset


def split(dataset: Dataset, settings: Settings) -> tuple[Ratings, Ratings]:
    """(train, test) by the settings' split, which is audited."""
    if settings.split == "random":
        train, test = data.splits.random(dataset.ratings, test_fraction=0.2, rng=settings.seed)
    else:
        train, test = data.splits.canonical(dataset, settings.split)
    audit(train, test, settings)
    return train, test


_audits: dict[Any, dict[str, Any]] = {}  # settings -> what `audit` found for them, which `report` writes


def audit(train: Ratings, test: Ratings, settings: Any, *, name: str = "") -> None:
    """Audits a split, prints a line, and keeps what was found for `report`.

    Args:
        train: the ratings that models are fitted to.
        test: the ratings that are predicted.
        settings: of the experiment, as `report` will get them.
        name: which split it is, in an experiment of several: its JSON has an audit for each name.
    """
    found = evaluation.audit(train, test)
    if name:
        _audits[settings] = _audits.get(settings, {}) | {name: found.to_dict()}
    else:
        _audits[settings] = found.to_dict()
    before = found.users_before_others_train
    print(
        f"audit{name and f' of {name}'}: {found.pairs_in_both} pairs in both; not in train: "
        f"{found.unseen_users_share:.1%} of test's users, {found.unseen_items_share:.1%} of its items; "
        + ("no times; " if before is None else f"{before:.1%} of test's users rated before others' latest in train; ")
        + f"{found.near_duplicates} pairs of near-duplicate items; drift of items {found.item_drift:.3f} "
        f"({found.item_drift_if_random:.3f} by chance), of users {found.user_drift:.3f} "
        f"({found.user_drift_if_random:.3f})"
    )


def errors(factors: Factors, ratings: Ratings, scale: tuple[float, float] | None) -> dict[str, float]:
    """RMSE and MAE of a model on ratings, and the RMSE's standard error over users.

    Predictions are clipped to the scale, unless it is None. The standard error is left out for a single user.
    """
    prediction = clipped(factors, ratings, scale)
    y = jnp.asarray(ratings.value)
    found = {"rmse": float(metrics.rmse(prediction, y)), "mae": float(metrics.mae(prediction, y))}
    error = rmse_error(np.asarray(prediction), ratings)
    return found if math.isnan(error) else found | {"rmse_se": error}


def clipped(factors: Factors, ratings: Ratings, scale: tuple[float, float] | None) -> jax.Array:
    """Predictions of the ratings, clipped to the scale, unless it is None."""
    prediction = models.predict(factors, jnp.asarray(ratings.user), jnp.asarray(ratings.item))
    return prediction if scale is None else jnp.clip(prediction, *scale)


def rmse_error(prediction: np.ndarray, ratings: Ratings) -> float:
    """The standard error of the RMSE over users, whose ratings are not independent of one another.

    With S(j) the sum of user j's squared errors and n(j) the number of their ratings, MSE = sum S / sum n is a ratio of
    two means over m users, and to first order::

        error(RMSE) = error(MSE) / (2 RMSE),    error(MSE) = m / (sum n) * deviation of (S(j) - MSE n(j)) / sqrt(m)

    It is NaN for fewer than two users. Source: Cochran 1977, Sampling techniques, section 2.11 (ratio estimators).
    """
    mse, error = ratio_error((prediction.astype(np.float64) - ratings.value) ** 2, ratings)
    return error / (2 * math.sqrt(mse)) if mse > 0 else error


def ratio_error(errors: np.ndarray, ratings: Ratings) -> tuple[float, float]:
    """(the mean of errors over all ratings, its standard error over users), as in `rmse_error`."""
    total, count = _sums_by_user(errors, ratings)
    total, count = total[count > 0], count[count > 0]
    mean = float(total.sum() / count.sum())
    if len(count) < 2:
        return mean, math.nan
    return mean, float(math.sqrt(len(count)) / count.sum() * np.std(total - mean * count, ddof=1))


def squared_errors(prediction: np.ndarray | jax.Array, ratings: Ratings) -> Evaluation:
    """Every user's squared error, LOWER is better, as `evaluation.compare` takes it; NaN for users without ratings.

    squared_error(j) = sum over user j's ratings of (prediction - y)^2, over the mean number of ratings per user. So its
    mean over users is the mean over all ratings: the square of the RMSE that tables print.
    """
    return user_sums("squared_error", (np.asarray(prediction, np.float64) - ratings.value) ** 2, ratings)


def user_sums(name: str, errors: np.ndarray, ratings: Ratings) -> Evaluation:
    """The sum of each user's errors, over the mean number of ratings per user; NaN for users without ratings."""
    total, count = _sums_by_user(errors, ratings)
    n_users = int((count > 0).sum())
    values = np.where(count > 0, total * n_users / count.sum(), np.nan).astype(np.float32)
    left_out = {"without ratings": ratings.n_users - n_users}
    return Evaluation({name: values}, n_users, left_out, {"errors": "summed per user"}, ratings.user_ids)


def _sums_by_user(errors: np.ndarray, ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """(the sum of each user's errors, the number of their ratings), float64."""
    total = np.bincount(ratings.user, weights=errors, minlength=ratings.n_users)
    return total, np.bincount(ratings.user, minlength=ratings.n_users).astype(np.float64)


def compare(
    results: Mapping[str, Evaluation], baselines: Collection[str], *, metric: str, lower_is_better: bool = False
) -> dict[str, Any]:
    """Compares the best model with the strongest baseline over the same users, prints a line, and returns it for JSON.

    Both are picked by their means on the very users that are compared, so that among many models p is too small.

    Args:
        results: name -> metrics of every user.
        baselines: which of these names are baselines; all others are models.
        metric: the metric's name.
        lower_is_better: for errors.
    """
    sign = -1 if lower_is_better else 1
    mean = {name: sign * float(np.nanmean(result[metric])) for name, result in results.items()}
    model = max((name for name in results if name not in baselines), key=mean.__getitem__)
    baseline = max(baselines, key=mean.__getitem__)
    found = evaluation.compare(results[model], results[baseline], metric=metric)
    print(f"{model} against {baseline}{', lower is better' if lower_is_better else ''}:\n  {found}")
    return {"model": model, "baseline": baseline, "lower_is_better": lower_is_better} | found.to_dict()


def compare_errors(
    fitted: Mapping[str, Factors], baselines: Collection[str], ratings: Ratings, scale: tuple[float, float] | None
) -> dict[str, Any]:
    """`compare` of models by their squared errors on ratings."""
    results = {name: squared_errors(clipped(factors, ratings, scale), ratings) for name, factors in fitted.items()}
    return compare(results, baselines, metric="squared_error", lower_is_better=True)


def auc_error(score: jax.Array, target: jax.Array, ratings: Ratings, *, resamples: int = 200, rng: int = 0) -> float:
    """The standard error of the AUC of all ratings together, by the bootstrap over users.

    It is the standard deviation over resamples of the AUC in which a rating's weight is how often its user was drawn.
    Resamples without ones or without zeros have no AUC and are left out; it is NaN for fewer than two users.
    """
    users, row = np.unique(ratings.user, return_inverse=True)
    if len(users) < 2:
        return math.nan
    drawn = np.random.default_rng(rng).multinomial(len(users), np.full(len(users), 1 / len(users)), size=resamples)
    weights = jnp.asarray(drawn[:, row], jnp.float32)
    replicates = jax.jit(lambda weights, s, y: jax.lax.map(lambda w: metrics.auc(s, y, weights=w), weights))
    return float(np.nanstd(np.asarray(replicates(weights, score, target)), ddof=1))


def compare_groups(
    results: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, np.ndarray],
    baselines: Collection[str],
    header: str,
    values: dict[str, Any],
    *,
    metric: str = "ndcg",
) -> dict[str, Any]:
    """Prints a table and a comparison per group of users; adds standard errors to `values`; returns the comparisons.

    Args:
        results: name -> metric -> the values of all users [n].
        groups: name -> which users are in it [n]; groups of fewer than two users are left out of the comparisons.
        baselines: which of the names are baselines.
        header: of the first column.
        values: METRIC_GROUP_NAME_se are added to it.
        metric: the metric that is compared.
    """
    comparisons = {}
    for group, mask in groups.items():
        if not mask.any():
            continue
        rows = []
        for name, by_metric in results.items():
            found = {m: mean_and_error(np.asarray(users)[mask]) for m, users in by_metric.items()}
            rows.append({header: name} | {f"{m}, {group}": with_error(*each) for m, each in found.items()})
            if mask.sum() > 1:
                values |= {f"{m}_{group}_{name.replace(' ', '_')}_se": error for m, (_, error) in found.items()}
        table(rows)
        if mask.sum() > 1:
            of_group = lambda users, mask=mask: np.where(mask, np.asarray(users, np.float32), np.nan)
            by_name = {
                name: Evaluation({metric: of_group(by_metric[metric])}, int(mask.sum()), {}, {})
                for name, by_metric in results.items()
            }
            comparisons[group] = compare(by_name, baselines, metric=metric)
    return comparisons


def by_given(
    curve: Mapping[int, Mapping[str, Factors]], baselines: Collection[str], test: Ratings, scale: Any, given: str
) -> tuple[dict[int, dict[str, dict[str, float]]], dict[str, Any]]:
    """(number of given ratings -> name -> errors on test, comparisons for JSON) of a learning curve; prints both.

    Args:
        curve: number of given ratings -> name -> the model fitted with so many.
        baselines: the names of the baselines.
        test: the same ratings for all numbers.
        scale: of the ratings.
        given: the header of the first column.
    """
    found = {n: {name: errors(factors, test, scale) for name, factors in row.items()} for n, row in curve.items()}
    cells = lambda row: {name: with_error(each["rmse"], each.get("rmse_se")) for name, each in row.items()}
    table([{given: n} | cells(row) for n, row in found.items()])
    comparisons = {}
    for n, row in curve.items():
        print(f"given {n}: ", end="")
        comparisons[f"given_{n}"] = compare_errors(row, baselines, test, scale)
    return found, comparisons


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error) of numbers; the error is NaN for fewer than two."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def with_error(mean: float, error: float | None) -> str:
    """A cell of a table: the mean ± its standard error, or the mean alone if there is none."""
    return f"{mean:.4f}" if error is None or math.isnan(error) else f"{mean:.4f} ± {error:.4f}"


def error_cells(found: Mapping[str, float]) -> dict[str, Any]:
    """The cells of a model's row in a table of test errors, from what `errors` found."""
    return {"test RMSE": with_error(found["rmse"], found.get("rmse_se")), "test MAE": found["mae"]}


def ranking_metrics(
    factors: Factors, seen: Ratings, liked: Ratings, *, k: int = 10, allowed: np.ndarray | None = None
) -> dict[str, float]:
    """Precision, recall and NDCG of the k best unseen items of the catalog, means over users who liked any item."""
    return {
        name.partition("@")[0]: mean for name, mean in ranked(factors, seen, liked, k=k, allowed=allowed).mean.items()
    }


def ranked(
    factors: Factors, seen: Ratings, liked: Ratings, *, k: int = 10, allowed: np.ndarray | None = None
) -> Evaluation:
    """The same metrics of every user, with their standard errors."""
    mask = None if allowed is None else jnp.asarray(allowed)
    measures = {"precision": metrics.precision, "recall": metrics.recall, "ndcg": metrics.ndcg}
    return evaluation.evaluate(factors, seen, liked, k=k, metrics=measures, allowed=mask)


def occurrence(ids: np.ndarray) -> np.ndarray:
    """Number of earlier entries with the same id, per entry: `occurrence(ids) < n` selects the first n of each id.

    For example, the ids 3, 1, 3, 3, 1 have the occurrences 0, 0, 1, 2, 1.
    """
    start, order = group_by(ids, int(ids.max(initial=0)) + 1)
    out = np.empty(len(ids), np.int64)
    out[order] = np.arange(len(ids)) - np.repeat(start[:-1], np.diff(start))
    return out


def together(a: Ratings, b: Ratings) -> Ratings:
    """The ratings of a and b, which have the same users and items, in one."""
    join = lambda name: np.concatenate([getattr(a, name), getattr(b, name)])
    return Ratings(join("user"), join("item"), join("value"), a.n_users, a.n_items)


def table(rows: list[dict[str, Any]], *, keys: int = 1) -> None:
    """Prints rows under the keys of the first row; floats with four decimals.

    A table of more than 100 columns of text is printed as several, each with the first `keys` columns.
    """
    columns = list(rows[0])
    cells = {c: [c, *(f"{v:.4f}" if isinstance(v := row[c], float) else str(v) for row in rows)] for c in columns}
    width = {c: max(map(len, cells[c])) for c in columns}
    blocks: list[list[str]] = [columns[:keys]]
    for column in columns[keys:]:
        if len(blocks[-1]) > keys and sum(width[c] + 2 for c in [*blocks[-1], column]) > WIDTH:
            blocks.append(columns[:keys])
        blocks[-1] = [*blocks[-1], column]
    for block in blocks:
        lines = [[cells[c][n] for c in block] for n in range(len(rows) + 1)]
        lines.insert(1, ["-" * width[c] for c in block])
        align = lambda n, text, c: f"{text:<{width[c]}}" if n == 0 else f"{text:>{width[c]}}"  # the first to the left
        texts = ["  ".join(align(n, *each) for n, each in enumerate(zip(line, block, strict=True))) for line in lines]
        print("\n".join(["", *(f"  {text}" for text in texts), ""]))


def report(
    name: str, settings: Any, values: dict[str, Any], seconds: float, *, comparison: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes OUT/NAME.json atomically and returns its content.

    That is: settings, audit, flat metrics, comparison, seconds, environment. The audit is that of the split that
    `split` made, or that was given to `audit`, with these settings; None if none. The comparison is what `compare`
    returned, or several by their names.
    """
    result = {
        "experiment": name,
        "settings": dataclasses.asdict(settings),
        "audit": _audits.get(settings),
        "metrics": values,
        "comparison": comparison,
        "seconds": round(seconds, 3),
        "environment": {
            "jaxrec": jaxrec.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "date": time.strftime("%Y-%m-%d"),
        },
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    path = write(Path(settings.out) / f"{name}.json", lambda temporary: temporary.write_text(text))
    print(f"results: {path}")
    return result


def plot(name: str, settings: Any, draw: Callable[[Any], None]) -> None:
    """Writes OUT/NAME.png, drawn by draw(axes); without matplotlib prints how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("plot: left out; it needs matplotlib (pip install 'jaxrec[plots]').")
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    path = write(Path(settings.out) / f"{name}.png", lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    print(f"plot:    {path}")


def write(path: Path, write: Callable[[Path], Any]) -> Path:
    """Writes a file atomically, and its folder if there is none: `write` gets the temporary path that replaces it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary)
    return path
