"""A grid of hyper-parameters as one compiled program: which point is best, and is vmapping faster than a loop?

Two trainings, each a pure function of a member (a dict of numbers) and the data: ALS as a scan of sweeps, and Adam as
`training.descend`. Folds are masks: every rating carries its fold's number, and a member leaves one fold out. All l2,
learning rates, initial scales, seeds and folds share one compilation. The values with the lowest validation RMSE,
averaged over folds and seeds, are chosen; each training then runs with them on all of train, and test is read once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import harness
from jaxrec import data, losses, models, solvers
from jaxrec.training import descend, grid, grid_points
from jaxrec.types import Factors, Linked, Rows, Total


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The grids."""

    rank: int = 8
    folds: int = 3
    seeds: tuple[int, ...] = (0, 1)
    als_l2s: tuple[float, ...] = (8.0, 10.0, 12.0, 14.0)
    als_l2_biases: tuple[float, ...] = (1.0, 3.0)
    sweeps: int = 20
    adam_l2s: tuple[float, ...] = (8.0, 12.0)
    rates: tuple[float, ...] = (0.03, 0.1)
    scales: tuple[float, ...] = (0.1, 0.3)
    steps: int = 100
    batch_size: int = 8  # members vmapped together, compared with one at a time


def main(settings: Settings) -> dict[str, Any]:
    """Runs both grids, vmapped and one member at a time; returns what it wrote to OUT/grid_search.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    fold = np.arange(len(train)) % settings.folds
    np.random.default_rng(settings.seed).shuffle(fold)
    tagged = replace(train, weights=fold)  # the fold's number is carried in place of a weight
    mu = jnp.asarray(train.value.mean())
    sides = data.rows(tagged, "user"), data.rows(tagged, "item")
    linked = data.linked(tagged)
    every_fold = {"seed": settings.seeds, "fold": tuple(map(float, range(settings.folds)))}

    searches: dict[str, tuple[Any, dict[str, Array], tuple[Any, ...], tuple[str, ...]]] = {
        "als": (
            partial(als, settings=settings),
            grid_points(l2=settings.als_l2s, l2_bias=settings.als_l2_biases, **every_fold),
            (*sides, mu, dataset.scale),
            ("l2", "l2_bias"),
        ),
        "adam": (
            partial(adam, settings=settings),
            grid_points(l2=settings.adam_l2s, rate=settings.rates, scale=settings.scales, **every_fold),
            (linked, mu, dataset.scale),
            ("l2", "rate", "scale"),
        ),
    }
    fitted: dict[str, Factors] = {"damped biases": models.baselines.damped_biases(train)}
    rows: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    for name, (run, members, arrays, chosen_by) in searches.items():
        error = lambda member, *arrays, run=run: run(member, *arrays)[1]
        timed = {n: _timed(error, members, arrays, batch_size=n) for n in (1, settings.batch_size)}
        errors = np.asarray(timed[1][0])
        deviation = float(np.abs(errors - np.asarray(timed[settings.batch_size][0])).max())
        best, validation = choose(members, errors, chosen_by)
        # Fold -1 does not exist, so this member is fitted on all of train.
        member = {k: jnp.asarray(v, members[k].dtype) for k, v in best.items()}
        member |= {"seed": jnp.asarray(settings.seed), "fold": jnp.asarray(-1.0)}
        factors = jax.jit(lambda m, *a, run=run: run(m, *a)[0])(member, *arrays)
        fitted[name] = factors
        on_test = harness.errors(factors, test, dataset.scale)
        (compile_seconds, loop_seconds), (_, vmap_seconds) = timed[1][1:], timed[settings.batch_size][1:]
        rows.append(
            {"grid": name, "members": len(errors), "compile s": compile_seconds, "in turn s": loop_seconds}
            | {f"{settings.batch_size} at once s": vmap_seconds, "best": str(best)}
            | {"validation RMSE": validation}
            | {"test RMSE": harness.with_error(on_test["rmse"], on_test.get("rmse_se"))}
        )
        values |= {f"{name}_{k}": v for k, v in best.items()}
        values |= {
            f"{name}_members": len(errors),
            f"{name}_validation_rmse": validation,
            f"{name}_test_rmse": on_test["rmse"],
        }
        values |= {f"{name}_test_rmse_se": on_test["rmse_se"]} if "rmse_se" in on_test else {}
        values |= {f"{name}_compile_seconds": compile_seconds, f"{name}_in_turn_seconds": loop_seconds}
        values |= {f"{name}_at_once_seconds": vmap_seconds, f"{name}_at_once_differs_by": deviation}
        curves[name] = np.sort(errors)
    harness.table(rows)
    comparison = harness.compare_errors(fitted, ("damped biases",), test, dataset.scale)
    harness.plot("grid_search", settings, lambda axes: _draw(axes, curves, settings))
    return harness.report("grid_search", settings, values, time.perf_counter() - start, comparison=comparison)


def als(
    member: dict[str, Array], by_user: Rows, by_item: Rows, mu: Array, scale: Any, *, settings: Settings
) -> tuple[Factors, Array]:
    """(factors, validation RMSE) of one member: a scan of sweeps over the ratings outside its fold."""
    training_rows = lambda rows: replace(rows, buckets=tuple(_leave_out(b, member["fold"]) for b in rows.buckets))
    sides = training_rows(by_user), training_rows(by_item)
    init = models.init(
        len(by_user.position), len(by_item.position), settings.rank, key=jax.random.key(member["seed"]), mu=mu
    )
    step = lambda factors, _: solvers.sweep(factors, *sides, l2=member["l2"], l2_bias=member["l2_bias"])
    factors, _ = jax.lax.scan(step, init, length=settings.sweeps)
    held_out = replace(by_user, buckets=tuple(_only(bucket, member["fold"]) for bucket in by_user.buckets))
    return factors, _rmse(factors, held_out, scale)


def adam(
    member: dict[str, Array], linked: Linked, mu: Array, scale: Any, *, settings: Settings
) -> tuple[Factors, Array]:
    """(factors, validation RMSE) of one member: full-batch Adam on the closed-form gradient."""
    n_users, n_items = len(linked.user_start) - 1, len(linked.item_start) - 1
    key = jax.random.key(member["seed"])
    init = models.init(n_users, n_items, settings.rank, key=key, scale=member["scale"], mu=mu)
    cost = lambda factors, batch: losses.closed_form.cost(factors, batch, l2=member["l2"], l2_bias=3.0)
    batches = jax.tree.map(lambda leaf: leaf[None], _leave_out(linked, member["fold"]))
    factors, _ = descend(cost, init, batches, optimizer=optax.adam(member["rate"]), key=key, steps=settings.steps)
    return factors, _rmse(factors, _only(linked, member["fold"]), scale)


def _leave_out(ratings: Any, fold: Array) -> Any:
    return replace(ratings, where=ratings.where & (ratings.weights != fold), weights=None)


def _only(ratings: Any, fold: Array) -> Any:
    return replace(ratings, where=ratings.where & (ratings.weights == fold), weights=None)


def _rmse(factors: Factors, ratings: Any, scale: Any) -> Array:
    def clipped(prediction: Array, target: Array, **masks: Any) -> Total:
        return losses.squared_error(prediction if scale is None else jnp.clip(prediction, *scale), target, **masks)

    return jnp.sqrt(losses.data_term(factors, ratings, loss=clipped).mean())


def choose(members: dict[str, Array], errors: np.ndarray, names: tuple[str, ...]) -> tuple[dict[str, float], float]:
    """(values of `names`, their error): the lowest error, averaged over folds and seeds; NaN is never chosen."""
    columns = np.stack([np.asarray(members[name]) for name in names], axis=1)
    combinations, which = np.unique(columns, axis=0, return_inverse=True)
    means = np.array([errors[which.reshape(-1) == k].mean() for k in range(len(combinations))])
    best = int(np.nanargmin(means))
    return {name: float(f"{x:.6g}") for name, x in zip(names, combinations[best], strict=True)}, float(means[best])


def _timed(run: Callable[..., Any], members: Any, arrays: Any, *, batch_size: int) -> tuple[Array, float, float]:
    """(errors, compile seconds: the first call's minus the second's, seconds of the second call)."""
    first = time.perf_counter()
    grid(run, members, *arrays, batch_size=batch_size, progress=False)
    second = time.perf_counter()
    errors = grid(run, members, *arrays, batch_size=batch_size)
    third = time.perf_counter()
    return errors, (second - first) - (third - second), third - second


def _draw(axes: Any, curves: dict[str, np.ndarray], settings: Settings) -> None:
    for name, errors in curves.items():
        axes.plot(np.arange(1, len(errors) + 1), errors, marker=".", label=name)
    axes.set(xlabel="members, best first", ylabel="validation RMSE", title=f"Grids on {settings.data} {settings.split}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
