"""Requests of sequences: what comes next, from lists of raw ids, exported with any sequence scorer.

`encode` maps lists of raw ids to arrays of one window and says what it left out; `save` exports the request function of
a sequence scorer (`serving.save`), and `load` returns it as a function of raw lists, in a process without the model's
code. A sequence scorer is a function (state, item [window], count []) -> scores [n_items], with the newest item first.

>>> import tempfile, jax.numpy as jnp
>>> follows = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 5.0], [1.0, 1.0, 0.0]])
>>> markov = lambda follows, item, count: follows[item[0]]
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/next.jaxrec", markov, follows, item_ids=["A", "B", "C"], window=2, k=2, platforms=["cpu"])
...     served = load(f"{folder}/next.jaxrec")
>>> found = served([["A", "B"]])  # one request: A, and then B
>>> found.item, found.score.tolist()
([['C']], [[5.0, -inf]])
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check, raw_ids, serving
from jaxrec.retrieval.candidates import top_of_sequence

__all__ = ["EncodedSequences", "NextItemLists", "ServedSequences", "encode", "load", "save"]


class EncodedSequences(NamedTuple):
    """Lists of raw ids as arrays, and what was left out of them.

    Attributes:
        item: int32 [n, window], positions in the catalog, the newest first; 0 beyond `length`.
        length: int32 [n], how many there are.
        dropped: [n], how many known items, the oldest, did not fit into the window.
        unknown: the raw ids of each list that are not in the catalog.
    """

    item: np.ndarray
    length: np.ndarray
    dropped: np.ndarray
    unknown: list[list[Any]]


class NextItemLists(NamedTuple):
    """The answers to n requests.

    Attributes:
        item: the raw ids of each list, best first; fewer than k where fewer may be proposed.
        score: [n, k], -inf where a list has fewer.
        dropped: [n], as of `EncodedSequences`.
        unknown: as of `EncodedSequences`.
    """

    item: list[list[Any]]
    score: np.ndarray
    dropped: np.ndarray
    unknown: list[list[Any]]


def encode(
    sequences: Sequence[Sequence[Any]], item_ids: Any, *, window: int, skip_unknown: bool = False
) -> EncodedSequences:
    """Maps lists of raw ids, oldest first, to the last items of a window; a list may be empty, and repeat items.

    Args:
        sequences: one list of raw ids per request.
        item_ids: the catalog's raw ids, one per item.
        window: how many of the last known items are kept; `dropped` counts the others.
        skip_unknown: True leaves ids out that are not in the catalog, such as items newer than the model, and lists
            them in `unknown`.

    Raises:
        ValueError: unknown ids without `skip_unknown`; a bare list of ids in place of lists; ids of other types.

    >>> encode([["A", "B", "A"], [], ["Z", "B"]], ["A", "B"], window=2, skip_unknown=True)._asdict()["unknown"]
    [[], [], ['Z']]
    """
    check.whole_number("window", window, least=1)
    known = raw_ids.known_ids("item_ids", item_ids)
    n = len(sequences)
    item, count, dropped = np.zeros((n, window), np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32)
    unknown: list[list[Any]] = []
    for row, sequence in enumerate(sequences):
        if isinstance(sequence, str | bytes) or np.ndim(sequence) != 1:
            raise ValueError(
                f"sequences: expected one list of raw ids per request, got {sequence!r} at position {row}. For one "
                "request pass [ids]."
            )
        unknown.append([])
        if len(sequence) == 0:
            continue
        name = f"sequences[{row}]"
        ids = raw_ids.as_raw_ids(name, sequence)
        position = raw_ids.positions(ids, known)
        if (position < 0).any():
            if not skip_unknown:
                advice = "Pass skip_unknown=True to leave them out: the result lists them."
                raw_ids.refuse_unknown(name, ids, position, known, advice)
            unknown[-1] = ids[position < 0].tolist()
            position = position[position >= 0]
        newest = position[::-1][:window]
        item[row, : len(newest)], count[row], dropped[row] = newest, len(newest), len(position) - len(newest)
    return EncodedSequences(item, count, dropped, unknown)


def save(
    path: str | os.PathLike[str],
    score: Callable[[Any, Array, Array], Any],
    state: Any,
    *,
    item_ids: Any,
    window: int,
    k: int,
    exclude_seen: bool = True,
    empty: Shaped[ArrayLike, " n_items"] | None = None,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    platforms: Sequence[str] = serving.PLATFORMS,
) -> None:
    """Exports the k next items of a sequence scorer, with the catalog's raw ids, to one file.

    Only the window's items are masked by `exclude_seen`: those that a user had before it can be proposed again.

    Args:
        path: the file.
        score: score(state, item [window], count []) -> scores [n_items], pure and traceable.
        state: a pytree of arrays.
        item_ids: the raw ids, distinct integers or strings, one per item.
        window: the length of `item`.
        k: the length of the lists.
        exclude_seen: as for `retrieval.candidates.top_of_sequence`, like `empty` and `allowed`.
        empty: scores of requests without known events.
        allowed: the items that can be proposed.
        platforms: as for `serving.save`.

    Raises:
        ImportError: as `serving.save`.
        ValueError: repeated ids; scores of another shape; k out of range; as `serving.save`.
    """
    known = raw_ids.known_ids("item_ids", item_ids)
    check.whole_number("window", window, least=1)
    options = {name: jnp.asarray(v) for name, v in (("empty", empty), ("allowed", allowed)) if v is not None}

    def request(all_state: Any, item: Array, count: Array) -> Any:
        def one(item: Array, count: Array) -> Any:
            own = lambda item, count: score(all_state["scorer"], item, count)
            given = all_state["options"]
            return top_of_sequence(own, item, count, k, n_items=len(known), exclude_seen=exclude_seen, **given)

        return jax.vmap(one)(item, count)

    examples = np.zeros((1, window), np.int32), np.zeros(1, np.int32)
    meta = {"item_ids": known.tolist(), "window": int(window)}
    serving.save(path, request, {"scorer": state, "options": options}, *examples, meta=meta, platforms=platforms)


@dataclass(frozen=True)
class ServedSequences:
    """A loaded function from lists of raw ids to the next items.

    Attributes:
        served: the request function of arrays.
        item_ids: the catalog's raw ids.
        window: how many of the last items count.
    """

    served: serving.Served
    item_ids: np.ndarray
    window: int

    def __call__(self, sequences: Sequence[Sequence[Any]], *, skip_unknown: bool = False) -> NextItemLists:
        """The next items after each list of raw ids, oldest first. `encode` says what is refused.

        Raises:
            ValueError: as `encode`; no list at all.
        """
        encoded = encode(sequences, self.item_ids, window=self.window, skip_unknown=skip_unknown)
        ids, where, score = (np.asarray(each) for each in self.served(encoded.item, encoded.length))
        item = [self.item_ids[row[valid]].tolist() for row, valid in zip(ids, where, strict=True)]
        return NextItemLists(item, score, encoded.dropped, encoded.unknown)


def load(path: str | os.PathLike[str]) -> ServedSequences:
    """Loads what `save` wrote. The file is a program: load only files that you trust (`serving`).

    Raises:
        ImportError: as `serving.load`.
        ValueError: a request of another kind; as `serving.load`.
        FileNotFoundError: no such file.
    """
    served = serving.load(path)
    if not {"item_ids", "window"} <= set(served.meta):
        raise ValueError(f"{path}: expected a request of sequences, got another. Load it by serving.load.")
    return ServedSequences(served, raw_ids.known_ids("item_ids", served.meta["item_ids"]), int(served.meta["window"]))
