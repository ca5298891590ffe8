"""Which films should a new user be asked about, and do lists ranked by a lower bound please more?

A fifth of the users is new, each fifth in its turn: the Gibbs sampler (a noise of every user and item, no features)
sees the others alone. Of each new user a third of her ratings is test; the others are what she can be asked about, for
a film she has not seen she cannot answer for. After 0, 1, 2, .. answers her posterior (`solvers.new_user`) predicts the
test ratings, which choose nothing. Who asks:

- reduction: the film whose answer is expected to lower the summed variance of all films' predictions the most;
- reduction, rated: the same, each film counted as often as the others rated it, for so are films met;
- popular: the film rated most often; spread: the one whose own prediction is least sure; random: any.

Then the lists: of her test films the 3 of the highest predicted mean, or of the highest lower bound, mean - z(share)
deviation, after answers to random questions; `rating`: the deviation of her next rating, `taste`: without its noise.
The share is chosen on half of the new users, by the mean rating of the picks, and reported on the other half.
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
from jaxrec.types import Ratings

BOOTSTRAPS = 500


@dataclass(frozen=True)
class Settings(harness.Settings):
    """The sampler, the new users, and what they are asked."""

    rank: int = 10
    sweeps: int = 200
    burn_in: int = 40
    every: int = 4  # sweeps between draws that are kept
    chains: int = 2
    folds: int = 5  # how many of the fifths are new, each in its turn
    kept_for_test: float = 0.33  # of each new user's ratings
    pool: int = 128  # of the others at most so many, at random, can be asked about
    asked: tuple[int, ...] = (0, 1, 2, 3, 5, 10)
    top: int = 3
    bad: float = 2.0
    shares: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class Newcomers(NamedTuple):
    """New users' ratings in padded rows.

    Attributes:
        item: [users, pool], what they can be asked about.
        value: their answers.
        where: False where a place is empty.
        test: [users, longest], the films of their test ratings.
        truth: the test ratings.
        there: False where a place is empty.
    """

    item: Any
    value: Any
    where: Any
    test: Any
    truth: Any
    there: Any


class Said(NamedTuple):
    """After every number of answers: the predictions of the test ratings [.., longest], how many draws count [..]."""

    mean: Any
    spread: Any
    noise: Any
    ess: Any


Wish = Callable[[new_user.Draws, new_user.Mixture, Array, Array, Array], Array]
POLICIES: dict[str, Wish] = {  # (draws, her posterior, the films in question, how often each is rated, a key) -> wishes
    "reduction": lambda known, hers, item, rated, key: new_user.expected_variance_reduction(known, hers, item),
    "reduction, rated": lambda known, hers, item, rated, key: new_user.expected_variance_reduction(
        known, hers, item, weights=rated
    ),
    "popular": lambda known, hers, item, rated, key: rated[item],
    "spread": lambda known, hers, item, rated, key: new_user.posterior_predictive(known, hers, item).variance,
    "random": lambda known, hers, item, rated, key: jax.random.uniform(key, item.shape),
}


def main(settings: Settings) -> dict[str, Any]:
    """Samples without the new users, asks them, ranks for them; returns what it wrote to OUT/ask.json."""
    start = time.perf_counter()
    dataset = harness.load(settings)
    scale = dataset.scale or (-np.inf, np.inf)
    rng = np.random.default_rng(settings.seed)
    said: dict[str, list[Said]] = {name: [] for name in (*POLICIES, "all")}
    newcomers = []
    for fold, (train, new) in enumerate(split(dataset.ratings, settings, rng)):
        keys = jax.random.split(jax.random.key(settings.seed + fold))
        known = sample(train, settings, keys[0])
        rated = np.bincount(train.item, minlength=train.n_items).astype(np.float32)
        each = jax.random.split(keys[1], len(new.item))
        for name in said:
            began = time.perf_counter()
            if name == "all":
                answers = _everything(known, new)
            else:
                answers = _interviews(known, new, rated, each, policy=name, steps=max(settings.asked))
            said[name].append(Said(*(np.asarray(leaf, np.float64) for leaf in answers)))
            print(f"fold {fold}, {name}: {len(new.item)} users in {time.perf_counter() - began:.1f} s", flush=True)
        newcomers.append(new)
    together = Newcomers(*(np.concatenate(each) for each in zip(*newcomers, strict=True)))
    outcome = {name: Said(*map(np.concatenate, zip(*each, strict=True))) for name, each in said.items()}
    print(f"{len(together.item)} new users, {together.there.sum()} test ratings, {together.where.sum()} to ask about")

    measured = {name: measure(each, together, scale, settings) for name, each in outcome.items()}
    values: dict[str, Any] = {"newcomers": len(together.item), "test_ratings": int(together.there.sum())}
    for what in next(iter(measured.values())):
        print(f"{what}:")
        harness.table([{"answers": n, **{p: measured[p][what][n] for p in POLICIES}} for n in settings.asked])
        print(f"  given all answers: {measured['all'][what][max(settings.asked)]:.4f}")
        for policy, by_n in measured.items():
            shown = {f"given_{n}": by_n[what][n] for n in settings.asked}
            shown = {"given_all": by_n[what][max(settings.asked)]} if policy == "all" else shown
            values |= {f"{_label(policy)}_{_label(what)}_{n}": value for n, value in shown.items()}
    print("RMSE less that of random questions, ± its standard error over users:")
    harness.table(_differences(outcome, together, scale, settings, values))
    for what, rows in zip(
        ("mean rating", f"share <= {settings.bad:g}"),
        rank(outcome["random"], together, settings, rng, values),
        strict=True,
    ):
        print(f"{what} of the {settings.top} picks among a user's test films (less that of the mean's):")
        harness.table(rows)
    harness.plot("ask", settings, lambda axes: _draw(axes, measured, settings))
    return harness.report("ask", settings, values, time.perf_counter() - start)


def split(ratings: Ratings, settings: Settings, rng: np.random.Generator) -> list[tuple[Ratings, Newcomers]]:
    """(the others' ratings, their users numbered anew; the new users), for every fold."""
    ratings = ratings.take(rng.permutation(len(ratings)))
    count = np.bincount(ratings.user, minlength=ratings.n_users)
    is_test = harness.occurrence(ratings.user) < np.maximum(np.round(settings.kept_for_test * count), 1)[ratings.user]
    longest = int(np.bincount(ratings.user[is_test]).max())
    folds = []
    for new in np.array_split(rng.permutation(np.flatnonzero(count > 1)), 5)[: settings.folds]:
        theirs = np.isin(ratings.user, new)
        others, user = np.unique(ratings.user[~theirs], return_inverse=True)
        train = Ratings(user, ratings.item[~theirs], ratings.value[~theirs], len(others), ratings.n_items)
        asked = _padded(ratings.take(np.flatnonzero(theirs & ~is_test)), new, settings.pool)
        folds.append((train, Newcomers(*asked, *_padded(ratings.take(np.flatnonzero(theirs & is_test)), new, longest))))
    return folds


def _padded(ratings: Ratings, users: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(item, value, where) [users, longest]: of each the first `longest`."""
    item, value = np.zeros((len(users), longest), np.int32), np.zeros((len(users), longest), np.float32)
    where = np.zeros((len(users), longest), bool)
    row = np.zeros(ratings.n_users, np.int64)
    row[users] = np.arange(len(users))
    place = harness.occurrence(ratings.user)
    first = place < longest
    at = row[ratings.user[first]], place[first]
    item[at], value[at], where[at] = ratings.item[first], ratings.value[first], True
    return item, value, where


def sample(train: Ratings, settings: Settings, key: Array) -> new_user.Draws:
    """Draws given the others' ratings."""
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
    print(f"evenness of the users' sureness: {float(kept[-1].users.row_precision_shape.mean()):.2f}")
    return new_user.draws(kept, mu=mu)


@partial(jax.jit, static_argnames=("policy", "steps"))
def _interviews(known: new_user.Draws, new: Newcomers, rated: Array, keys: Array, *, policy: str, steps: int) -> Said:
    """Of every new user: what is said of her test films after 0 .. steps answers."""

    def of(given: tuple[Newcomers, Array]) -> Said:
        hers, key = given

        def step(asked: Array, key: Array) -> tuple[Array, Said]:
            so_far, said = _say(known, hers, asked)
            left = hers.where & ~asked
            wish = jnp.where(left, POLICIES[policy](known, so_far, hers.item, rated, key), -jnp.inf)
            return asked | (left & (jnp.arange(len(left)) == jnp.argmax(wish))), said

        return jax.lax.scan(step, jnp.zeros_like(hers.where), jax.random.split(key, steps + 1))[1]

    return jax.lax.map(of, (new, keys))


@jax.jit
def _everything(known: new_user.Draws, new: Newcomers) -> Said:
    """After all answers, in the shape of the interviews."""
    return jax.lax.map(lambda hers: jax.tree.map(lambda leaf: leaf[None], _say(known, hers, hers.where)[1]), new)


def _say(known: new_user.Draws, hers: Newcomers, asked: Array) -> tuple[new_user.Mixture, Said]:
    mixture = new_user.posterior(known, hers.item, hers.value, asked)
    share = jnp.sum(jnp.exp(mixture.log_weight), axis=1)
    return mixture, Said(*new_user.posterior_predictive(known, mixture, hers.test), 1 / jnp.sum(share**2))


def measure(said: Said, new: Newcomers, scale: tuple[float, float], settings: Settings) -> dict[str, dict[int, float]]:
    """What -> number of answers -> over all test ratings."""
    out: dict[str, dict[int, float]] = {}
    for n in settings.asked:
        mean, spread, noise, ess = (leaf[:, min(n, leaf.shape[1] - 1)] for leaf in said)
        error, variance = (np.clip(mean, *scale) - new.truth)[new.there], (spread + noise)[new.there]
        away = np.abs(error) / np.sqrt(variance)
        found = {
            "RMSE": np.sqrt(np.mean(error**2)),
            "predicted RMSE": np.sqrt(np.mean(variance)),
            "mean spread": np.mean(spread[new.there]),
            "coverage of 80 %": np.mean(away <= ndtri(0.9)),
            "coverage of 95 %": np.mean(away <= ndtri(0.975)),
            "draws that count": np.mean(ess),
        }
        for what, value in found.items():
            out.setdefault(what, {})[n] = float(value)
    return out


def _differences(
    outcome: dict[str, Said],
    new: Newcomers,
    scale: tuple[float, float],
    settings: Settings,
    values: dict[str, Any],
) -> list[dict[str, Any]]:
    """RMSE less random's, and the standard deviation of that over users drawn with replacement."""
    count = new.there.sum(axis=1)
    pick = np.random.default_rng(settings.seed).integers(0, len(count), (BOOTSTRAPS, len(count)))

    def rmses(name: str, n: int) -> tuple[float, np.ndarray]:
        error = np.clip(outcome[name].mean[:, n], *scale) - new.truth
        sums = np.sum(np.where(new.there, error**2, 0), axis=1)
        return np.sqrt(sums.sum() / count.sum()), np.sqrt(sums[pick].sum(axis=1) / count[pick].sum(axis=1))

    rows = []
    for n in (n for n in settings.asked if n > 0):
        whole, some = rmses("random", n)
        row: dict[str, Any] = {"answers": n}
        for name in (name for name in POLICIES if name != "random"):
            mine = rmses(name, n)
            less, error = float(mine[0] - whole), float(np.std(mine[1] - some))
            row[name] = f"{less:+.4f} ± {error:.4f}"
            values |= {f"{_label(name)}_less_random_given_{n}": less, f"{_label(name)}_less_random_error_{n}": error}
        rows.append(row)
    return rows


def rank(
    said: Said, new: Newcomers, settings: Settings, rng: np.random.Generator, values: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(mean rating, share of bad ratings) of what is picked for the second half, shares chosen on the first; tables."""
    first = rng.permutation(len(new.there)) < len(new.there) // 2
    deviations = {"rating": np.sqrt(said.spread + said.noise), "taste": np.sqrt(said.spread)}

    def bound(kind: str, share: float, n: int) -> np.ndarray:
        mean, deviation = (jnp.asarray(each[:, n]) for each in (said.mean, deviations[kind]))
        return np.asarray(new_user.lower_confidence_bound(mean, deviation, share))

    ranked: dict[str, Callable[[int], np.ndarray]] = {
        "random": lambda n: rng.random(new.truth.shape),
        "mean": lambda n: said.mean[:, n],
    }
    for kind in deviations:
        tried = {
            share: np.mean([_picked(bound(kind, share, n), new, settings)[0][first] for n in settings.asked])
            for share in settings.shares
        }
        values[f"{kind}_share"] = best = max(tried, key=tried.__getitem__)
        print(f"lower bound of the {kind}, first half: {', '.join(f'{k:g}: {v:.4f}' for k, v in tried.items())}")
        ranked[f"{kind}, .9"] = partial(bound, kind, 0.9)
        ranked[f"{kind}, chosen: {best:g}"] = partial(bound, kind, best)
    ranked["her own ratings"] = lambda n: new.truth

    tables: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    picked = {name: [_picked(score(n), new, settings) for n in settings.asked] for name, score in ranked.items()}
    for what, (of, table) in enumerate(zip(("rating", "bad"), tables, strict=True)):
        for name, by_n in picked.items():
            table.append({"ranked by": name})
            for n, mine, means in zip(settings.asked, by_n, picked["mean"], strict=True):
                value, less = float(mine[what][~first].mean()), (mine[what] - means[what])[~first]
                error = float(less.std() / np.sqrt(len(less)))
                more = f" {less.mean():+.3f}±{error:.3f}" if "." in name else ""
                table[-1][f"{n} answers"] = f"{value:.3f}{more}"
                label = _label(name.split(":")[0])
                values[f"picks_{label}_{of}_given_{n}"] = value
                values[f"picks_{label}_{of}_error_{n}"] = error
    return tables


def _picked(score: np.ndarray, new: Newcomers, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(mean rating, share of bad ratings) of every user's highest scored."""
    order = np.argsort(np.where(new.there, -score, np.inf), axis=1, kind="stable")[:, : settings.top]
    rating, real = np.take_along_axis(new.truth, order, axis=1), np.take_along_axis(new.there, order, axis=1)
    mean = lambda each: np.sum(np.where(real, each, 0), axis=1) / np.sum(real, axis=1)
    return mean(rating), mean(rating <= settings.bad)


def _label(text: str) -> str:
    return text.lower().replace(",", "").replace(" %", "").replace(".", "").replace(" ", "_")


def _draw(axes: Any, measured: dict[str, dict[str, dict[int, float]]], settings: Settings) -> None:
    for name in POLICIES:
        by_n = measured[name]["RMSE"]
        axes.plot(list(by_n), list(by_n.values()), marker="o", label=name)
    axes.set(xlabel="questions answered", ylabel="test RMSE", title=f"What to ask new users of {settings.data}")
    axes.legend(frameon=False)


if __name__ == "__main__":
    harness.run(main, Settings)
