"""Features of users and items: the declared columns of a table, encoded as one vector of named numbers per row.

Declare the kind of each column, fit on the training rows, then encode any rows:

>>> films = {"year": [1995, 1999, 2003], "genres": [["Comedy"], ["Drama", "Crime"], ["Drama"]]}
>>> encoder = fit_encoder(films, {"year": Numeric(), "genres": Tags(unknown="zeros")})
>>> encoder.names
('year', 'genres=Comedy', 'genres=Crime', 'genres=Drama')
>>> x = encoder({"year": [1999], "genres": [["Drama", "Western"]]})
>>> encoder.read(x[0])  # the nonzero features of a vector, by name
{'genres=Drama': 1.0}

A table is a polars or pandas frame, or a dict of columns. `align` reorders the rows of a table to match the ratings.
`to_dict` and `from_dict` are for saving (as JSON, or in the meta of `storage.write`).

A missing value (None, null, NA, NaN, NaT, masked) is encoded as zeros in every kind of column, both in fitting and in
encoding: for Numeric that is the mean, for Category it is not an unknown value, for Tags the tag is skipped. An empty
string is a value.

Equal values are one category, whatever their types, in fitting, in encoding (also from JSON) and in `values=`:

| values | category |
| --- | --- |
| 1, 1.0, np.int8(1), Decimal("1.00"), "1"; -0.0 is 0 | 1 |
| 0.1, np.float32(0.1), Decimal("0.10"), "0.1" | 0.1 |
| True, "True"; and 1, if it is in the same column or encoded later | True (1, if that was in the column) |
| a date, a datetime, Timestamp or datetime64 at its midnight, "2020-12-31" | 2020-12-31 |
| any other datetime (with a time zone: in UTC) | 2020-12-31T23:59:00 |
| any other text, compared exactly: "01" is not "1", "1.0" is not 1 | the text |
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
    """A standardized number: (value - mean) / std, with std 1 if all values are equal up to rounding; 0 if missing.

    Values are integers of any size, floats, bools (1 and 0) or Decimals; computed in float64, returned as float32.

    Attributes:
        mean: fitted, unless it is passed.
        std: fitted, unless it is passed; > 0.
    """

    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        """Checks that the mean is finite and the standard deviation finite and positive."""
        for name, zero in (("mean", True), ("std", False)):
            if (number := getattr(self, name)) is not None:
                if not (math.isfinite(number) and (zero or number > 0)):
                    raise ValueError(f"{name}: expected a finite number{'' if zero else ' > 0'}, got {number}.")
                object.__setattr__(self, name, float(number))  # JSON has no float32

    def fit(self, name: str, column: Sequence[Any]) -> Numeric:
        """Fits mean and standard deviation to the values that are not missing."""
        known = np.array([v for v in _numbers(name, column) if v is not None])
        # Scaled by a power of two near the largest value, or squares would overflow (of 1e200) or vanish (of 1e-200).
        largest = float(np.abs(known).max(initial=0.0))
        power = 2.0 ** (math.frexp(largest)[1] - 1)
        scaled = known / power
        # Constant up to the rounding of the column's own type: 0.1 three times has a standard deviation of 1.4e-17.
        eps = max(
            np.finfo(kind).eps for kind in {np.float64, *map(type, column)} & {np.float16, np.float32, np.float64}
        )
        varies = len(known) > 0 and float(np.ptp(scaled)) > 4 * eps * (largest / power)
        mean = (float(scaled.mean()) * power if len(known) else 0.0) if self.mean is None else self.mean
        return Numeric(mean, (float(scaled.std()) * power if varies else 1.0) if self.std is None else self.std)

    def names(self, name: str) -> tuple[str, ...]:
        """The name of the one feature: that of the column."""
        return (name,)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """(value - mean) / std, [n, 1]."""
        mean, std = self.mean or 0.0, self.std or 1.0
        with np.errstate(over="ignore"):
            numbers = np.array([mean if v is None else v for v in _numbers(name, column)])
            return ((numbers - mean) / std).reshape(-1, 1)


@dataclass(frozen=True)
class Category:
    """One of several values, encoded one-hot.

    Attributes:
        unknown: how to encode a value that was not seen in fitting: 'error', 'zeros', or 'other', one feature that it
            shares with all values rarer than `min_count`. A missing value is not unknown: it is encoded as zeros.
        min_count: the number of rows that must have a value in fitting for it to get a feature; rarer values are
            unknown.
        values: fitted in sorted order, unless they are passed; stored as text.
    """

    unknown: str = "error"
    min_count: int = 1
    values: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Converts the values to text, which is how they are compared."""
        object.__setattr__(self, "values", _distinct_texts(self.values))

    def fit(self, name: str, column: Sequence[Any]) -> Category:
        """Fits the values that occur."""
        if self.values is not None:
            return self
        return dataclasses.replace(self, values=_vocabulary(_single(column), self.min_count))

    def names(self, name: str) -> tuple[str, ...]:
        """The features' names, NAME=VALUE each."""
        return _value_names(name, self.values, self.unknown)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """One-hot, [n, values]."""
        return _multi_hot(name, _single(column), self)


