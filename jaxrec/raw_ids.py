"""Raw ids: the integers or strings that name users and items outside this library, and their positions in a table.

Ids are compared exactly: 1 is not "1", 2**53 + 1 is not 2.0**53, and ids that NumPy would truncate, round or wrap are
errors.

>>> known = as_raw_ids("user", ["ann", "bob"])
>>> positions(as_raw_ids("user", ["bob", "carol"]), known).tolist()
[1, -1]
>>> as_raw_ids("user", [1, "1"])
Traceback (most recent call last):
...
ValueError: user: expected raw ids that are all integers or all strings, got a mixture or None (int, str), such as 1 ...
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
ADVICE = {  # by the type of what is not an id
    "NoneType": " Drop the rows without an id.",
    "NAType": " Drop the rows without an id.",
    "bool": " If True and False are two ids, use 1 and 0.",
    "Decimal": " If they are integers, convert them by int; otherwise to text.",
    "float": " Pandas converts integers to floats if some are missing: drop those rows, then use astype(int).",
}


def as_raw_ids(name: str, values: Any) -> np.ndarray:
    """Returns one column of raw ids as an array of integers, strings or bytes, with every id unchanged.

    Args:
        name: the column's name in error messages.
        values: a list, an array, or a pandas or polars column; categories are replaced by their values.

    Raises:
        ValueError: not a column, or an empty one; ids of several types; floats (NaN is not an id, and an integer may
            have been rounded to a float), booleans, None; integers of more than 64 bits; strings that end in NUL, which
            NumPy drops.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: expected an id in every row, got a masked array. Drop the masked rows.")
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one column with at least one raw id, got shape {array.shape}.")
    if array.dtype.kind in "OT" or isinstance(values, list | tuple):  # NumPy converts a mixed list to strings or floats
        array = _from_objects(name, array.tolist() if array.dtype.kind in "OT" else values)
    if array.dtype.kind not in FAMILIES:
        advice = {"f": ADVICE["float"], "b": ADVICE["bool"]}.get(array.dtype.kind, "")
        raise ValueError(f"{name}: expected raw ids that are integers or strings, got {array.dtype}.{advice}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def known_ids(name: str, values: Any) -> np.ndarray:
    """Returns the distinct raw ids of a table, one per row, as `as_raw_ids` does; raises if an id is repeated."""
    ids = as_raw_ids(name, values)
    if not (ids[1:] > ids[:-1]).all() and len(set(ids.tolist())) != len(ids):
        raise ValueError(f"{name}: expected distinct ids, got repeated ones.")
    return ids


def _from_objects(name: str, values: Sequence[Any]) -> np.ndarray:
    """Returns Python objects as an array, if they are of one family of types and the array represents them exactly."""
    types = set(map(type, values))
    all_are = lambda *family: all(issubclass(kind, family) and kind is not bool for kind in types)
    if all_are(int, np.integer):
        low, high = int(min(values)), int(max(values))
        if low < -(2**63) or high >= 2**64 or (low < 0 and high >= 2**63):
            raise ValueError(
                f"{name}: expected integers that all fit in int64, or all in uint64, got {low} and {high}. "
                "Convert longer ids to strings."
            )
        return np.array(values, np.uint64 if high >= 2**63 else np.int64)
    if all_are(str) or all_are(bytes):
        array = np.array(values, str if all_are(str) else bytes)
        if sum(map(len, values)) != np.strings.str_len(array).sum():
            wrong = next(value for value in values if value[-1:] in ("\0", b"\0"))
            raise ValueError(f"{name}: expected ids that do not end in NUL (NumPy drops it), got {wrong!r}.")
        return array
    names = ", ".join(sorted(kind.__name__ for kind in types))
    advice = "".join(text for kind, text in ADVICE.items() if kind in {one.__name__ for one in types})
    if len(types) == 1:
        raise ValueError(f"{name}: expected raw ids that are integers or strings, got {names}.{advice}")
    other = next(k for k, value in enumerate(values) if type(value) is not type(values[0]))
    raise ValueError(
        f"{name}: expected raw ids that are all integers or all strings, got a mixture or None ({names}), such as "
        f"{values[0]!r} and, at position {other}, {values[other]!r}.{advice}"
    )


def distinct(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the position of each id among the distinct ids, the distinct ids sorted).

    For example [7, 3, 7] gives [1, 0, 1] and [3, 7]. Integer ids in a small range are looked up in a table: for 20M
    this takes 0.2 s, sorting 2 to 5 s, and np.unique with its inverse 20 to 30 s.
    """
    if (span := _table_size(raw, len(raw))) is not None:
        wide = _as_64_bits(raw)
        low = wide.min()
        present = np.zeros(span, bool)
        present[wide - low] = True
        position = np.cumsum(present, dtype=np.int32) - np.int32(1)
        return position[wide - low], (np.flatnonzero(present).astype(wide.dtype) + low).astype(raw.dtype)
    ordered = np.sort(raw)
    known = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return np.searchsorted(known, raw), known


def positions(raw: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the position of each raw id in `known`, which may have any order; -1 for ids that are not in it."""
    if FAMILIES[raw.dtype.kind] != FAMILIES[known.dtype.kind]:
        return np.full(len(raw), -1, np.int32)
    if raw.dtype.kind in "iu":
        raw, known = _as_64_bits(raw), _as_64_bits(known)
        if raw.dtype != known.dtype:  # int64 and uint64: NumPy would search in float64, which rounds large ids
            limits = np.iinfo(known.dtype)
            fits = (raw >= limits.min) & (raw <= limits.max)
            return np.where(fits, positions(np.where(fits, raw, 0).astype(known.dtype), known), -1)
        if (span := _table_size(known, len(raw))) is not None:
            low, high = known.min(), known.max()
            table = np.full(span, -1, np.int32)
            table[known - low] = np.arange(len(known))
            inside = (raw >= low) & (raw <= high)
            return np.where(inside, table[np.where(inside, raw, low) - low], -1)
    order = np.argsort(known, kind="stable")
    position = np.minimum(np.searchsorted(known[order], raw), len(known) - 1)
    return np.where(known[order[position]] == raw, order[position], -1)


def index(name: str, raw: Any, known: np.ndarray | None, size: int) -> Any:
    """Returns the positions of raw ids in a table: int32 [n] for a column, an int for one id; raises for unknown ids.

    If the table has no raw ids (`known` is None), `raw` are positions in [0, size), and are only checked.
    """
    is_scalar = np.ndim(raw) == 0
    if not is_scalar and len(raw) == 0:
        return np.zeros(0, np.int32)
    ids = as_raw_ids(name, [raw.item() if hasattr(raw, "item") else raw] if is_scalar else raw)
    if known is not None:
        position = positions(ids, known)
    elif ids.dtype.kind in "iu":
        inside = (ids >= 0) & (ids < size)
        position = np.where(inside, np.where(inside, ids, 0).astype(np.int64), -1)  # -1 as uint64 would be 2**64 - 1
    else:
        position = np.full(len(ids), -1)
    if (position < 0).any():
        table = f"ratings.{name}_ids"
        advice = f"Known are the positions 0 to {size - 1}." if known is None else f"The known ids are {table}."
        refuse_unknown(name, ids, position, np.arange(size) if known is None else known, advice)
    return int(position[0]) if is_scalar else position.astype(np.int32)


def refuse_unknown(name: str, raw: np.ndarray, position: np.ndarray, known: np.ndarray, advice: str) -> None:
    """Raises an error for ids without a position (-1), naming up to three, and saying what to do."""
    unknown = raw[position < 0]
    _, first_rows = np.unique(unknown, return_index=True)
    some = ", ".join(repr(unknown[row].item()) for row in np.sort(first_rows)[:3])
    n_unknown, n_ids = len(first_rows), len(np.unique(raw))
    family, known_family = FAMILIES[raw.dtype.kind], FAMILIES[known.dtype.kind]
    raise ValueError(
        f"{name}: {unknown[0].item()!r} is not among the {len(known)} known ids ({len(unknown)} such rows). "
        + (f"Known ids are {known_family}, these are {family}: 1 is not '1'. " if family != known_family else "")
        + f"Of {n_ids} ids, {n_unknown} are unknown ({some}{', ...' if n_unknown > 3 else ''}). {advice}"
    )


def union(name: str, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the distinct ids of several columns, sorted.

    Raises:
        ValueError: ids are integers in one and strings in another; the integers do not fit in one type of 64 bits.
    """
    if len({FAMILIES[column.dtype.kind] for column in columns}) > 1:
        raise ValueError(
            f"{name}: expected ids of one kind, got {' and '.join(FAMILIES[c.dtype.kind] for c in columns)}. "
            "1 is not '1': convert one of them first."
        )
    if len({column.dtype for column in map(_as_64_bits, columns)}) > 1 and columns[0].dtype.kind in "iu":
        return distinct(_from_objects(name, [id for column in columns for id in distinct(column)[1].tolist()]))[1]
    return distinct(np.concatenate(columns))[1]


def first_difference(a: np.ndarray, b: np.ndarray) -> int | None:
    """Returns the first position at which two columns of equal length differ, or None; immediate if a is b."""
    if a is b:
        return None
    if FAMILIES[a.dtype.kind] != FAMILIES[b.dtype.kind]:
        return 0
    differs = a != b  # exact for int64 and uint64 too
    return int(differs.argmax()) if differs.any() else None


def _as_64_bits(ids: np.ndarray) -> np.ndarray:
    """Returns integer ids in 64 bits, so that differences in a small range do not overflow as 100 - (-20) in int8."""
    return ids if ids.dtype.kind not in "iu" or ids.dtype.itemsize == 8 else ids.astype(np.int64)


def _table_size(ids: np.ndarray, n: int) -> int | None:
    """Returns max - min + 1 of integer ids if a lookup table of that size is worthwhile, else None."""
    if ids.dtype.kind not in "iu":
        return None
    span = int(ids.max()) - int(ids.min()) + 1
    return span if span <= 4 * max(n, len(ids)) + 1_000_000 else None
