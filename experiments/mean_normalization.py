"""Does mean normalization do what the notes say: a sensible first guess for a new user, and fewer steps?

The notes' model w . x + b, fitted by Adam and by gradient descent to the raw ratings, to the ratings minus each film's
mean, and to these minus each user's mean residual. For each, l2 is chosen on a validation part of train. One user
without ratings is added: the penalty keeps that user's (w, b) at 0, so the predictions are mu(i), or 0 without mu.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import harness
from jaxrec import data, losses, metrics, models
from jaxrec.data.normalize import Means
from jaxrec.training import fit
from jaxrec.types import Factors, Ratings


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The notes' optimizer and plain gradient descent, and a grid for l2."""

    rank: int = 8
    l2s: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0, 30.0)
    adam_rate: float = 0.1
    adam_iterations: int = 200
    descent_rate: float = 0.002
    descent_iterations: int = 1000
    goals: tuple[float, ...] = (1.0, 0.97, 0.95, 0.94, 0.93)  # validation RMSEs; the steps to reach each are counted


NORMALIZATIONS = {
    "none": None,
    "film": data.normalize.means_by_item,
    "film, then user": data.normalize.means_by_item_then_user,
}


def main(settings: Settings) -> dict[str, Any]:
    """Counts the steps to each validation RMSE; returns what it wrote to OUT."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    optimizers = {
        "Adam": (optax.adam(settings.adam_rate), settings.adam_iterations),
        "descent": (optax.sgd(settings.descent_rate), settings.descent_iterations),
    }
    rows: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    fitted: dict[str, Factors] = {}
    curves: dict[tuple[str, str], np.ndarray] = {}
    for optimizer_name, (optimizer, iterations) in optimizers.items():
        best: dict[str, tuple[float, np.ndarray]] = {}
        for name in NORMALIZATIONS:
            traces = {
                l2: _trace(part, validation, name, l2, optimizer, iterations, dataset.scale, settings)
                for l2 in settings.l2s
            }
            l2 = min(traces, key=lambda l2, traces=traces: traces[l2].min())  # type: ignore[misc]
            best[name] = l2, traces[l2]
        for name, (l2, trace) in best.items():
            steps = {goal: int((trace <= goal).argmax() + 1) * bool((trace <= goal).any()) for goal in settings.goals}
            factors = _fit(train, name, l2, optimizer, int(trace.argmin()) + 1, settings)[0]
            fitted[f"{optimizer_name}, mean of {name}"] = factors
            on_test = harness.errors(factors, test, dataset.scale)
            rows.append(
                {"optimizer": optimizer_name, "mean of": name, "l2": l2}
                | {f"to {goal:g}": n or "never" for goal, n in steps.items()}
                | {
                    "validation RMSE": float(trace.min()),
                    "test RMSE": harness.with_error(on_test["rmse"], on_test.get("rmse_se")),
                }
            )
            key = f"{optimizer_name}_{name.replace(', then ', '_')}".lower()
            values |= {f"{key}_steps_to_{goal:g}": n for goal, n in steps.items()}  # 0: never
            values |= {f"{key}_validation_rmse": float(trace.min())}
            values |= {f"{key}_test_{k}": v for k, v in on_test.items() if k != "mae"} | {f"{key}_l2": l2}
            curves[optimizer_name, name] = trace
    harness.table(rows)
    without = tuple(f"{optimizer_name}, mean of none" for optimizer_name in optimizers)
    comparison = harness.compare_errors(fitted, without, test, dataset.scale)
    values |= _user_without_ratings(train, settings)
    harness.plot("mean_normalization", settings, lambda axes: _draw(axes, curves, settings))
    return harness.report("mean_normalization", settings, values, time.perf_counter() - start, comparison=comparison)


def _fit(
    train: Ratings,
    name: str,
    l2: float,
    optimizer: optax.GradientTransformation,
    iterations: int,
    settings: Settings,
    callback: Any = None,
) -> tuple[Factors, Means | None]:
    """(factors, means): fitted to the ratings minus the means, which are then added to the factors."""
    normalization = NORMALIZATIONS[name]
    means = None if normalization is None else normalization(train)
    residual = train if means is None else data.normalize.subtract(train, means)
    key = jax.random.key(settings.seed)
    init = models.init(train.n_users, train.n_items, settings.rank, key=key, item_bias=False)
    with_means = (lambda f: f) if means is None else (lambda f: data.normalize.add_means(f, means))
    factors, _ = fit(
        partial(losses.closed_form.cost, l2=l2),
        init,
        [data.linked(residual)],
        optimizer=optimizer,
        key=key,
        epochs=iterations,
        progress=False,
        callback=None if callback is None else lambda _, state, __: callback(with_means(state.params)),
    )
    return with_means(factors), means


def _trace(
    part: Ratings,
    validation: Ratings,
    name: str,
    l2: float,
    optimizer: optax.GradientTransformation,
    iterations: int,
    scale: tuple[float, float] | None,
    settings: Settings,
) -> np.ndarray:
    """The validation RMSE after every step."""
    user, item, y = (jnp.asarray(column) for column in (validation.user, validation.item, validation.value))

    @jax.jit
    def rmse(factors: Factors) -> jax.Array:
        prediction = models.predict(factors, user, item)
        return metrics.rmse(prediction if scale is None else jnp.clip(prediction, *scale), y)

    errors: list[jax.Array] = []
    _fit(part, name, l2, optimizer, iterations, settings, callback=lambda f: errors.append(rmse(f)))
    return np.array([float(error) for error in errors])


def _user_without_ratings(train: Ratings, settings: Settings) -> dict[str, float]:
    """The largest distance of the predictions for a user without ratings from the films' means, by normalization."""
    with_new_user = Ratings(train.user, train.item, train.value, train.n_users + 1, train.n_items)
    mu = data.normalize.means_by_item(train).item
    values = {}
    for name in ("none", "film"):
        factors, _ = _fit(
            with_new_user, name, settings.l2s[0], optax.adam(settings.adam_rate), settings.adam_iterations, settings
        )
        predicted = np.asarray(models.predict_all(factors))[-1]
        distance = float(np.abs(predicted - mu).max())
        print(f"A user without ratings, mean of {name}: predicted ", end="")
        print(f"{predicted.min():.2f} to {predicted.max():.2f}; at most {distance:.2g} from the films' means")
        values[f"newcomer_{name}_away_from_mu"] = distance
    return values


def _draw(axes: Any, curves: dict[tuple[str, str], np.ndarray], settings: Settings) -> None:
    for (optimizer, name), trace in curves.items():
        style = "-" if optimizer == "Adam" else "--"
        color = dict(zip(NORMALIZATIONS, ("tab:gray", "tab:blue", "tab:orange"), strict=True))[name]
        axes.semilogx(np.arange(1, len(trace) + 1), trace, style, color=color, label=f"{optimizer}, mean of {name}")
    axes.set(xlabel="step", ylabel="validation RMSE", title=f"Mean normalization on {settings.data} {settings.split}")
    axes.set_ylim(top=min(2.0, max(trace.max() for trace in curves.values())))
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
