"""Features of users and items: declared columns of a table -> one vector of named numbers per row.

Declare what each column is, fit on the rows that may be known (train's), apply to anything:

>>> films = {"year": [1995, 1999, 2003], "genres": [["Comedy"], ["Drama", "Crime"], ["Drama"]]}
>>> encoder = fit_encoder(films, {"year": Numeric(), "genres": Tags(unknown="zeros")})
>>> encoder.names
('year', 'genres=Comedy', 'genres=Crime', 'genres=Drama')
>>> x = encoder({"year": [1999], "genres": [["Drama", "Western"]]})
>>> encoder.read(x[0])  # a vector can be read back: what is not 0, by name
{'genres=Drama': 1.0}

A table is a polars or pandas frame, or a dict of columns. `align` brings a table of your own into the ratings' order.
`to_dict` and `from_dict` are for saving (JSON, or the meta of `storage.write`).

A missing value (None, null, NA, NaN, NaT, masked) gives zeros, in fitting and in requests, whatever the column is: in a
Numeric one that is the mean, in a Category it is not unknown, among Tags it is left out. An empty string is a value.

Values that are equal are one category, whatever their types, in fitting, in requests (from JSON, too) and in `values=`:

| values | are the category |
| --- | --- |
| 1, 1.0, np.int8(1), Decimal("1.00"), "1"; -0.0 is 0 | 1 |
| 0.1, np.float32(0.1), Decimal("0.10"), "0.1" | 0.1 |
| True, "True"; and 1, if it is in the same column or asked for | True (1, if that was in the column) |
| a date, a datetime, Timestamp or datetime64 at its midnight, "2020-12-31" | 2020-12-31 |
| any other datetime (with a time zone: in UTC) | 2020-12-31T23:59:00 |
| text, to the letter: "01" is not "1", "1.0" is not 1 | itself |
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrec import check
from jaxrec.data import tables
from jaxrec.data.tables import align

__all__ = ["Category", "Column", "Encoder", "Numeric", "Tags", "Text", "align", "fit_encoder"]


@dataclass(frozen=True)
class Numeric:
    """A number less its mean, over its standard deviation (1 where all are equal up to rounding). Missing gives 0.

    Numbers are integers of any size, floats, bools (1 and 0), Decimals; computed in float64, given out as float32.

    Attributes:
        mean: fitted, or given.
        std: fitted, or given; > 0.
    """

    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be subtracted, or divided by."""
        for name, zero in (("mean", True), ("std", False)):
            if (number := getattr(self, name)) is not None:
                if not (math.isfinite(number) and (zero or number > 0)):
                    raise ValueError(f"{name}: expected a finite number{'' if zero else ' > 0'}, got {number}.")
                object.__setattr__(self, name, float(number))  # JSON has no float32

    def fit(self, name: str, column: Sequence[Any]) -> Numeric:
        """Mean and standard deviation of what is known."""
        known = np.array([v for v in _numbers(name, column) if v is not None])
        # over the power of two next to the largest: the square of 1e200 is infinite, that of 1e-200 is 0
        largest = float(np.abs(known).max(initial=0.0))
        power = 2.0 ** (math.frexp(largest)[1] - 1)
        scaled = known / power
        # all equal, up to the rounding of their own type: of three times 0.1 the deviation is 1.4e-17
        eps = max(
            np.finfo(kind).eps for kind in {np.float64, *map(type, column)} & {np.float16, np.float32, np.float64}
        )
        varies = len(known) > 0 and float(np.ptp(scaled)) > 4 * eps * (largest / power)
        mean = (float(scaled.mean()) * power if len(known) else 0.0) if self.mean is None else self.mean
        return Numeric(mean, (float(scaled.std()) * power if varies else 1.0) if self.std is None else self.std)

    def names(self, name: str) -> tuple[str, ...]:
        """One: the column's."""
        return (name,)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """(value - mean) / std, [n, 1]."""
        mean, std = self.mean or 0.0, self.std or 1.0
        with np.errstate(over="ignore"):
            numbers = np.array([mean if v is None else v for v in _numbers(name, column)])
            return ((numbers - mean) / std).reshape(-1, 1)


