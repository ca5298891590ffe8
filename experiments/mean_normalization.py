"""Does mean normalization do what the notes say of it: a sensible first guess for a new user, and fewer steps?

The notes' model w . x + b, fitted by Adam and by gradient descent to the raw ratings, to the ratings less each film's
mean, and less the film's and then the user's mean. For each, l2 is chosen on a validation part of train. One user is
added who has no ratings at all: the penalty leaves her (w, b) = 0, so that she is predicted mu(i), or 0 without mu.
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
    goals: tuple[float, ...] = (1.0, 0.97, 0.95, 0.94, 0.93)  # validation RMSEs to count the steps to


NORMALIZATIONS = {
    "none": None,
    "film": data.normalize.means_by_item,
    "film, then user": data.normalize.means_by_item_then_user,
}


def main(settings: Settings) -> dict[str, Any]:
    """Counts the steps to the same validation errors; returns what it wrote to OUT."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    train, test = harness.split(dataset, settings)
    part, validation = data.splits.random(train, test_fraction=0.1, rng=settings.seed)
    ways = {
        "Adam": (optax.adam(settings.adam_rate), settings.adam_iterations),
        "descent": (optax.sgd(settings.descent_rate), settings.descent_iterations),
    }
    rows: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    curves: dict[tuple[str, str], np.ndarray] = {}
    for way, (optimizer, iterations) in ways.items():
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
            on_test = harness.errors(factors, test, dataset.scale)["rmse"]
            rows.append(
                {"optimizer": way, "mean of": name, "l2": l2}
                | {f"steps to {goal:g}": n or "never" for goal, n in steps.items()}
                | {"best validation RMSE": float(trace.min()), "test RMSE": on_test}
            )
            key = f"{way}_{name.replace(', then ', '_')}".lower()
            values |= {f"{key}_steps_to_{goal:g}": n for goal, n in steps.items()}  # 0: never
            values |= {f"{key}_validation_rmse": float(trace.min())}
            values |= {f"{key}_test_rmse": on_test, f"{key}_l2": l2}
            curves[way, name] = trace
    harness.table(rows)
    values |= _newcomer(train, settings)
    harness.plot("mean_normalization", settings, lambda axes: _draw(axes, curves, settings))
    return harness.report("mean_normalization", settings, values, time.perf_counter() - start)


def _fit(
    train: Ratings,
    name: str,
    l2: float,
    optimizer: optax.GradientTransformation,
    iterations: int,
    settings: Settings,
    callback: Any = None,
) -> tuple[Factors, Means | None]:
    """Factors fitted to what the means leave, with the means put where prediction adds them."""
    normalization = NORMALIZATIONS[name]
    means = None if normalization is None else normalization(train)
    left = train if means is None else data.normalize.subtract(train, means)
    key = jax.random.key(settings.seed)
    init = models.init(train.n_users, train.n_items, settings.rank, key=key, item_bias=False)
    whole = (lambda f: f) if means is None else (lambda f: data.normalize.add_means(f, means))
    factors, _ = fit(
        partial(losses.closed_form.cost, l2=l2),
        init,
        [data.linked(left)],
        optimizer=optimizer,
        key=key,
        epochs=iterations,
        progress=False,
        callback=None if callback is None else lambda _, state, __: callback(whole(state.params)),
    )
    return whole(factors), means


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


def _newcomer(train: Ratings, settings: Settings) -> dict[str, float]:
    """What a user without ratings is predicted, and how far that is from the films' means."""
    wider = Ratings(train.user, train.item, train.value, train.n_users + 1, train.n_items)
    mu = data.normalize.means_by_item(train).item
    values = {}
    for name in ("none", "film"):
        factors, _ = _fit(
            wider, name, settings.l2s[0], optax.adam(settings.adam_rate), settings.adam_iterations, settings
        )
        hers = np.asarray(models.predict_all(factors))[-1]
        away = float(np.abs(hers - mu).max())
        print(f"A user without ratings, mean of {name}: predicted {hers.min():.2f} to {hers.max():.2f}; ", end="")
        print(f"at most {away:.2g} from the films' means")
        values[f"newcomer_{name}_away_from_mu"] = away
    return values


def _draw(axes: Any, curves: dict[tuple[str, str], np.ndarray], settings: Settings) -> None:
    for (way, name), trace in curves.items():
        style = "-" if way == "Adam" else "--"
        color = dict(zip(NORMALIZATIONS, ("tab:gray", "tab:blue", "tab:orange"), strict=True))[name]
        axes.semilogx(np.arange(1, len(trace) + 1), trace, style, color=color, label=f"{way}, mean of {name}")
    axes.set(xlabel="step", ylabel="validation RMSE", title=f"Mean normalization on {settings.data} {settings.split}")
    axes.set_ylim(top=min(2.0, max(trace.max() for trace in curves.values())))
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
