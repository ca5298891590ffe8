"""Which films should a new user be asked about, and are lists ranked by a lower bound rated higher?

In each of five folds a fifth of the users is new: the Gibbs sampler (a noise precision per user and item, no features)
sees only the ratings of the others. A third of each new user's ratings is test; the rest are the films that the user
can be asked about, since they cannot answer for a film they have not seen. After 0, 1, 2, ... answers the user's
posterior (`bayes.new_user`) predicts the test ratings, which choose nothing. The policies that ask:

- reduction: the film whose answer is expected to lower the summed variance of all films' predictions the most;
- reduction, rated: the same, each film weighted by how often the other users rated it, as a measure of how often users
  meet it;
- popular: the film rated most often; spread: the film whose own prediction has the largest variance; random: any film.

Then the lists: of a user's test films the 3 with the highest predicted mean, or with the highest lower bound,
mean - z(share) * deviation, after answers to random questions. `rating`: the deviation of the user's next rating;
`taste`: the same without its noise. The share is chosen on half of the new users, by the mean rating of the picks, and
reported on the other half.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import ndtri

from experiments import harness
from jaxrec import bayes, data
from jaxrec.bayes import new_user
from jaxrec.evaluation import Evaluation
from jaxrec.types import Ratings

BOOTSTRAPS = 500


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The sampler, the new users, and the questions."""

    rank: int = 10
    sweeps: int = 200
    burn_in: int = 40
    every: int = 4  # sweeps between kept draws
    chains: int = 2
    folds: int = 5  # how many of the five folds are run
    kept_for_test: float = 0.33  # of each new user's ratings
    pool: int = 128  # at most this many of the other ratings, at random, can be asked about
    asked: tuple[int, ...] = (0, 1, 2, 3, 5, 10)  # numbers of answers to report
    top: int = 3  # picks per user
    bad: float = 2.0  # ratings up to this count as bad
    shares: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class NewUsers(NamedTuple):
    """Ratings of new users in padded rows.

    Attributes:
        item: [users, pool], the films that they can be asked about.
        value: [users, pool], their answers.
        where: [users, pool], False at padding.
        test_item: [users, longest], the films of their test ratings.
        test_value: [users, longest], the test ratings.
        test_where: [users, longest], False at padding.
    """

    item: Any
    value: Any
    where: Any
    test_item: Any
    test_value: Any
    test_where: Any


class Predictions(NamedTuple):
    """Predictions of the test ratings after each number of answers.

    Attributes:
        mean: [..., longest].
        variance: [..., longest], without the noise of a rating.
        noise_variance: [..., longest].
        ess: [...], the effective number of posterior draws.
    """

    mean: Any
    variance: Any
    noise_variance: Any
    ess: Any


# (draws, the user's posterior, candidate films, rating count of every film, key) -> a score per candidate. The
# candidate with the highest score is asked about.
Policy = Callable[[new_user.Draws, new_user.Mixture, Array, Array, Array], Array]


def _reduction_by_count(
    draws: new_user.Draws, posterior: new_user.Mixture, item: Array, count: Array, key: Array
) -> Array:
    return new_user.expected_variance_reduction(draws, posterior, item, weights=count)


POLICIES: dict[str, Policy] = {
    "reduction": lambda draws, posterior, item, *_: new_user.expected_variance_reduction(draws, posterior, item),
    "reduction, rated": _reduction_by_count,
    "popular": lambda draws, posterior, item, count, key: count[item],
    "spread": lambda draws, posterior, item, *_: new_user.posterior_predictive(draws, posterior, item).variance,
    "random": lambda draws, posterior, item, count, key: jax.random.uniform(key, item.shape),
}
BASELINES = ("popular", "random")  # they do not look at the answers