@dataclass(frozen=True)
class Category:
    """One of several values: one-hot.

    Attributes:
        unknown: what a value that was not there in fitting gives: 'error', 'zeros', or 'other', a column of its own
            that the values rarer than `min_count` share. A missing value is not unknown: it gives zeros.
        min_count: in how many rows a value must be in fitting to have a column; rarer ones are unknown.
        values: fitted in sorted order, or given; kept as text.
    """

    unknown: str = "error"
    min_count: int = 1
    values: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Values as the text that they are compared by."""
        object.__setattr__(self, "values", _distinct_texts(self.values))

    def fit(self, name: str, column: Sequence[Any]) -> Category:
        """The values there are."""
        if self.values is not None:
            return self
        return dataclasses.replace(self, values=_vocabulary(_single(column), self.min_count))

    def names(self, name: str) -> tuple[str, ...]:
        """NAME=VALUE each."""
        return _value_names(name, self.values, self.unknown)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """One-hot, [n, values]."""
        return _multi_hot(name, _single(column), self)


@dataclass(frozen=True)
class Tags:
    """Any number of values in each row, such as genres: multi-hot. A value twice in a row counts once.

    Attributes:
        unknown: as in Category.
        min_count: as in Category.
        values: fitted in sorted order, or given.
    """

    unknown: str = "error"
    min_count: int = 1
    values: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Values as the text that they are compared by."""
        object.__setattr__(self, "values", _distinct_texts(self.values))

    def fit(self, name: str, column: Sequence[Any]) -> Tags:
        """The values there are, in any row."""
        if self.values is not None:
            return self
        return dataclasses.replace(self, values=_vocabulary(_tags(name, column), self.min_count))

    def names(self, name: str) -> tuple[str, ...]:
        """NAME=VALUE each."""
        return _value_names(name, self.values, self.unknown)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """Multi-hot, [n, values]."""
        return _multi_hot(name, _tags(name, column), self)


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

    def __post_init__(self) -> None:
        """Refuses words without weights."""
        if (self.words is None) != (self.idf is None) or len(self.words or ()) != len(self.idf or ()):
            raise ValueError("words and idf: expected one weight for every word, or neither.")
        check.all_finite("idf", self.idf)

    def fit(self, name: str, column: Sequence[Any]) -> Text:
        """The words and their weights."""
        if self.words is not None:
            return self
        vectorizer = self._vectorizer(max_features=self.max_features, min_df=self.min_count)
        try:
            vectorizer.fit([tables.text(v) or "" for v in column])
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
        return vectorizer.transform([tables.text(v) or "" for v in column]).toarray()

    @staticmethod
    def _vectorizer(**options: Any) -> Any:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ImportError("Text columns need scikit-learn: pip install 'jaxrec[text]'.") from error
        return TfidfVectorizer(stop_words="english", strip_accents="unicode", **options)


Column = Numeric | Category | Tags | Text
UNKNOWN = ("error", "zeros", "other")
KINDS: dict[str, type[Column]] = {kind.__name__: kind for kind in (Numeric, Category, Tags, Text)}


@dataclass(frozen=True)
class Encoder:
    """Fitted columns: a table in, [n, d] float32 out.

    Attributes:
        columns: name -> its kind, fitted, in the order of the vector.
    """

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        """No two places of the vector have one name."""
        if twice := [name for name, times in Counter(self.names).items() if times > 1]:
            raise ValueError(f"expected different names in all places of the vector, got {twice[0]!r} more than once.")

    @property
    def names(self) -> tuple[str, ...]:
        """[d], the name of every place of the vector, all different."""
        return tuple(each for name, column in self.columns.items() for each in column.names(name))

    def __call__(self, table: Any) -> np.ndarray:
        """The rows' features, float32 [n, d]; columns of the table that were not declared are not looked at.

        Raises:
            ValueError: there is no such column, or it is no list; columns of different lengths; infinity, or a number
                that is beyond float32 once its mean is subtracted and it is divided by the standard deviation; an
                unknown value where the column has unknown='error'.
        """
        given = {name: tables.column(table, name) for name in self.columns}
        check.same_length(**given)
        parts = [column.encode(name, given[name]) for name, column in self.columns.items()]
        wide = np.concatenate(parts, axis=1)
        with np.errstate(over="ignore"):
            out = wide.astype(np.float32)
        if not np.isfinite(out).all():
            row, place = np.argwhere(~np.isfinite(out))[0]
            name = self.names[place]
            raise ValueError(
                f"{name}: expected features that float32 holds, got {wide[row, place]} of {given[name][row]!r} in row "
                f"{row}. Are its units those of fitting? Clip such a column first, or take its logarithm."
            )
        return out

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
            if "unknown" in fields:
                check.choice(f"{name}: unknown", fields["unknown"], UNKNOWN)
            columns[name] = KINDS[state["kind"]](**fields)
        return Encoder(columns)


