"""Real ratings in, recommendations out: the demo.

Loads MovieLens 100K, trains matrix factorization by alternating least squares, and prints its test error with those of
the baselines, the films related to a given film, and recommendations for a user. If no ratings can be loaded, it says
so and runs on synthetic ratings whose noise is known.
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments import harness
from jaxrec import data, models, recommend, related, solvers
from jaxrec.types import Dataset, Factors, Ratings, SolverInfo


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Rank and penalties as experiments.als chose them on a validation part of train."""

    rank: int = 8
    l2: float = 12.0
    l2_bias: float = 3.0
    sweeps: int = 30
    film: str = "Star Wars (1977)"  # a title, or a part of one
    user: int = 196  # a raw id


def main(settings: Settings) -> dict[str, Any]:
    """Trains, tests, recommends; returns what it wrote to OUT/quickstart.json."""
    start = time.perf_counter()
    try:
        dataset = harness.load(settings)
    except data.DatasetNotFound as error:
        print(f"\nNo real ratings could be had, so what follows is SYNTHETIC.\n{error}\n")
        settings = dataclasses.replace(settings, data="synthetic", split="random", film="Film 1")
        dataset = harness.load(settings)
    film, user = _find(dataset, settings)  # before training, so that a misspelled title fails at once
    train, test = harness.split(dataset, settings)

    on_test = lambda factors: harness.errors(factors, test, dataset.scale)
    baselines = {
        "global mean": models.baselines.global_mean(train),
        "user mean": models.baselines.user_mean(train),
        "item mean": models.baselines.item_mean(train),
        "damped biases": models.baselines.damped_biases(train),
    }
    factors, trace = _train(train, test, dataset, settings)
    fitted = {name: on_test(f) for name, f in baselines.items()} | {f"ALS, rank {settings.rank}": on_test(factors)}
    harness.table([{"model": name} | harness.error_cells(e) for name, e in fitted.items()])
    by_als = f"ALS, rank {settings.rank}"
    comparison = harness.compare_errors({**baselines, by_als: factors}, tuple(baselines), test, dataset.scale)
    if dataset.name == "synthetic":
        print("  The noise alone is 0.5: no model can honestly be below it.\n")
    _show(factors, train, dataset, film, user)

    harness.plot("quickstart", settings, lambda axes: _draw(axes, trace, fitted, dataset.name))
    values: dict[str, Any] = {f"test_{name}": value for name, value in on_test(factors).items()}
    values["sweeps"] = len(trace)
    values |= {f"{name.replace(' ', '_')}_test_rmse": fitted[name]["rmse"] for name in baselines}
    return harness.report("quickstart", settings, values, time.perf_counter() - start, comparison=comparison)


def _train(train: Ratings, test: Ratings, dataset: Dataset, settings: Settings) -> tuple[Factors, list[Any]]:
    """(factors by ALS, [(sweep, train RMSE, test RMSE), ...]); the errors are for the plot and choose nothing."""
    trace: list[Any] = []

    def watch(step: int, factors: Factors, _: SolverInfo) -> None:
        rmses = [harness.errors(factors, part, dataset.scale)["rmse"] for part in (train, test)]
        trace.append((step, *rmses))

    init = models.init(
        train.n_users, train.n_items, settings.rank, key=jax.random.key(settings.seed), mu=float(train.value.mean())
    )
    by_user, by_item = data.rows(train, "user"), data.rows(train, "item")
    factors, info = solvers.als(
        (by_user, by_item), init=init, l2=settings.l2, l2_bias=settings.l2_bias, sweeps=settings.sweeps, callback=watch
    )
    print(f"{'converged' if info.converged else 'stopped'} after {info.steps} sweeps")
    return factors, trace


def _find(dataset: Dataset, settings: Settings) -> tuple[int, int]:
    """(film, user): the positions of those that the settings name."""
    titles = np.char.lower(np.asarray(dataset.titles))
    films = np.flatnonzero(np.char.find(titles, settings.film.lower()) >= 0)
    if len(films) == 0:
        raise ValueError(f"film: no title contains {settings.film!r}.")
    users = np.flatnonzero(dataset.ratings.user_ids == settings.user)
    if len(users) == 0:
        raise ValueError(f"user: {settings.user} is not among the {dataset.ratings.n_users} users.")
    return int(films[0]), int(users[0])


def _show(factors: Factors, train: Ratings, dataset: Dataset, film: int, user: int) -> None:
    """Prints the films related to a film, a user's highest ratings, and recommendations for the user."""
    titles, user_ids, item_ids = (np.asarray(a) for a in (dataset.titles, train.user_ids, train.item_ids))
    print(f"Related to {titles[film]}:")
    # Films with few ratings have features near 0 and so are close to one another: show only films with 50 ratings.
    count = dict(zip(item_ids.tolist(), np.bincount(train.item, minlength=train.n_items), strict=True))
    near = related(factors, train, item_ids[film], k=train.n_items - 1, titles=titles)
    popular = [k for k, item in enumerate(near.item.tolist()) if count[item] >= 50]
    for k in popular[:8]:
        print(f"  {near.distance[k]:6.3f}  {near.title[k]}")

    rated = train.take(train.user == user)
    print(f"\nUser {user_ids[user]} rated {len(rated)} films; the best of them:")
    for k in np.argsort(-rated.value, kind="stable")[:5]:
        print(f"  {rated.value[k]:6.1f}  {titles[rated.item[k]]}")
    print("and the best predictions for the others:")
    best = recommend(factors, train, user_ids[user], k=10, titles=titles)
    for score, title in zip(best.score, best.title, strict=True):
        print(f"  {score:6.2f}  {title}")
    print()


def _draw(axes: Any, trace: list[Any], fitted: dict[str, dict[str, float]], name: str) -> None:
    steps, on_train, on_test = zip(*trace, strict=True)
    axes.plot(steps, on_train, color="tab:blue", alpha=0.5, label="ALS, train")
    axes.plot(steps, on_test, color="tab:blue", label="ALS, test")
    for baseline, style in (("damped biases", "--"), ("item mean", ":")):
        axes.axhline(fitted[baseline]["rmse"], color="gray", linestyle=style, label=f"{baseline}, test")
    axes.set(xlabel="sweep", ylabel="RMSE", title=f"Matrix factorization on {name}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="center right")


if __name__ == "__main__":
    harness.run(main, Settings)
