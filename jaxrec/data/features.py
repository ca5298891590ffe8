"""Features of users and items: declared columns of a table -> one vector of named numbers per row.

Declare what each column is, fit on the rows that may be known (train's), apply to anything:

>>> films = {"year": [1995, 1999, 2003], "genres": [["Comedy"], ["Drama", "Crime"], ["Drama"]]}
>>> encoder = fit(films, {"year": Numeric(), "genres": Tags(unknown="zeros")})
>>> encoder.names
('year', 'genres=Comedy', 'genres=Crime', 'genres=Drama')
>>> x = encoder({"year": [1999], "genres": [["Drama", "Western"]]})
>>> encoder.read(x[0])  # a vector can be read back: what is not 0, by name
{'genres=Drama': 1.0}

A table is a polars or pandas frame, or a dict of columns. `align` brings a table of your own into the ratings' order.
A value that is not known (null, None) gives zeros, in a numeric column the mean. `to_dict` and `from_dict` are for
saving (JSON, or the meta of `artifact.write`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrec import check

__all__ = ["Category", "Column", "Encoder", "Numeric", "Tags", "Text", "align", "fit"]


@dataclass(frozen=True)
class Numeric:
    """A number less its mean, over its standard deviation (1 where all are equal). Not known gives 0, the mean.

    Attributes:
        mean: fitted, or given.
        std: fitted, or given.
    """

    mean: float | None = None
    std: float | None = None

    def fit(self, name: str, column: Sequence[Any]) -> Numeric:
        """Mean and standard deviation of what is known."""
        known = np.array([v for v in _numbers(name, column) if v is not None])
        mean = (float(known.mean()) if len(known) else 0.0) if self.mean is None else self.mean
        return Numeric(mean, (float(known.std()) if len(known) else 0.0) or 1.0 if self.std is None else self.std)

    def names(self, name: str) -> tuple[str, ...]:
        """One: the column's."""
        return (name,)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """(value - mean) / std, [n, 1]."""
        mean, std = self.mean or 0.0, self.std or 1.0
        return np.array([[0.0 if v is None else (v - mean) / std] for v in _numbers(name, column)]).reshape(-1, 1)


@dataclass(frozen=True)
class Category:
    """One of several values: one-hot.

    Attributes:
        unknown: what a value that was not there in fitting gives: 'error', 'zeros', or 'other', a column of its own
            that the values rarer than `min_count` share.
        min_count: how often a value must be there in fitting to have a column; rarer ones are unknown.
        values: fitted in sorted order, or given.
    """

    unknown: str = "error"
    min_count: int = 1
    values: tuple[str, ...] | None = None

    def fit(self, name: str, column: Sequence[Any]) -> Category:
        """The values there are."""
        return dataclasses.replace(self, values=self.values or _vocabulary(column, self.min_count))

    def names(self, name: str) -> tuple[str, ...]:
        """NAME=VALUE each."""
        return _value_names(name, self.values, self.unknown)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """One-hot, [n, values]."""
        return _multi_hot(name, [None if v is None else (v,) for v in column], self)


@dataclass(frozen=True)
class Tags:
    """Any number of values in each row, such as genres: multi-hot.

    Attributes:
        unknown: as in Category.
        min_count: as in Category.
        values: fitted in sorted order, or given.
    """

    unknown: str = "error"
    min_count: int = 1
    values: tuple[str, ...] | None = None

    def fit(self, name: str, column: Sequence[Any]) -> Tags:
        """The values there are, in any row."""
        every = [tag for row in column if row is not None for tag in _tags(name, row)]
        return dataclasses.replace(self, values=self.values or _vocabulary(every, self.min_count))

    def names(self, name: str) -> tuple[str, ...]:
        """NAME=VALUE each."""
        return _value_names(name, self.values, self.unknown)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """Multi-hot, [n, values]."""
        return _multi_hot(name, [None if row is None else _tags(name, row) for row in column], self)


