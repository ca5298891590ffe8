"""Raw ids: the integers or strings that name users and items outside, and where they stand in a table.

An id is what it is: 1 is not "1", 2**53 + 1 is not 2.0**53, and what NumPy would cut, round or wrap is refused.

>>> known = as_raw_ids("user", ["ann", "bob"])
>>> positions(as_raw_ids("user", ["bob", "carol"]), known).tolist()
[1, -1]
>>> as_raw_ids("user", [1, "1"])
Traceback (most recent call last):
...
ValueError: user: expected raw ids that are all integers or all strings, got a mixture or None (int, str).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "as_raw_ids",
    "distinct",
    "first_difference",
    "index",
    "known_ids",
    "positions",
    "refuse_unknown",
    "union",
]

FAMILIES = {"i": "integers", "u": "integers", "U": "strings", "S": "bytes"}


def as_raw_ids(name: str, values: Any) -> np.ndarray:
    """One column of raw ids as an array of integers, strings or bytes, in which every id is what it was.

    Args:
        name: what the messages call the column.
        values: a list, an array, a pandas or polars column; categories count as what they stand for.

    Raises:
        ValueError: no column, or an empty one; a mixture; floats (NaN is nobody, and an integer that was a float
            once may be another), booleans, None; integers beyond 64 bits; strings that end in NUL, which NumPy drops.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: expected an id in every row, got a masked array with rows masked. Drop those rows.")
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one column with at least one raw id, got shape {array.shape}.")
    if array.dtype.kind in "OT" or isinstance(values, list | tuple):  # NumPy makes strings or floats of a mixed list
        array = _of_objects(name, array.tolist() if array.dtype.kind in "OT" else values)
    if array.dtype.kind not in FAMILIES:
        advice = " (floats are what pandas makes of integers where some are missing: drop those rows, then astype(int))"
        raise ValueError(
            f"{name}: expected raw ids that are integers or strings, got {array.dtype}"
            f"{advice if array.dtype.kind == 'f' else ''}."
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def known_ids(name: str, values: Any) -> np.ndarray:
    """The raw ids of a table, one per row: `as_raw_ids`, having checked that they are distinct."""
    ids = as_raw_ids(name, values)
    if not (ids[1:] > ids[:-1]).all() and len(set(ids.tolist())) != len(ids):
        raise ValueError(f"{name}: expected distinct ids, got some twice.")
    return ids


def _of_objects(name: str, items: Sequence[Any]) -> np.ndarray:
    """Python's objects as an array, having checked that they are of one family, and that the array keeps them."""
    types = set(map(type, items))
    of = lambda *family: all(issubclass(one, family) and one is not bool for one in types)
    if of(int, np.integer):
        low, high = int(min(items)), int(max(items))
        if low < -(2**63) or high >= 2**64 or (low < 0 and high >= 2**63):
            raise ValueError(
                f"{name}: expected integers that fit in int64 or uint64, all in one, got {low} and {high}. "
                "Give ids of more digits as strings."
            )
        return np.array(items, np.uint64 if high >= 2**63 else np.int64)
    if of(str) or of(bytes):
        array = np.array(items, str if of(str) else bytes)
        if sum(map(len, items)) != np.strings.str_len(array).sum():
            lost = next(item for item in items if item[-1:] in ("\0", b"\0"))
            raise ValueError(f"{name}: expected ids that do not end in NUL (NumPy drops it), got {lost!r}.")
        return array
    names = ", ".join(sorted(one.__name__ for one in types))
    if len(types) == 1:
        raise ValueError(f"{name}: expected raw ids that are integers or strings, got {names}.")
    raise ValueError(f"{name}: expected raw ids that are all integers or all strings, got a mixture or None ({names}).")


def distinct(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the number of each id among the distinct ones, those ones sorted): by a table where ids are near one another.

    20M integer ids: 0.2 s by the table, 2 to 5 s by a sort; np.unique with its inverse takes 20 to 30 s.
    """
    if (span := _span(raw, len(raw))) is not None:
        wide = _wide(raw)
        low = wide.min()
        there = np.zeros(span, bool)
        there[wide - low] = True
        number = np.cumsum(there, dtype=np.int32) - np.int32(1)
        return number[wide - low], (np.flatnonzero(there).astype(wide.dtype) + low).astype(raw.dtype)
    ordered = np.sort(raw)
    known = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return np.searchsorted(known, raw), known


def positions(raw: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where each raw id stands among the known ones, in any order; -1 where it is not among them."""
    if FAMILIES[raw.dtype.kind] != FAMILIES[known.dtype.kind]:
        return np.full(len(raw), -1, np.int32)
    if raw.dtype.kind in "iu":
        raw, known = _wide(raw), _wide(known)
        if raw.dtype != known.dtype:  # int64 and uint64: NumPy would search in float64, and mistake some
            ends = np.iinfo(known.dtype)
            fits = (raw >= ends.min) & (raw <= ends.max)
            return np.where(fits, positions(np.where(fits, raw, 0).astype(known.dtype), known), -1)
        if (span := _span(known, len(raw))) is not None:
            low, high = known.min(), known.max()
            table = np.full(span, -1, np.int32)
            table[known - low] = np.arange(len(known))
            inside = (raw >= low) & (raw <= high)
            return np.where(inside, table[np.where(inside, raw, low) - low], -1)
    order = np.argsort(known, kind="stable")
    position = np.minimum(np.searchsorted(known[order], raw), len(known) - 1)
    return np.where(known[order[position]] == raw, order[position], -1)


def index(name: str, raw: Any, known: np.ndarray | None, size: int) -> Any:
    """Positions of raw ids in a table: int32 [n] of a column, an int of one id; an id that is not there is an error.

    Where the table has no raw ids (`known` is None) they are the positions themselves, in [0, size).
    """
    one = np.ndim(raw) == 0
    if not one and len(raw) == 0:
        return np.zeros(0, np.int32)
    ids = as_raw_ids(name, [raw.item() if hasattr(raw, "item") else raw] if one else raw)
    if known is not None:
        position = positions(ids, known)
    elif ids.dtype.kind in "iu":
        inside = (ids >= 0) & (ids < size)
        position = np.where(inside, np.where(inside, ids, 0).astype(np.int64), -1)  # -1 of uint64 would be 2**64 - 1
    else:
        position = np.full(len(ids), -1)
    if (position < 0).any():
        refuse_unknown(name, ids, position, np.arange(size) if known is None else known)
    return int(position[0]) if one else position.astype(np.int32)


def refuse_unknown(name: str, raw: np.ndarray, position: np.ndarray, known: np.ndarray) -> None:
    """Raises the error of ids without a position, which names the first."""
    unknown = np.flatnonzero(position < 0)
    ours, theirs = FAMILIES[raw.dtype.kind], FAMILIES[known.dtype.kind]
    raise ValueError(
        f"{name}: {raw[unknown[0]].item()!r} is not among the {len(known)} known ids ({len(unknown)} such rows). "
        + (f"Those are {theirs}, these {ours}: 1 is not '1'. " if ours != theirs else "")
        + f"Leave {name}_ids out to take every id that occurs, or drop those rows (unknown='drop')."
    )


def union(name: str, columns: Sequence[np.ndarray]) -> np.ndarray:
    """The distinct ids of several columns, sorted.

    Raises:
        ValueError: integers in one and strings in another; integers that no type of 64 bits holds together.
    """
    if len({FAMILIES[column.dtype.kind] for column in columns}) > 1:
        raise ValueError(
            f"{name}: expected ids of one kind, got {' and '.join(FAMILIES[c.dtype.kind] for c in columns)}. "
            "1 is not '1': convert one of the two first."
        )
    if len({column.dtype for column in map(_wide, columns)}) > 1 and columns[0].dtype.kind in "iu":
        return distinct(_of_objects(name, [id for column in columns for id in distinct(column)[1].tolist()]))[1]
    return distinct(np.concatenate(columns))[1]


def first_difference(a: np.ndarray, b: np.ndarray) -> int | None:
    """The first position at which two columns of as many ids differ, or None; one and the same array costs nothing."""
    if a is b:
        return None
    if FAMILIES[a.dtype.kind] != FAMILIES[b.dtype.kind]:
        return 0
    differ = a != b  # exact for int64 and uint64 too
    return int(differ.argmax()) if differ.any() else None


def _wide(ids: np.ndarray) -> np.ndarray:
    """Integers whose differences do not overflow, where they are near one another: 100 - (-20) is no int8."""
    return ids if ids.dtype.kind not in "iu" or ids.dtype.itemsize == 8 else ids.astype(np.int64)


def _span(ids: np.ndarray, n: int) -> int | None:
    """How many numbers the integer ids range over, where a table of so many is worth it; else None."""
    if ids.dtype.kind not in "iu":
        return None
    span = int(ids.max()) - int(ids.min()) + 1
    return span if span <= 4 * max(n, len(ids)) + 1_000_000 else None