def main(settings: Settings) -> dict[str, Any]:
    """Samples without the new users, asks them, ranks for them; returns what it wrote to OUT/ask.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    scale = dataset.scale or (-np.inf, np.inf)
    rng = np.random.default_rng(settings.seed)
    by_fold: dict[str, list[Predictions]] = {name: [] for name in (*POLICIES, "all")}
    new_by_fold = []
    for fold, (train, new) in enumerate(split(dataset.ratings, settings, rng)):
        keys = jax.random.split(jax.random.key(settings.seed + fold))
        draws = sample(train, settings, keys[0])
        count = np.bincount(train.item, minlength=train.n_items).astype(np.float32)
        user_keys = jax.random.split(keys[1], len(new.item))
        for name in by_fold:
            began = time.perf_counter()
            if name == "all":
                predicted = _after_all_answers(draws, new)
            else:
                predicted = _interviews(draws, new, count, user_keys, policy=name, steps=max(settings.asked))
            by_fold[name].append(Predictions(*(np.asarray(leaf, np.float64) for leaf in predicted)))
            print(f"fold {fold}, {name}: {len(new.item)} users in {time.perf_counter() - began:.1f} s", flush=True)
        new_by_fold.append(new)
    new = NewUsers(*(np.concatenate(column) for column in zip(*new_by_fold, strict=True)))
    predictions = {name: Predictions(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in by_fold.items()}
    print(f"{len(new.item)} new users, {new.test_where.sum()} test ratings, {new.where.sum()} to ask about")

    measured = {name: measure(predicted, new, scale, settings) for name, predicted in predictions.items()}
    values: dict[str, Any] = {"newcomers": len(new.item), "test_ratings": int(new.test_where.sum())}
    for what in next(iter(measured.values())):
        print(f"{what}:")
        cell = lambda policy, n, what=what: harness.with_error(*measured[policy][what][n])
        harness.table([{"answers": n, **{policy: cell(policy, n) for policy in POLICIES}} for n in settings.asked])
        print(f"  given all answers: {cell('all', max(settings.asked))}")
        for policy, by_n in measured.items():
            shown = {f"given_{n}": by_n[what][n] for n in settings.asked}
            shown = {"given_all": by_n[what][max(settings.asked)]} if policy == "all" else shown
            values |= {f"{_label(policy)}_{_label(what)}_{n}": value for n, (value, _) in shown.items()}
            values |= {f"{_label(policy)}_{_label(what)}_{n}_se": error for n, (_, error) in shown.items()}
    print("RMSE less that of random questions, ± its standard error over users:")
    harness.table(_differences(predictions, new, scale, settings, values))
    comparison = {}
    for n in (n for n in settings.asked if n > 0):
        print(f"{n} answers: ", end="")
        errors = {name: squared_errors(predictions[name].mean[:, n], new, scale) for name in POLICIES}
        baselines = [name for name in BASELINES if name in POLICIES]
        comparison[f"given_{n}"] = harness.compare(errors, baselines, metric="squared_error", lower_is_better=True)
    for what, rows in zip(
        ("mean rating", f"share <= {settings.bad:g}"),
        rank(predictions["random"], new, settings, rng, values),
        strict=True,
    ):
        print(f"{what} of the {settings.top} picks among a user's test films (less that of the mean's):")
        harness.table(rows)
    harness.plot("ask", settings, lambda axes: _draw(axes, measured, settings))
    return harness.report("ask", settings, values, time.perf_counter() - start, comparison=comparison)


def split(ratings: Ratings, settings: Settings, rng: np.random.Generator) -> list[tuple[Ratings, NewUsers]]:
    """Per fold: (the ratings of the other users, renumbered from 0; the new users)."""
    ratings = ratings.take(rng.permutation(len(ratings)))
    count = np.bincount(ratings.user, minlength=ratings.n_users)
    is_test = harness.occurrence(ratings.user) < np.maximum(np.round(settings.kept_for_test * count), 1)[ratings.user]
    longest = int(np.bincount(ratings.user[is_test]).max())
    folds: list[tuple[Ratings, NewUsers]] = []
    for new in np.array_split(rng.permutation(np.flatnonzero(count > 1)), 5)[: settings.folds]:
        is_new = np.isin(ratings.user, new)
        others, user = np.unique(ratings.user[~is_new], return_inverse=True)
        train = Ratings(user, ratings.item[~is_new], ratings.value[~is_new], len(others), ratings.n_items)
        asked = _padded(ratings.take(np.flatnonzero(is_new & ~is_test)), new, settings.pool)
        of_new_users = ratings.take(np.flatnonzero(is_new & is_test))
        test = _padded(of_new_users, new, longest)
        harness.audit(ratings.take(np.flatnonzero(~is_new)), of_new_users, settings, name=f"fold {len(folds)}")
        folds.append((train, NewUsers(*asked, *test)))
    return folds


def _padded(ratings: Ratings, users: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(item, value, where) [users, longest]: the first `longest` ratings of each user, padded."""
    item, value = np.zeros((len(users), longest), np.int32), np.zeros((len(users), longest), np.float32)
    where = np.zeros((len(users), longest), bool)
    row = np.zeros(ratings.n_users, np.int64)
    row[users] = np.arange(len(users))
    column = harness.occurrence(ratings.user)
    fits = column < longest
    position = row[ratings.user[fits]], column[fits]
    item[position], value[position], where[position] = ratings.item[fits], ratings.value[fits], True
    return item, value, where


