"""jaxrec beside published figures: the same ratings, the same splits, the same metric.

Matrix factorization with biases by ALS, l2 scaled by a power of each row's rating count, on ml-100k's u1 .. u5 and on
random five folds of ml-100k and ml-1m. In two stages, so that test cannot choose:

    python -m experiments.published --stage choose     picks each fold's settings on a validation part of its train
    python -m experiments.published                    fits those settings on train and reads test, once

The first writes experiments/published_choices.json, which is committed before the second is run; the second refuses a
fold that has no choice there. Both go on where they stopped: every fold is written as soon as it is done.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import harness
from jaxrec import check, data, models, solvers
from jaxrec.types import Dataset, Factors, Ratings

CHOICES = Path(__file__).with_name("published_choices.json")

# RMSE, MAE; the sources' own figures. Surprise: its README, random 5-fold, default settings, and its SVD tuned over 32
# settings (measured with it, see the project's notes). GC-MC, IMC-GAE, GLocal-K: their papers, on u1 alone.
PUBLISHED: dict[str, dict[str, tuple[float, float | None]]] = {
    "ml-100k u1": {"GC-MC": (0.910, None), "GC-MC, features": (0.905, None), "GLocal-K": (0.889, None)},
    "ml-100k u1-u5": {},
    "ml-100k 5-fold": {
        "Surprise baseline": (0.944, 0.748),
        "Surprise kNN-baseline": (0.931, 0.733),
        "Surprise SVD": (0.934, 0.737),
        "Surprise SVD, tuned": (0.911, None),
        "Surprise SVD++": (0.919, 0.721),
    },
    "ml-1m 5-fold": {
        "Surprise baseline": (0.909, 0.719),
        "Surprise kNN-baseline": (0.895, 0.706),
        "Surprise SVD": (0.873, 0.686),
        "Surprise SVD++": (0.862, 0.672),
    },
}


@dataclass(frozen=True)
class Settings:
    """The stage, and what it may choose from."""

    stage: str = "test"  # or 'choose'
    tables: tuple[str, ...] = ("ml-100k u1-u5", "ml-100k 5-fold", "ml-1m 5-fold")
    ranks: tuple[int, ...] = (4, 8, 12, 16)
    l2s: tuple[float, ...] = (8.0, 10.0, 12.0, 14.0)
    l2_biases: tuple[float, ...] = (3.0,)
    exponents: tuple[float, ...] = (0.0, 0.25, 0.5)
    sweeps: int = 40
    seed: int = 0
    out: str = "results"


def main(settings: Settings) -> dict[str, Any]:
    """One stage; returns the choices, or what it wrote to OUT/published.json."""
    check.choice("stage", settings.stage, ("choose", "test"))
    for name in settings.tables:
        check.choice("tables", name, tuple(PUBLISHED)[1:])
    return _choose_all(settings) if settings.stage == "choose" else _test_all(settings)


def folds(table: str, seed: int) -> Iterator[tuple[str, Dataset, Ratings, Ratings]]:
    """(name, dataset, train, test) of every fold of a table."""
    name, protocol = table.split(" ", 1)
    dataset = data.load(name)
    if protocol == "u1-u5":
        for fold in ("u1", "u2", "u3", "u4", "u5"):
            yield f"{name} {fold}", dataset, *data.splits.canonical(dataset, fold)
    else:
        for k, (train, test) in enumerate(data.splits.k_fold(dataset.ratings, 5, rng=seed)):
            yield f"{table} {k}", dataset, train, test


def fit(train: Ratings, choice: dict[str, Any], settings: Settings, layouts: Any = None) -> Factors:
    """ALS; l2 of a row is l2 * (its rating count / the mean count) ** exponent."""
    by_user, by_item = layouts or _layouts(train)

    def strengths(ids: np.ndarray, size: int) -> jax.Array:
        count = np.bincount(ids, minlength=size)
        scale = (np.maximum(count, 1) / count.mean()) ** choice["exponent"]
        return jnp.asarray(choice["l2"] * scale, jnp.float32)

    l2 = strengths(train.user, train.n_users), strengths(train.item, train.n_items)
    key, mu = jax.random.key(settings.seed), float(train.value.mean())
    init = models.init(train.n_users, train.n_items, choice["rank"], key=key, mu=mu)
    strength = {"l2": l2, "l2_bias": choice["l2_bias"]}
    return solvers.als(by_user, by_item, init, **strength, sweeps=settings.sweeps, progress=False)[0]


def choose(train: Ratings, dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """The settings with the lowest RMSE on a tenth of train, fitted on the rest; test is not an argument."""
    part, validation = data.splits.random(train, test=0.1, rng=settings.seed)
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


def _layouts(ratings: Ratings) -> Any:
    return data.rows(ratings, "user", growth=2.0), data.rows(ratings, "item", growth=2.0)


def _choose_all(settings: Settings) -> dict[str, Any]:
    choices = json.loads(CHOICES.read_text()) if CHOICES.exists() else {}
    for table in settings.tables:
        for name, dataset, train, _ in folds(table, settings.seed):
            if name not in choices:
                choices[name] = choose(train, dataset, settings)
                _keep(choices)
            print(f"{name}: {choices[name]}", flush=True)
    print(f"\n{CHOICES}: commit it, then run without --stage.")
    return choices


def _keep(choices: dict[str, Any]) -> None:
    text = json.dumps(choices, indent=1) + "\n"
    harness.write(CHOICES, lambda temporary: temporary.write_text(text))


def _test_all(settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    choices = json.loads(CHOICES.read_text()) if CHOICES.exists() else {}
    done: dict[str, Any] = {}
    earlier = Path(settings.out) / "published.json"
    if earlier.exists():
        done = json.loads(earlier.read_text())["metrics"]["rows"]
    result: dict[str, Any] = {}
    for table in settings.tables:
        for name, dataset, train, test in folds(table, settings.seed):
            if name not in choices:
                raise ValueError(
                    f"{name}: no settings chosen in {CHOICES.name}. Run with --stage choose, and commit it."
                )
            if done.get(name, {}).get("choice") != choices[name]:
                began = time.perf_counter()
                errors = harness.errors(fit(train, choices[name], settings), test, dataset.scale)
                seconds = time.perf_counter() - began
                biases = harness.errors(models.baselines.damped_biases(train), test, dataset.scale)
                done[name] = errors | {f"damped_biases_{k}": v for k, v in biases.items()}
                done[name] |= {"choice": choices[name], "seconds": round(seconds, 3), "table": table}
            result = harness.report("published", settings, {"rows": done}, time.perf_counter() - start)
            print(f"{name}: RMSE {done[name]['rmse']:.4f}, MAE {done[name]['mae']:.4f}", flush=True)
    harness.table(_beside(done, settings))
    harness.plot("published", settings, lambda axes: _draw(axes, _beside(done, settings)))
    return result


def _beside(done: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Our means over a table's folds, and what others published for it."""
    lines = []
    for table in settings.tables:
        rows = [row for row in done.values() if row["table"] == table]
        mean = lambda key, rows=rows: float(np.mean([row[key] for row in rows]))
        ours = {"ALS with biases": ("rmse", "mae"), "damped biases": ("damped_biases_rmse", "damped_biases_mae")}
        for model, (rmse, mae) in ours.items():
            lines.append({"data": table, "model": f"jaxrec: {model}", "RMSE": mean(rmse), "MAE": mean(mae)})
        for model, (error, absolute) in PUBLISHED[table].items():
            lines.append({"data": table, "model": model, "RMSE": error, "MAE": absolute or "-"})
        if table == "ml-100k u1-u5":
            first = done["ml-100k u1"]
            lines.append({"data": "ml-100k u1", "model": "jaxrec: ALS with biases"})
            lines[-1] |= {"RMSE": first["rmse"], "MAE": first["mae"]}
            for model, (error, absolute) in PUBLISHED["ml-100k u1"].items():
                lines.append({"data": "ml-100k u1", "model": model, "RMSE": error, "MAE": absolute or "-"})
    return lines


def _draw(axes: Any, lines: list[dict[str, Any]]) -> None:
    names = [f"{line['data']}: {line['model']}" for line in lines][::-1]
    colors = ["tab:blue" if "jaxrec" in name else "tab:gray" for name in names]
    axes.barh(names, [line["RMSE"] for line in lines][::-1], color=colors)
    axes.set(xlabel="RMSE on test", xlim=(0.8, 1.0))
    axes.tick_params(axis="y", labelsize=6)


if __name__ == "__main__":
    harness.run(main, Settings)
