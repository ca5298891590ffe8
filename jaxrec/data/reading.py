r"""Reading ratings from text files: csv, tsv, '::' between the columns, plain or packed, one file or several.

For train and test in two files, `align_ids(read_csv("train.csv"), read_csv("test.csv"))` gives both the users and items
of either.

>>> import tempfile
>>> from pathlib import Path
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder, "ratings.dat")
...     _ = path.write_text("ann::10::5\nbob::10::4\nbob::30::0\n")
...     ratings = read_csv(path, separator="::", header=False, user=0, item=1, value=2)
>>> ratings.value, ratings.user_ids
(array([5., 4., 0.], dtype=float32), array(['ann', 'bob'], dtype='<U3'))
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxrec import check
from jaxrec.data.delimited import TextTable, read_text
from jaxrec.data.frames import FilePath, as_paths, check_columns, name_of_all
from jaxrec.ratings import Duplicates, Ratings, Unknown
from jaxrec.times import TimeUnit, from_text

if TYPE_CHECKING:
    import polars as pl

__all__ = ["read_csv"]

INTEGER = r"^[+-]?\d+$"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def read_csv(
    path: FilePath | Iterable[FilePath],
    *,
    user: str | int = "user",
    item: str | int = "item",
    value: str | int | None = "rating",
    time: str | int | None = None,
    weights: str | int | None = None,
    separator: str = ",",
    header: bool | Sequence[str] = True,
    quote: str | None = '"',
    encoding: str = "utf-8",
    decimal_comma: bool = False,
    member: str | None = None,
    text_ids: bool | Literal["user", "item"] = False,
    user_ids: Any = None,
    item_ids: Any = None,
    duplicates: Duplicates = "error",
    unknown: Unknown = "error",
    time_unit: TimeUnit = "s",
) -> Ratings:
    r"""Reads ratings from text files of rows and columns: csv, tsv and the like, plain or packed, split by polars.

    Published files, each in one line:

        read_csv("ml-100k/u.data", separator="\t", header=False, user=0, item=1, value=2, time=3)
        read_csv("ml-1m/ratings.dat", separator="::", header=False, user=0, item=1, value=2, time=3)
        read_csv("ml-1m.zip", member="ml-1m/ratings.dat", separator="::", header=False, user=0, item=1, value=2, time=3)
        read_csv("ml-32m/ratings.csv", user="userId", item="movieId", time="timestamp")
        read_csv("ratings_Books.csv", header=["user", "item", "rating", "time"], time="time")  # Amazon
        read_csv("usersha1-artmbid-artname-plays.tsv", separator="\t", header=False, quote=None, user=0, item=2,
                 value=3, duplicates="sum")  # Last.fm 360K: plays by the artist's name; some artists have no id
        read_csv("events.csv", user="visitorid", item="itemid", value=None, time="timestamp", time_unit="ms",
                 duplicates="sum")  # RetailRocket: the number of events of each visitor with each item

    Rows that do not count (events of another kind) are left out in a frame: `from_frame(frame.filter(...), ...)`.

    Args:
        path: a file, or several, whose rows follow one another in this order: users and items are numbered over all of
            them. Each may be plain, gzip, or a zip of one file. Blank lines at the end are no rows.
        user: the column of user ids: its name, or its number, counted from 0.
        item: the column of item ids.
        value: the column of ratings, or None for feedback without ratings, each of which is 1.
        time: the column of times, or None. Times are numbers in `time_unit` ('1577836800', '1577836800.25') or ISO 8601
            text ('2020-01-01', '2020-01-01 02:00:00', '2020-01-01T02:00:00.25+02:00'; UTC if there is no time zone).
        weights: the column of weights, or None.
        separator: what stands between two columns, of one or more characters; it is not a pattern.
        header: True if the first line has the names of the columns, False if it is a row (columns are numbers then). A
            list of names, one per column: the first line is a row, and these are the columns' names.
        quote: the character around cells that have the separator, a line end or itself (doubled) in them; None if a
            quote is a character like any other, as in tables of titles that nobody quoted.
        encoding: the encoding of the text: 'utf-8' (with a byte order mark or without), 'latin-1', 'cp1252', 'utf-16'
            or any other that Python knows.
        decimal_comma: True if ratings, weights and times are written with a comma ('4,5'); a point is an error then.
        member: which file of a zip that has several, by its name in the zip.
        text_ids: True reads both id columns as text, 'user' or 'item' one of them. Otherwise a column is read as
            integers if every cell is a canonical integer ('7', '-3'), and as text if any is not ('007', 'b').
        user_ids: as in `Ratings.from_columns`: the known users, including those without ratings.
        item_ids: the same for items.
        duplicates: as in `Ratings.from_columns`: what to do with repeated pairs, as plays and events have them.
        unknown: as in `Ratings.from_columns`: 'drop' removes the rows of unknown users and items.
        time_unit: the unit of numeric times: 's', 'ms', 'us' or 'ns'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be unpacked or decoded, or a zip has several files; a row has more columns than the
            first line; a column is missing or occurs twice; a cell is empty or is not a number; the ids of a column are
            all numbers but not all integers ('1.0'; text_ids=True reads them as text); a time has another form; and
            whatever `Ratings.from_columns` raises. Lines are counted from 1, as an editor counts them.
    """
    import polars as pl

    check.choice("text_ids", text_ids, (False, True, "user", "item"))
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    required = {role: name for role, name in names.items() if name is not None}
    options: dict[str, Any] = {"separator": separator, "header": header, "quote": quote, "encoding": encoding}
    files = [read_text(one, member=member, **options) for one in as_paths(path)]
    table = pl.concat([_columns(file, required) for file in files])
    sources = [file.source for file in files]
    label = lambda role: f"{name_of_all(sources)}: column {names[role]!r}"
    columns: dict[str, Any] = {role: table[role] for role in required}
    with _lines_in_errors(files):
        for role in ("user", "item"):
            if text_ids not in (True, role):
                columns[role] = _integers_where_canonical(label(role), table[role], decimal_comma)
        for role in ("value", "weights"):
            if role in required:
                columns[role] = check.finite(role, _numbers(label(role), table[role], decimal_comma))
        if time is not None:
            cells = _with_point(label("time"), table["time"]) if decimal_comma else table["time"]
            columns["time"], time_unit = from_text(label("time"), cells, time_unit)
    known: dict[str, Any] = {"user_ids": user_ids, "item_ids": item_ids, "unknown": unknown}
    return Ratings.from_columns(**columns, **known, duplicates=duplicates, time_unit=time_unit)


def _columns(file: TextTable, required: Mapping[str, str | int]) -> pl.DataFrame:
    """Returns the required columns of a text file by their roles; no cell is empty."""
    import polars as pl

    wanted, width = list(required.values()), file.cells.width
    for name in wanted:
        if isinstance(name, str) and file.names is None:
            raise ValueError(
                f"{file.source}: expected numbers of columns from 0 to {width - 1} (user=0, item=1), because there is "
                f"no header, got {name!r}. Names are given by header=[...], one per column."
            )
        if not isinstance(name, str) and (isinstance(name, bool) or not 0 <= name < width):
            first = file.names if file.names is not None else file.cells.row(0)
            raise ValueError(
                f"{file.source}: expected numbers of columns from 0 to {width - 1}, got {name!r}; the first line is "
                f"{list(first)}."
            )
    if file.names is not None:
        check_columns(file.names, [name for name in wanted if isinstance(name, str)], file.source)
    positions = [(file.names or []).index(name) if isinstance(name, str) else name for name in wanted]
    if len(set(positions)) < len(positions):
        raise ValueError(f"{file.source}: expected a different column for each role, got {wanted}.")
    if len(file.cells) == 0:
        raise ValueError(f"{file.source}: expected at least one row after the header, got none.")
    for name, position in zip(wanted, positions, strict=True):
        if (empty := file.cells.to_series(position).is_null()).any():
            line = file.line(int(empty.arg_max() or 0))
            raise ValueError(f"{file.source}: column {name!r} is empty in line {line}; expected a value in every line.")
    columns = [file.cells.to_series(position) for position in positions]
    return pl.DataFrame([column.alias(role) for role, column in zip(required, columns, strict=True)])


def _integers_where_canonical(name: str, cells: pl.Series, decimal_comma: bool) -> pl.Series:
    """Returns a text column as integers if every cell is a canonical integer, else unchanged: '001' and '1' differ."""
    import polars as pl

    for integers in (pl.Int64, pl.UInt64):
        numbers = cells.cast(integers, strict=False)
        if numbers.null_count() == 0 and (numbers.cast(pl.String) == cells).all():
            return numbers
    with_point = cells.str.replace(",", ".", literal=True) if decimal_comma else cells
    if with_point.str.contains(NUMBER).all() and not (is_integer := cells.str.contains(INTEGER)).all():
        position = int(is_integer.arg_min() or 0)
        raise ValueError(
            f"{name}: expected ids that are integers or strings, got numbers such as {cells[position]!r} at position "
            f"{position}. Use text_ids=True to read them as text."
        )
    return cells


def _numbers(name: str, cells: pl.Series, decimal_comma: bool) -> pl.Series:
    """Returns a text column as float64."""
    import polars as pl

    cells = cells.str.strip_chars()
    numbers = (_with_point(name, cells) if decimal_comma else cells).cast(pl.Float64, strict=False)
    if (invalid := numbers.is_null()).any():
        position = int(invalid.arg_max() or 0)
        comma = "" if decimal_comma or "," not in cells[position] else " A decimal comma is read by decimal_comma=True."
        raise ValueError(f"{name}: expected numbers, got {cells[position]!r} at position {position}.{comma}")
    return numbers


def _with_point(name: str, cells: pl.Series) -> pl.Series:
    """Returns decimal commas as points; '1.234' is refused, for it may be 1234, or a number of another notation."""
    if (points := cells.str.contains(r"^[+-]?[\d,]*\.[\d.,]*$")).any():
        position = int(points.arg_max() or 0)
        raise ValueError(
            f"{name}: expected numbers with a decimal comma and no point, got {cells[position]!r} at position "
            f"{position}. Leave out decimal_comma=True if the point is decimal."
        )
    return cells.str.replace(",", ".", literal=True)


@contextlib.contextmanager
def _lines_in_errors(files: Sequence[TextTable]) -> Iterator[None]:
    """Adds the file and its line to errors that name a position in a column of all files."""
    try:
        yield
    except ValueError as error:
        if (found := re.search(r" at position (\d+)", str(error))) is None:
            raise
        row = position = int(found[1])
        for file in files:
            if row < len(file.cells):
                raise ValueError(f"{error} Position {position} is line {file.line(row)} of {file.source}.") from error
            row -= len(file.cells)
        raise