def sample(train: Ratings, settings: Settings, key: Array) -> new_user.Draws:
    """Posterior draws given the ratings of the other users."""
    keys, kept, mu = jax.random.split(key), [], float(train.value.mean())
    bayes.gibbs(
        data.dense(train),
        init=bayes.init_chains(train.n_users, train.n_items, settings.rank, key=keys[0], chains=settings.chains),
        key=keys[1],
        mu=mu,
        sweeps=settings.sweeps,
        burn_in=settings.burn_in,
        sweeps_per_call=settings.every,
        callback=lambda step, state, _: kept.append(state) if step > settings.burn_in else None,
        progress=False,
    )
    print(f"shape of the users' row precisions: {float(kept[-1].users.row_precision_shape.mean()):.2f}")
    return new_user.draws(kept, mu=mu)


@partial(jax.jit, static_argnames=("policy", "steps"))
def _interviews(
    draws: new_user.Draws, new: NewUsers, count: Array, keys: Array, *, policy: str, steps: int
) -> Predictions:
    """Per new user: predictions of the test films after 0 .. steps answers."""

    def interview(args: tuple[NewUsers, Array]) -> Predictions:
        user, key = args

        def step(asked: Array, key: Array) -> tuple[Array, Predictions]:
            posterior, predicted = _predict(draws, user, asked)
            unasked = user.where & ~asked
            score = jnp.where(unasked, POLICIES[policy](draws, posterior, user.item, count, key), -jnp.inf)
            return asked | (unasked & (jnp.arange(len(unasked)) == jnp.argmax(score))), predicted

        return jax.lax.scan(step, jnp.zeros_like(user.where), jax.random.split(key, steps + 1))[1]

    return jax.lax.map(interview, (new, keys))


@jax.jit
def _after_all_answers(draws: new_user.Draws, new: NewUsers) -> Predictions:
    """Predictions after all answers, shaped like an interview of length 1."""
    return jax.lax.map(lambda user: jax.tree.map(lambda leaf: leaf[None], _predict(draws, user, user.where)[1]), new)


def _predict(draws: new_user.Draws, user: NewUsers, asked: Array) -> tuple[new_user.Mixture, Predictions]:
    """(posterior, predictions of the test films) of one user given the answers where `asked`."""
    mixture = new_user.posterior(draws, user.item, user.value, asked)
    share = jnp.sum(jnp.exp(mixture.log_weight), axis=1)
    return mixture, Predictions(*new_user.posterior_predictive(draws, mixture, user.test_item), 1 / jnp.sum(share**2))


def measure(
    predicted: Predictions, new: NewUsers, scale: tuple[float, float], settings: Settings
) -> dict[str, dict[int, tuple[float, float]]]:
    """Measure -> number of answers -> (its value over all test ratings, its standard error over users)."""
    where = new.test_where

    def mean(column: np.ndarray) -> tuple[float, float]:
        """A ratio of two sums over users, whose ratings are not independent: see `harness.rmse_error`."""
        total, count = np.sum(np.where(where, column, 0), axis=1), where.sum(axis=1)
        ratio = float(total.sum() / count.sum())
        return ratio, float(np.sqrt(len(total)) / count.sum() * np.std(total - ratio * count, ddof=1))

    def root(squares: np.ndarray) -> tuple[float, float]:
        value, error = mean(squares)
        return float(np.sqrt(value)), error / (2 * float(np.sqrt(value)))

    out: dict[str, dict[int, tuple[float, float]]] = {}
    for n in settings.asked:
        predicted_mean, variance, noise_variance, ess = (leaf[:, min(n, leaf.shape[1] - 1)] for leaf in predicted)
        error = np.where(where, np.clip(predicted_mean, *scale) - new.test_value, 0)
        rating_variance = np.where(where, variance + noise_variance, 1)
        z = np.abs(error) / np.sqrt(rating_variance)
        row = {
            "RMSE": root(error**2),
            "predicted RMSE": root(rating_variance),
            "mean spread": mean(variance),
            "coverage of 80 %": mean(z <= ndtri(0.9)),
            "coverage of 95 %": mean(z <= ndtri(0.975)),
            "draws that count": harness.mean_and_error(ess),
        }
        for what, value_and_error in row.items():
            out.setdefault(what, {})[n] = value_and_error
    return out


def squared_errors(mean: np.ndarray, new: NewUsers, scale: tuple[float, float]) -> Evaluation:
    """Every new user's squared errors of test, as `harness.squared_errors`: their mean is the square of the RMSE."""
    squares = np.sum(np.where(new.test_where, (np.clip(mean, *scale) - new.test_value) ** 2, 0), axis=1)
    values = (squares * len(squares) / new.test_where.sum()).astype(np.float32)
    return Evaluation({"squared_error": values}, len(values), {}, {"errors": "summed per user"})