def fit_encoder(table: Any, columns: Mapping[str, Column]) -> Encoder:
    """Fits every declared column on a table.

    What a test user has is no secret where it stands in a table that was there before (her age); what was computed from
    ratings must come from train's. Fit on the rows that training sees, so that the rest can hold something new.

    Args:
        table: a frame or a dict of columns.
        columns: name -> Numeric(), Category(), Tags() or Text(), in the order wanted.

    Raises:
        ValueError: no columns; one that the table does not have; infinity, or what is no number, in a Numeric one; a
            Category with unknown= not one of 'error', 'zeros', 'other'; two features of one name.
    """
    if not columns:
        raise ValueError("columns: expected at least one, such as {'age': Numeric()}.")
    given = {name: tables.column(table, name) for name in columns}
    check.same_length(**given)
    for name, column in columns.items():
        if not isinstance(column, Column):
            raise ValueError(f"{name}: expected Numeric(), Category(), Tags() or Text(), got {column!r}.")
        if isinstance(column, Category | Tags):
            check.choice(f"{name}: unknown", column.unknown, UNKNOWN)
    return Encoder({name: column.fit(name, given[name]) for name, column in columns.items()})


def _numbers(name: str, column: Sequence[Any]) -> list[float | None]:
    return [None if tables.missing(value) else tables.number(name, value, n) for n, value in enumerate(column)]


# True and 1 of one column are one category, named by the number; a column of bools alone keeps their names.
BOOLS = {"True": "1", "False": "0"}


def _vocabulary(rows: Sequence[Sequence[str] | None], min_count: int) -> tuple[str, ...]:
    every = {text for row in rows for text in row or ()}
    numbered = {word: digit for word, digit in BOOLS.items() if digit in every}
    count = Counter(text for row in rows for text in {numbered.get(text, text) for text in row or ()})
    return tuple(sorted(value for value, times in count.items() if times >= min_count))


def _distinct_texts(values: Iterable[Any] | None) -> tuple[str, ...] | None:
    """Values that were given, as text; an error where two are one."""
    if values is None:
        return None
    texts = [tables.text(value) for value in tables.as_list("values", values)]
    if None in texts:
        raise ValueError(f"values: expected known values, got a missing one at position {texts.index(None)}.")
    known = [BOOLS.get(text, text) for text in texts if text is not None]
    if twice := [text for text, times in Counter(known).items() if times > 1]:
        raise ValueError(f"values: expected different ones, got {twice[0]!r} more than once (1, 1.0 and True are one).")
    return tuple(text for text in texts if text is not None)


def _value_names(name: str, values: tuple[str, ...] | None, unknown: str) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for value in (*(values or ()), *(("(other)",) if unknown == "other" else ())))


def _single(column: Sequence[Any]) -> list[tuple[str, ...] | None]:
    """Each row's one value as text, or None."""
    return [None if (text := tables.text(value)) is None else (text,) for value in column]


def _tags(name: str, column: Sequence[Any]) -> list[tuple[str, ...] | None]:
    """Each row's values as text, without those that are missing; None for a row that is."""
    rows: list[tuple[str, ...] | None] = []
    for row in column:
        if tables.missing(row):
            rows.append(None)
        elif isinstance(row, str | bytes | Mapping) or not hasattr(row, "__iter__"):
            raise ValueError(
                f"{name}: expected a list of tags in every row, got {row!r}. One value a row is a Category()."
            )
        else:
            rows.append(tuple(text for tag in row if (text := tables.text(tag)) is not None))
    return rows


def _multi_hot(name: str, rows: Sequence[Sequence[str] | None], column: Category | Tags) -> np.ndarray:
    place = {value: k for k, value in enumerate(column.values or ())}
    for one, other in (*BOOLS.items(), *((digit, word) for word, digit in BOOLS.items())):
        if one in place:
            place.setdefault(other, place[one])
    out = np.zeros((len(rows), len(column.names(name))))
    for n, row in enumerate(rows):
        for text in row or ():
            if text in place:
                out[n, place[text]] = 1
            elif column.unknown == "other":
                out[n, -1] = 1
            elif column.unknown == "error":
                raise ValueError(
                    f"{name}: {text!r} in row {n} was not there in fitting, which saw {len(column.values or ())} "
                    f"values such as {next(iter(place), None)!r}. Declare what it gives: unknown='zeros', or 'other' "
                    "with min_count=2."
                )
    return out