@dataclass(frozen=True)
class Text:
    """Free text by TF-IDF of its words, rows of length 1 (scikit-learn's TfidfVectorizer; English stop words left out).

    Words that were not there in fitting are left out: a text of nothing else gives zeros.

    Attributes:
        max_features: at most so many words, the most frequent.
        min_count: in how many texts a word must be.
        words: fitted in sorted order, or given (then with `idf`).
        idf: [words], each word's weight: log((1 + texts) / (1 + texts with it)) + 1.
    """

    max_features: int = 1000
    min_count: int = 2
    words: tuple[str, ...] | None = None
    idf: tuple[float, ...] | None = None

    def fit(self, name: str, column: Sequence[Any]) -> Text:
        """The words and their weights."""
        vectorizer = self._vectorizer(max_features=self.max_features, min_df=self.min_count)
        try:
            vectorizer.fit(["" if v is None else str(v) for v in column])
        except ValueError as error:
            raise ValueError(f"{name}: no word is in {self.min_count} of the {len(column)} texts.") from error
        words = tuple(map(str, vectorizer.get_feature_names_out()))
        return dataclasses.replace(self, words=words, idf=tuple(map(float, vectorizer.idf_)))

    def names(self, name: str) -> tuple[str, ...]:
        """NAME:WORD each."""
        return tuple(f"{name}:{word}" for word in self.words or ())

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """TF-IDF, [n, words]."""
        vectorizer = self._vectorizer(vocabulary={word: k for k, word in enumerate(self.words or ())})
        vectorizer.idf_ = np.array(self.idf)
        return vectorizer.transform(["" if v is None else str(v) for v in column]).toarray()

    @staticmethod
    def _vectorizer(**options: Any) -> Any:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ImportError("Text columns need scikit-learn: pip install 'jaxrec[text]'.") from error
        return TfidfVectorizer(stop_words="english", strip_accents="unicode", **options)


Column = Numeric | Category | Tags | Text
KINDS: dict[str, type[Column]] = {kind.__name__: kind for kind in (Numeric, Category, Tags, Text)}


@dataclass(frozen=True)
class Encoder:
    """Fitted columns: a table in, [n, d] float32 out.

    Attributes:
        columns: name -> its kind, fitted, in the order of the vector.
    """

    columns: Mapping[str, Column]

    @property
    def names(self) -> tuple[str, ...]:
        """[d], the name of every place of the vector, all different."""
        return tuple(each for name, column in self.columns.items() for each in column.names(name))

    def __call__(self, table: Any) -> np.ndarray:
        """The rows' features, float32 [n, d]; columns of the table that were not declared are not looked at.

        Raises:
            ValueError: a column is missing; columns of different lengths; NaN or infinity; an unknown value where the
                column has unknown='error'.
        """
        given = {name: _column(table, name) for name in self.columns}
        check.same_length(**given)
        parts = [column.encode(name, given[name]) for name, column in self.columns.items()]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def read(self, vector: Any) -> dict[str, float]:
        """What is not 0 in one row's features, by name, largest first."""
        names = self.names
        if np.shape(vector) != (len(names),):
            raise ValueError(f"vector: expected {len(names)} features, got shape {np.shape(vector)}.")
        found = [(name, float(v)) for name, v in zip(names, np.asarray(vector), strict=True) if v != 0]
        return dict(sorted(found, key=lambda pair: -abs(pair[1])))

    def to_dict(self) -> dict[str, Any]:
        """All of it, in what JSON holds."""
        return {
            name: {"kind": type(column).__name__, **dataclasses.asdict(column)} for name, column in self.columns.items()
        }

    @staticmethod
    def from_dict(saved: Mapping[str, Any]) -> Encoder:
        """The Encoder that `to_dict` was called on."""
        columns: dict[str, Column] = {}
        for name, state in saved.items():
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items()}
            fields.pop("kind", None)
            check.choice(f"{name}: kind", state.get("kind"), tuple(KINDS))
            columns[name] = KINDS[state["kind"]](**fields)
        return Encoder(columns)


def fit(table: Any, columns: Mapping[str, Column]) -> Encoder:
    """Fits every declared column on a table.

    What a test user has is no secret where it stands in a table that was there before (her age); what was computed from
    ratings must come from train's. Fit on the rows that training sees, so that the rest can hold something new.

    Args:
        table: a frame or a dict of columns.
        columns: name -> Numeric(), Category(), Tags() or Text(), in the order wanted.

    Raises:
        ValueError: no columns; a missing one; NaN or infinity in a Numeric one; a Category with unknown= not one of
            'error', 'zeros', 'other'.
    """
    if not columns:
        raise ValueError("columns: expected at least one, such as {'age': Numeric()}.")
    given = {name: _column(table, name) for name in columns}
    check.same_length(**given)
    for name, column in columns.items():
        if not isinstance(column, Column):
            raise ValueError(f"{name}: expected Numeric(), Category(), Tags() or Text(), got {column!r}.")
        if isinstance(column, Category | Tags):
            check.choice(f"{name}: unknown", column.unknown, ("error", "zeros", "other"))
    return Encoder({name: column.fit(name, given[name]) for name, column in columns.items()})