@dataclass(frozen=True)
class Tags:
    """Any number of values per row, such as genres, encoded multi-hot; a value repeated in a row counts once.

    Attributes:
        unknown: as in Category.
        min_count: as in Category.
        values: as in Category.
    """

    unknown: str = "error"
    min_count: int = 1
    values: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Converts the values to text, which is how they are compared."""
        object.__setattr__(self, "values", _distinct_texts(self.values))

    def fit(self, name: str, column: Sequence[Any]) -> Tags:
        """Fits the values that occur in any row."""
        if self.values is not None:
            return self
        return dataclasses.replace(self, values=_vocabulary(_tags(name, column), self.min_count))

    def names(self, name: str) -> tuple[str, ...]:
        """The features' names, NAME=VALUE each."""
        return _value_names(name, self.values, self.unknown)

    def encode(self, name: str, column: Sequence[Any]) -> np.ndarray:
        """Multi-hot, [n, values]."""
        return _multi_hot(name, _tags(name, column), self)


@dataclass(frozen=True)
class Text:
    """Free text, encoded as TF-IDF of its words by scikit-learn's TfidfVectorizer; rows have norm 1.

    English stop words and words that were not seen in fitting are ignored; a text without other words gives zeros.

    Attributes:
        max_features: the maximum number of words; the most frequent are kept.
        min_count: the number of texts that must contain a word.
        words: fitted in sorted order, unless they are passed (then together with `idf`).
        idf: [words], the weight of each word: log((1 + texts) / (1 + texts with the word)) + 1.
    """

    max_features: int = 1000
    min_count: int = 2
    words: tuple[str, ...] | None = None
    idf: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Checks that there is one finite weight per word."""
        if (self.words is None) != (self.idf is None) or len(self.words or ()) != len(self.idf or ()):
            raise ValueError("words and idf: expected one weight for every word, or both None.")
        check.all_finite("idf", self.idf)

    def fit(self, name: str, column: Sequence[Any]) -> Text:
        """Fits the words and their weights."""
        if self.words is not None:
            return self
        vectorizer = self._vectorizer(max_features=self.max_features, min_df=self.min_count)
        try:
            vectorizer.fit([tables.text(v) or "" for v in column])
        except ValueError as error:
            raise ValueError(
                f"{name}: no word occurs in {self.min_count} of the {len(column)} texts. Lower min_count."
            ) from error
        words = tuple(map(str, vectorizer.get_feature_names_out()))
        return dataclasses.replace(self, words=words, idf=tuple(map(float, vectorizer.idf_)))

    def names(self, name: str) -> tuple[str, ...]:
        """The features' names, NAME:WORD each."""
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
    """Fitted columns: a function from a table to features, float32 [n, d].

    Attributes:
        columns: the fitted kind of each column, by name, in the order of the features.
    """

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        """Checks that the features' names are distinct."""
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"expected different names for all features, got {repeated[0]!r} more than once.")

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct names [d] of the features."""
        return tuple(feature for name, column in self.columns.items() for feature in column.names(name))

    def __call__(self, table: Any) -> np.ndarray:
        """Returns the features of the table's rows, float32 [n, d]; columns that were not declared are ignored.

        Raises:
            ValueError: a column is missing or is not a list; columns differ in length; a number is infinite, or
                standardized it is too large for float32; a value is unknown and its column has unknown='error'.
        """
        values = {name: tables.column(table, name) for name in self.columns}
        check.same_length(**values)
        blocks = [column.encode(name, values[name]) for name, column in self.columns.items()]
        float64 = np.concatenate(blocks, axis=1)
        with np.errstate(over="ignore"):
            features = float64.astype(np.float32)
        if not np.isfinite(features).all():
            row, position = np.argwhere(~np.isfinite(features))[0]
            name = self.names[position]
            raise ValueError(
                f"{name}: expected features that fit in float32, got {float64[row, position]} for {values[name][row]!r}"
                f" in row {row}. Check that its units are those of fitting; otherwise clip it or take its logarithm."
            )
        return features

    def read(self, vector: Any) -> dict[str, float]:
        """Returns the nonzero features of one row by name, largest absolute value first."""
        names = self.names
        if np.shape(vector) != (len(names),):
            raise ValueError(f"vector: expected {len(names)} features, got shape {np.shape(vector)}.")
        nonzero = [(name, float(v)) for name, v in zip(names, np.asarray(vector), strict=True) if v != 0]
        return dict(sorted(nonzero, key=lambda pair: -abs(pair[1])))

    def to_dict(self) -> dict[str, Any]:
        """Returns the encoder as a dict that JSON can represent."""
        return {
            name: {"kind": type(column).__name__, **dataclasses.asdict(column)} for name, column in self.columns.items()
        }

    @staticmethod
    def from_dict(saved: Mapping[str, Any]) -> Encoder:
        """Returns the Encoder that `to_dict` has saved."""
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
    """Fits every declared column to a table.

    Features that exist before any rating (a test user's age) may be used for test users too; features computed from
    ratings must be computed from the train part. Fit on the training rows only: other rows may have new values.

    Args:
        table: a frame or a dict of columns.
        columns: Numeric(), Category(), Tags() or Text() for each column's name, in the order of the features.

    Raises:
        ValueError: no columns; a column is missing from the table; a Numeric column has infinity or a value that is
            not a number; unknown= is not one of 'error', 'zeros', 'other'; two features have one name.
    """
    if not columns:
        raise ValueError("columns: expected at least one, such as {'age': Numeric()}.")
    values = {name: tables.column(table, name) for name in columns}
    check.same_length(**values)
    for name, column in columns.items():
        if not isinstance(column, Column):
            raise ValueError(f"{name}: expected Numeric(), Category(), Tags() or Text(), got {column!r}.")
        if isinstance(column, Category | Tags):
            check.choice(f"{name}: unknown", column.unknown, UNKNOWN)
    return Encoder({name: column.fit(name, values[name]) for name, column in columns.items()})


def _numbers(name: str, column: Sequence[Any]) -> list[float | None]:
    return [None if tables.missing(value) else tables.number(name, value, n) for n, value in enumerate(column)]


# True and 1 in one column are one category, named '1'; in a column without numbers it is named 'True'.
BOOLS = {"True": "1", "False": "0"}


def _vocabulary(rows: Sequence[Sequence[str] | None], min_count: int) -> tuple[str, ...]:
    """Returns the values that at least `min_count` rows have, sorted."""
    texts = {text for row in rows for text in row or ()}
    digits = {word: digit for word, digit in BOOLS.items() if digit in texts}
    counts = Counter(text for row in rows for text in {digits.get(text, text) for text in row or ()})
    return tuple(sorted(value for value, count in counts.items() if count >= min_count))


def _distinct_texts(values: Iterable[Any] | None) -> tuple[str, ...] | None:
    """Returns the values as text, or raises if two of them are equal."""
    if values is None:
        return None
    texts = [tables.text(value) for value in tables.as_list("values", values)]
    if None in texts:
        raise ValueError(f"values: expected no missing value, got one at position {texts.index(None)}.")
    canonical = [BOOLS.get(text, text) for text in texts if text is not None]
    if repeated := [text for text, count in Counter(canonical).items() if count > 1]:
        raise ValueError(
            f"values: expected distinct values, got {repeated[0]!r} more than once (1, 1.0 and True are equal)."
        )
    return tuple(text for text in texts if text is not None)


def _value_names(name: str, values: tuple[str, ...] | None, unknown: str) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for value in (*(values or ()), *(("(other)",) if unknown == "other" else ())))


def _single(column: Sequence[Any]) -> list[tuple[str, ...] | None]:
    """Returns the one value of each row as a tuple of its text; None if it is missing."""
    return [None if (text := tables.text(value)) is None else (text,) for value in column]


def _tags(name: str, column: Sequence[Any]) -> list[tuple[str, ...] | None]:
    """Returns the values of each row as text, without missing ones; None if the row itself is missing."""
    rows: list[tuple[str, ...] | None] = []
    for row in column:
        if tables.missing(row):
            rows.append(None)
        elif isinstance(row, str | bytes | Mapping) or not hasattr(row, "__iter__"):
            raise ValueError(
                f"{name}: expected a list of tags in every row, got {row!r}. Use Category() for one value per row."
            )
        else:
            rows.append(tuple(text for tag in row if (text := tables.text(tag)) is not None))
    return rows


def _multi_hot(name: str, rows: Sequence[Sequence[str] | None], column: Category | Tags) -> np.ndarray:
    position = {value: k for k, value in enumerate(column.values or ())}
    for value, synonym in (*BOOLS.items(), *((digit, word) for word, digit in BOOLS.items())):
        if value in position:
            position.setdefault(synonym, position[value])
    encoded = np.zeros((len(rows), len(column.names(name))))
    for n, row in enumerate(rows):
        for text in row or ():
            if text in position:
                encoded[n, position[text]] = 1
            elif column.unknown == "other":
                encoded[n, -1] = 1
            elif column.unknown == "error":
                raise ValueError(
                    f"{name}: expected one of the {len(column.values or ())} fitted values such as "
                    f"{next(iter(position), None)!r}, got {text!r} in row {n}. "
                    "Use unknown='zeros', or unknown='other' with min_count=2."
                )
    return encoded