def _differences(
    predictions: dict[str, Predictions],
    new: NewUsers,
    scale: tuple[float, float],
    settings: Settings,
    values: dict[str, Any],
) -> list[dict[str, Any]]:
    """RMSE minus that of random questions, and its standard error by the bootstrap over users."""
    count = new.test_where.sum(axis=1)
    resampled = np.random.default_rng(settings.seed).integers(0, len(count), (BOOTSTRAPS, len(count)))

    def rmses(name: str, n: int) -> tuple[float, np.ndarray]:
        """(RMSE over all users, RMSE of each bootstrap replicate)."""
        error = np.clip(predictions[name].mean[:, n], *scale) - new.test_value
        sums = np.sum(np.where(new.test_where, error**2, 0), axis=1)
        return (
            np.sqrt(sums.sum() / count.sum()),
            np.sqrt(sums[resampled].sum(axis=1) / count[resampled].sum(axis=1)),
        )

    rows = []
    for n in (n for n in settings.asked if n > 0):
        random_rmse, random_replicates = rmses("random", n)
        row: dict[str, Any] = {"answers": n}
        for name in (name for name in POLICIES if name != "random"):
            rmse, replicates = rmses(name, n)
            difference, error = float(rmse - random_rmse), float(np.std(replicates - random_replicates))
            row[name] = f"{difference:+.4f} ± {error:.4f}"
            values |= {
                f"{_label(name)}_less_random_given_{n}": difference,
                f"{_label(name)}_less_random_error_{n}": error,
            }
        rows.append(row)
    return rows


def rank(
    predicted: Predictions, new: NewUsers, settings: Settings, rng: np.random.Generator, values: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tables of (mean rating, share of bad ratings) of the picks for the second half of the users.

    The share of each lower bound is chosen on the first half.
    """
    first = rng.permutation(len(new.test_where)) < len(new.test_where) // 2
    deviations = {
        "rating": np.sqrt(predicted.variance + predicted.noise_variance),
        "taste": np.sqrt(predicted.variance),
    }

    def bound(kind: str, share: float, n: int) -> np.ndarray:
        mean, deviation = (jnp.asarray(leaf[:, n]) for leaf in (predicted.mean, deviations[kind]))
        return np.asarray(new_user.lower_confidence_bound(mean, deviation, share))

    scores: dict[str, Callable[[int], np.ndarray]] = {
        "random": lambda n: rng.random(new.test_value.shape),
        "mean": lambda n: predicted.mean[:, n],
    }
    for kind in deviations:
        tried = {
            share: np.mean([_picked(bound(kind, share, n), new, settings)[0][first] for n in settings.asked])
            for share in settings.shares
        }
        values[f"{kind}_share"] = best = max(tried, key=tried.__getitem__)
        print(f"lower bound of the {kind}, first half: {', '.join(f'{k:g}: {v:.4f}' for k, v in tried.items())}")
        scores[f"{kind}, 0.9"] = partial(bound, kind, 0.9)
        scores[f"{kind}, chosen: {best:g}"] = partial(bound, kind, best)
    scores["the own ratings"] = lambda n: new.test_value

    tables: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    picked = {name: [_picked(score(n), new, settings) for n in settings.asked] for name, score in scores.items()}
    for column, (measure_name, table) in enumerate(zip(("rating", "bad"), tables, strict=True)):
        for name, by_n in picked.items():
            table.append({"ranked by": name})
            for n, picks, mean_picks in zip(settings.asked, by_n, picked["mean"], strict=True):
                value = float(picks[column][~first].mean())
                difference = (picks[column] - mean_picks[column])[~first]
                error = float(difference.std() / np.sqrt(len(difference)))
                suffix = f" {difference.mean():+.3f}±{error:.3f}" if "." in name else ""
                table[-1][f"{n} answers"] = f"{value:.3f}{suffix}"
                label = _label(name.split(":")[0])
                values[f"picks_{label}_{measure_name}_given_{n}"] = value
                values[f"picks_{label}_{measure_name}_error_{n}"] = error
    return tables


def _picked(score: np.ndarray, new: NewUsers, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Per user: (mean rating, share of bad ratings) of the films with the highest scores."""
    order = np.argsort(np.where(new.test_where, -score, np.inf), axis=1, kind="stable")[:, : settings.top]
    rating = np.take_along_axis(new.test_value, order, axis=1)
    valid = np.take_along_axis(new.test_where, order, axis=1)
    mean = lambda column: np.sum(np.where(valid, column, 0), axis=1) / np.sum(valid, axis=1)
    return mean(rating), mean(rating <= settings.bad)


def _label(text: str) -> str:
    return text.lower().replace(",", "").replace(" %", "").replace(".", "").replace(" ", "_")


def _draw(axes: Any, measured: dict[str, dict[str, dict[int, tuple[float, float]]]], settings: Settings) -> None:
    for name in POLICIES:
        by_n = measured[name]["RMSE"]
        axes.plot(list(by_n), [value for value, _ in by_n.values()], marker="o", label=name)
    axes.set(xlabel="questions answered", ylabel="test RMSE", title=f"What to ask new users of {settings.data}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
