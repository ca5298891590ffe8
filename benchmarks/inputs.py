"""Inputs that several benchmarks share: drawn ratings and factors, and the .npz files that hand them to processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec import data, models
from jaxrec.types import Dataset, Factors, Ratings

__all__ = ["draw_ratings", "load_dataset", "load_ratings", "random_factors", "save_ratings"]


def load_dataset(name: str, *, path: str = "", seed: int = 0) -> Dataset:
    """Loads the dataset that `data.load` knows by this name; 'synthetic' draws a tiny one, for tests.

    Args:
        name: of the dataset.
        path: the folder of its files; '' searches the usual places.
        seed: of the synthetic ratings.
    """
    if name == "synthetic":
        return data.synthetic.low_rank(60, 40, 800, rng=seed)
    return data.load(name, path=path or None)


def draw_ratings(folder: Path, n_users: int, n_items: int, n: int, *, rank: int = 32, seed: int = 0) -> Path:
    """Writes n synthetic ratings, and factors to differentiate at, to folder/ratings.npz unless it exists.

    Args:
        folder: where to write.
        n_users: number of users.
        n_items: number of items.
        n: number of ratings.
        rank: of the factors, which are `random_factors` with seed 0.
        seed: of the ratings.
    """
    path = folder / "ratings.npz"
    if not path.exists():
        ratings = data.synthetic.low_rank(n_users, n_items, n, rng=seed).ratings
        factors = random_factors(ratings, rank)
        save_ratings(path, ratings, **{name: np.asarray(getattr(factors, name)) for name in ("w", "b", "x", "c", "mu")})
    return path


def random_factors(ratings: Ratings, rank: int, *, seed: int = 0) -> Factors:
    """Factors of the ratings' users and items with random biases, so that no part of a gradient is 0."""
    keys = jax.random.split(jax.random.key(seed), 3)
    factors = models.init(ratings.n_users, ratings.n_items, rank, key=keys[0], mu=3.5)
    b = 0.1 * jax.random.normal(keys[1], (ratings.n_users,))
    c = 0.1 * jax.random.normal(keys[2], (ratings.n_items,))
    return replace(factors, b=b, c=c)


def save_ratings(path: Path, ratings: Ratings, **arrays: Any) -> None:
    """Writes user, item, value, n_users and n_items of the ratings, and further arrays, to an .npz file."""
    columns: dict[str, Any] = {"user": ratings.user, "item": ratings.item, "value": ratings.value}
    np.savez(path, **columns, **arrays, n_users=ratings.n_users, n_items=ratings.n_items)


def load_ratings(path: str | Path) -> Ratings:
    """The ratings of a file that `save_ratings` wrote."""
    with np.load(path) as arrays:
        sizes = int(arrays["n_users"]), int(arrays["n_items"])
        return Ratings(arrays["user"], arrays["item"], arrays["value"], *sizes)
