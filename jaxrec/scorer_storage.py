"""Saves a fitted scorer of `solvers` to one file: linear, of nearest neighbors, or of the last events.

A scorer is a tree of arrays and of a few numbers. The file (`storage`: a checksum, written atomically, never unpickled)
has the arrays bit for bit, and beside them the classes of the tree, of which `load` makes only those of `CLASSES`.

>>> import tempfile
>>> from jaxrec import Ratings
>>> from jaxrec.solvers.linear import ease
>>> train = Ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], [1, 1, 1, 1, 1], n_users=3, n_items=3)
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/ease.jaxrec", ease(train, l2=1.0))
...     scorer = load(f"{folder}/ease.jaxrec")
>>> (3 * scorer(jnp.array([0]))).round().tolist()
[[2.0, 2.0, 0.0]]
"""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import check, storage
from jaxrec.kernels.sparse_rows import SparseRows
from jaxrec.models import linear, linear_operators, neighbors, recency
from jaxrec.models.linear import LinearScorer
from jaxrec.models.neighbors import ItemScorer, UserScorer
from jaxrec.models.recency import RecencyScorer
from jaxrec.solvers.linear._dual import Dual
from jaxrec.solvers.neighbors import cosine_similarity, jaccard_similarity

__all__ = ["load", "save"]

SCORERS = (LinearScorer, ItemScorer, UserScorer, RecencyScorer)
PARTS = (linear.Histories, neighbors.NearestNeighbors, recency.RecentItems, SparseRows, Dual)
OPERATORS = [getattr(linear_operators, name) for name in linear_operators.__all__ if name != "for_train_users"]
CLASSES: dict[str, Any] = {each.__name__: each for each in (*SCORERS, *PARTS, *OPERATORS)}
FUNCTIONS: dict[str, Any] = {each.__name__: each for each in (cosine_similarity, jaccard_similarity)}


def save(path: str | os.PathLike[str], scorer: LinearScorer | ItemScorer | UserScorer | RecencyScorer) -> None:
    """Saves a scorer to one file atomically, replacing an existing one; the users' histories are part of it.

    Raises:
        ValueError: another kind of scorer, or one of a class or function of one's own; NaN or infinity.
        Exception: as `storage.write`.
    """
    if not isinstance(scorer, SCORERS):
        expected = ", ".join(each.__name__ for each in SCORERS)
        raise ValueError(f"scorer: expected one of {expected}, got {type(scorer).__name__}. Factors: storage.save.")
    arrays: dict[str, Any] = {}
    tree = _encoded("scorer", scorer, arrays)
    storage.write(path, "scorer", arrays, {"tree": tree})


def load(path: str | os.PathLike[str]) -> LinearScorer | ItemScorer | UserScorer | RecencyScorer:
    """Loads a scorer whose scores are those of the one that was saved, bit for bit on the same machine.

    Raises:
        ValueError: as `storage.read`; a class that this version does not know; 64-bit arrays if JAX has them disabled.
        FileNotFoundError: no such file.
    """
    arrays, meta = storage.read(path, "scorer")
    try:
        scorer = _decoded("scorer", meta["tree"], arrays)
        if not isinstance(scorer, SCORERS):
            raise ValueError(f"expected a scorer, got {type(scorer).__name__}.")
        return scorer
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _encoded(name: str, value: Any, arrays: dict[str, Any]) -> Any:
    """What JSON can hold of a tree; its arrays go into `arrays`."""
    if isinstance(value, jax.Array | np.ndarray):
        check.all_finite(name, value)
        arrays[name] = value
        return {"array": name}
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if type(value) in CLASSES.values():
        names = [each.name for each in fields(value)] if is_dataclass(value) else value._fields
        parts = {each: _encoded(f"{name}.{each}", getattr(value, each), arrays) for each in names}
        return {"class": type(value).__name__, "fields": parts}
    if type(value) is tuple:
        return [_encoded(f"{name}.{n}", each, arrays) for n, each in enumerate(value)]
    if value in FUNCTIONS.values():
        return {"function": value.__name__}
    raise ValueError(
        f"{name}: expected the arrays, classes and functions of jaxrec's scorers, got {type(value).__name__}: nothing "
        "is pickled. Save the arrays by storage.write, or the function by serving.save."
    )


def _decoded(name: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(f"{name}.{n}", each, arrays) for n, each in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "array" in value:
        stored = arrays[value["array"]]
        array = jnp.asarray(stored)
        if array.dtype != stored.dtype:
            raise ValueError(
                f"{name}: expected {stored.dtype}, as it was saved, got {array.dtype}, because 64 bits are disabled. "
                "Call jax.config.update('jax_enable_x64', True) first."
            )
        return array
    if "function" in value:
        return FUNCTIONS[value["function"]]
    if value["class"] not in CLASSES:
        raise ValueError(f"{name}: expected a class of {', '.join(CLASSES)}, got {value['class']!r}. Upgrade jaxrec?")
    parts = {field: _decoded(f"{name}.{field}", each, arrays) for field, each in value["fields"].items()}
    return CLASSES[value["class"]](**parts)
