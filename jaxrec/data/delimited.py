"""Text files of rows and columns (csv, tsv, '::' between the columns), as tables of text that know their lines.

A file may be plain, gzip, or in a zip; in any encoding that Python knows; with a header or without. polars splits the
rows into cells; what it does not know (other encodings, separators of several characters) is changed in the bytes
before, so that there is one parser, and quoted cells are the same in every file.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

__all__ = ["TextTable", "read_text"]


@dataclass(frozen=True)
class TextTable:
    """The cells of one text file.

    Attributes:
        source: the file, and the member if it is a zip; for error messages.
        names: the names of the columns; None without a header.
        cells: a polars frame of text, one row per line after the header; null where a cell is empty.
        first_line: the line of the first row, counted from 1 in the file.
    """

    source: str
    names: list[str] | None
    cells: pl.DataFrame
    first_line: int

    def line(self, row: int) -> int:
        """Returns the line on which a row begins: quoted cells in the rows above it may have several lines."""
        return self.first_line + row + _line_ends(self.cells.head(row))


def read_text(
    path: str | PathLike[str],
    *,
    separator: str = ",",
    header: bool | Sequence[str] = True,
    quote: str | None = '"',
    encoding: str = "utf-8",
    member: str | None = None,
) -> TextTable:
    """Reads a text file; the arguments are those of `read_csv`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or a zip of several files and `member` is None; text of another encoding; a row
            with more columns than the first; a quote without its end; another number of names than of columns.
    """
    import polars as pl

    _check_characters(separator, quote)
    if isinstance(header, str):
        raise ValueError(f"header: expected True, False or a list of names, got {header!r}.")
    source, content = _bytes(Path(path), member)
    content = _utf8(source, content, encoding)
    body = content.lstrip(b"\r\n")
    blank_lines = content[: len(content) - len(body)].count(b"\n")
    if body.endswith((b"\n\n", b"\n\r\n")):  # otherwise nothing is copied
        body = body.rstrip(b"\r\n")
    body, byte = _one_byte(source, body, separator)
    try:
        cells = pl.read_csv(body, has_header=False, infer_schema=False, separator=byte, quote_char=quote)
    except pl.exceptions.NoDataError as error:
        raise ValueError(f"{source}: expected rows of text, got an empty file.") from error
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{source}: {_reason(body, blank_lines, byte, quote, encoding, error)}") from error
    if byte != separator and quote is not None and quote.encode() in body:  # quoted cells may hold the separator
        cells = cells.with_columns(pl.all().str.replace_all(byte, separator, literal=True))
    if header is True:
        top = cells.head(1)
        names = ["" if name is None else name for name in top.row(0)]
        return TextTable(source, names, cells.slice(1), blank_lines + 2 + _line_ends(top))
    if header is not False and len(header) != cells.width:
        raise ValueError(
            f"{source}: expected one name per column, got {len(header)} names and {cells.width} columns; the first row "
            f"is {cells.row(0)}. The separator is {separator!r}."
        )
    return TextTable(source, list(header) if header else None, cells, blank_lines + 1)


def _check_characters(separator: str, quote: str | None) -> None:
    if not separator or set(separator) & set("\r\n"):
        raise ValueError(f"separator: expected one or more characters within a line, got {separator!r}.")
    if quote is not None and (len(quote.encode()) != 1 or quote in separator + "\r\n"):
        raise ValueError(f"quote: expected one ASCII character that is not in the separator, or None, got {quote!r}.")


def _bytes(path: Path, member: str | None) -> tuple[str, bytes]:
    """Returns the name of a file for error messages, and its content, unpacked if it is a gzip or a zip."""
    content = path.read_bytes()
    source = str(path)
    try:
        if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _zip_member(path, content, member)
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: a password
        raise ValueError(f"{source}: cannot be unpacked: {error}") from error
    if member is not None:
        raise ValueError(f"{source}: expected a zip, because member={member!r} was given; this is a single file.")
    return source, content


def _zip_member(path: Path, content: bytes, member: str | None) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        chosen = files if member is None else [name for name in files if name == member]
        if len(chosen) != 1:
            few = ", ".join(map(repr, files[:20])) + (f" and {len(files) - 20} more" if len(files) > 20 else "")
            example = f", such as member={files[0]!r}" if files else ""
            raise ValueError(
                f"{path}: expected {'a zip of one file' if member is None else f'a zip with the file {member!r}'}, got "
                f"{len(files)} files: {few}. Choose one by member={example}."
            )
        return f"{path} ({chosen[0]})", archive.read(chosen[0])


def _utf8(source: str, content: bytes, encoding: str) -> bytes:
    """Returns text in UTF-8, which is what polars reads; it also checks what is said to be UTF-8 already."""
    try:
        if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
            return content
        return content.decode(encoding).encode()
    except LookupError as error:
        raise ValueError(f"encoding: expected one that Python knows, such as 'latin-1', got {encoding!r}.") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        raise ValueError(
            f"{source}: line {line} is not text in {encoding} ({error.reason}). Give the file's encoding=, such as "
            "'utf-8', 'latin-1', 'cp1252' or 'utf-16'."
        ) from error


def _one_byte(source: str, content: bytes, separator: str) -> tuple[bytes, str]:
    """Returns the content with a separator of one byte, as polars needs it, and that separator.

    A longer one ('::') is replaced by a control character that the file does not have, so no two cells are merged.
    """
    if len(separator.encode()) == 1:
        return content, separator
    for byte in "\x1f\x1e\x1d\x1c\x1b\x1a\x19\x18\x17\x16\x15\x14\x13\x12\x11\x10":
        if byte.encode() not in content:
            return content.replace(separator.encode(), byte.encode()), byte
    raise ValueError(f"{source}: expected text, got a file with every control character. Is it unpacked?")


def _line_ends(cells: pl.DataFrame) -> int:
    """Returns how many line ends there are within the cells."""
    return sum(int(column.str.count_matches("\n", literal=True).sum() or 0) for column in cells)


def _reason(body: bytes, blank_lines: int, byte: str, quote: str | None, encoding: str, error: Exception) -> str:
    """Returns why polars refused the rows, with the line, which it does not say."""
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        line = blank_lines + body[: wrong.start].count(b"\n") + 1
        advice = "'utf-16'" if body.startswith((b"\xff\xfe", b"\xfe\xff")) else "'latin-1', 'cp1252' or 'utf-16'"
        return f"line {line} is not text in {encoding} ({wrong.reason}). Give the file's encoding=, such as {advice}."
    if "more fields" in str(error):
        plain: dict = {"quoting": csv.QUOTE_NONE} if quote is None else {"quotechar": quote}
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=byte, **plain)
        width, line = None, 1
        for row in rows:
            width = width or len(row)
            if len(row) > width:
                return (
                    f"expected {width} columns, as in the first line, got {len(row)} in line {blank_lines + line}. "
                    "Text that has the separator in it must be quoted."
                )
            line = rows.line_num + 1
    advice = "" if quote is None else " If a quote is a character like any other in this file, use quote=None."
    return f"{str(error).splitlines()[0]}.{advice}"