def align(table: Any, key: str, ids: Sequence[Any]) -> dict[str, list[Any]]:
    """A table's rows in the order of `ids`: row n is of ids[n], as ratings with those raw ids need it.

    Rows of other ids are left out.

    Args:
        table: a frame or a dict of columns.
        key: its column of raw ids.
        ids: `ratings.user_ids` or `ratings.item_ids`.

    Raises:
        ValueError: an id has no row, or several.

    >>> align({"user": ["b", "a"], "age": [30, 20]}, "user", ["a", "b"])
    {'user': ['a', 'b'], 'age': [20, 30]}
    """
    place: dict[Any, int] = {}
    for n, raw in enumerate(_column(table, key)):
        if raw in place:
            raise ValueError(f"{key}: {raw!r} has rows {place[raw]} and {n}: expected one row of every id.")
        place[raw] = n
    wanted = [raw.item() if isinstance(raw, np.generic) else raw for raw in ids]
    if missing := [raw for raw in wanted if raw not in place]:
        raise ValueError(
            f"{key}: {len(missing)} of {len(wanted)} ids have no row, such as {missing[0]!r}; the table has "
            f"{len(place)}, such as {next(iter(place), None)!r}. Ids of one type? Add the rows, with None for what is "
            "not known."
        )
    order = [place[raw] for raw in wanted]
    every = list(table.keys()) if isinstance(table, Mapping) else list(table.columns)
    return {name: [column[n] for n in order] for name in every for column in (_column(table, name),)}


def _column(table: Any, name: str) -> list[Any]:
    every = list(table.keys()) if isinstance(table, Mapping) else list(table.columns)
    if name not in every:
        raise ValueError(f"expected a column {name!r}, the table has {', '.join(map(repr, every))}.")
    column = table[name]
    column = (
        column.tolist() if hasattr(column, "tolist") else column.to_list() if hasattr(column, "to_list") else column
    )
    return list(column)


def _numbers(name: str, column: Sequence[Any]) -> list[float | None]:
    for n, value in enumerate(column):
        if value is not None and not (isinstance(value, int | float | np.number) and math.isfinite(value)):
            raise ValueError(
                f"{name}: expected finite numbers, got {value!r} in row {n}. What is not known is None, never NaN "
                "(pandas: frame.astype(object).where(frame.notna(), None))."
            )
    return [None if value is None else float(value) for value in column]


def _vocabulary(values: Sequence[Any], min_count: int) -> tuple[str, ...]:
    count = Counter(str(v) for v in values if v is not None)
    return tuple(sorted(value for value, times in count.items() if times >= min_count))


def _value_names(name: str, values: tuple[str, ...] | None, unknown: str) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for value in (*(values or ()), *(("(other)",) if unknown == "other" else ())))


def _tags(name: str, row: Any) -> list[Any]:
    if isinstance(row, str) or not hasattr(row, "__iter__"):
        raise ValueError(f"{name}: expected a list of tags in every row, got {row!r}. One value a row is a Category().")
    return [tag for tag in row if tag is not None]


def _multi_hot(name: str, rows: Sequence[Sequence[Any] | None], column: Category | Tags) -> np.ndarray:
    place = {value: k for k, value in enumerate(column.values or ())}
    out = np.zeros((len(rows), len(column.names(name))))
    for n, row in enumerate(rows):
        for value in row or ():
            if str(value) in place:
                out[n, place[str(value)]] = 1
            elif column.unknown == "other":
                out[n, -1] = 1
            elif column.unknown == "error":
                raise ValueError(
                    f"{name}: {value!r} in row {n} was not there in fitting, which saw {len(place)} values such as "
                    f"{next(iter(place), None)!r}. Declare what it gives: unknown='zeros', or 'other' with min_count=2."
                )
    return out
