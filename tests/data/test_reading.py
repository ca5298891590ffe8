"""`read_csv` on files as they are found: every option with every feature, and the line of every error."""

import gzip
import re
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import read_csv

COLUMNS = ["user", "item", "rating", "time", "weights"]
BY_NUMBER = {"user": 0, "item": 1, "value": 2, "time": 3, "weights": 4}
BY_NAME = {"time": "time", "weights": "weights"}


def as_rows(ratings):
    """The ratings with their raw ids, as tuples."""
    columns = [ratings.user_ids[ratings.user], ratings.item_ids[ratings.item], ratings.value]
    columns += [column for column in (ratings.time, ratings.weights) if column is not None]
    return list(zip(*(column.tolist() for column in columns), strict=True))


class Form(NamedTuple):
    """A way to write a table, and how to read it: `write(folder, rows)` returns the path and the first row's line."""

    write: object
    options: dict


def text(rows, *, header=True, separator=",", end="\n", before="", after=""):
    rows = [COLUMNS, *rows] if header else rows
    return before + "".join(separator.join(row) + end for row in rows) + after


def form(options=BY_NAME, *, encoding="utf-8", pack=lambda content: content, **layout):
    def write(folder, rows):
        content = text(rows, **layout)
        (folder / "ratings.csv").write_bytes(pack(content.encode(encoding)))
        first = layout.get("header", True) + layout.get("before", "").count("\n") + 1
        return folder / "ratings.csv", [(str(folder / "ratings.csv"), first + k) for k in range(len(rows))]

    return Form(write, options)


def zipped(names, options):
    def write(folder, rows):
        with zipfile.ZipFile(folder / "r.zip", "w") as archive:
            for name in names:
                archive.writestr(name, text(rows) if name.endswith("ratings.csv") else "other")
        member = next(name for name in names if name.endswith("ratings.csv"))
        return folder / "r.zip", [(f"{folder / 'r.zip'} ({member})", 2 + k) for k in range(len(rows))]

    return Form(write, BY_NAME | options)


def in_two_files(folder, rows):
    """Writes two files, of which the second is packed and has its columns in another order."""
    (folder / "one.csv").write_text(text(rows[:1]))
    turned = "".join(",".join(row[::-1]) + "\n" for row in [COLUMNS, *rows[1:]])
    (folder / "two.csv").write_bytes(gzip.compress(turned.encode()))
    lines = [(str(folder / "one.csv"), 2)] + [(str(folder / "two.csv"), 2 + k) for k in range(len(rows) - 1)]
    return [folder / "one.csv", str(folder / "two.csv")], lines


def with_decimal_comma(folder, rows):
    changed = [[user, item, *(cell.replace(".", ",") for cell in rest)] for user, item, *rest in rows]
    return form(separator=";").write(folder, changed)


def below_cells_of_several_lines(folder, rows):
    """Writes a further column, with line ends in its quoted cells."""
    content = "note\nhere".join(['"', '",' + text(rows[:0])]) + "".join(
        f'"a\r\nb\nc",{text([r], header=False)}' for r in rows
    )
    (folder / "ratings.csv").write_bytes(content.encode())
    return folder / "ratings.csv", [(str(folder / "ratings.csv"), 3 + 3 * k) for k in range(len(rows))]


FORMS = {
    "plain": form(),
    "numbers": form(BY_NUMBER | {"header": False}, header=False),
    "numbers beside a header": form(BY_NUMBER),
    "names that are given": form(BY_NAME | {"header": COLUMNS}, header=False),
    "tab": form(BY_NAME | {"separator": "\t"}, separator="\t"),
    "two colons": form(BY_NAME | {"separator": "::"}, separator="::"),
    "two colons, numbers": form(BY_NUMBER | {"header": False, "separator": "::"}, separator="::", header=False),
    "a separator of two bytes": form(BY_NAME | {"separator": "§"}, separator="§"),
    "a pattern's characters": form(BY_NAME | {"separator": "|.*|"}, separator="|.*|"),
    "latin-1": form(BY_NAME | {"encoding": "latin-1"}, encoding="latin-1"),
    "cp1252, two colons": form(BY_NAME | {"encoding": "cp1252", "separator": "::"}, encoding="cp1252", separator="::"),
    "byte order mark": form(encoding="utf-8-sig"),
    "byte order mark, numbers": form(BY_NUMBER | {"header": False}, encoding="utf-8-sig", header=False),
    "utf-16": form(BY_NAME | {"encoding": "utf-16"}, encoding="utf-16"),
    "utf-16-be": form(BY_NAME | {"encoding": "UTF-16BE"}, encoding="utf-16-be"),
    "decimal comma": Form(with_decimal_comma, BY_NAME | {"separator": ";", "decimal_comma": True}),
    "blank last lines": form(after="\n\n\n"),
    "blank first lines": form(before="\n\n"),
    "Windows": form(end="\r\n"),
    "Windows, blank lines around": form(end="\r\n", before="\r\n", after="\r\n\r\n"),
    "Windows, two colons": form(BY_NAME | {"separator": "::"}, end="\r\n", separator="::"),
    "single quotes": form(BY_NAME | {"quote": "'"}),
    "no quotes": form(BY_NAME | {"quote": None}),
    "gzip": form(pack=gzip.compress),
    "gzip, latin-1, Windows": form(
        BY_NAME | {"encoding": "latin-1"}, encoding="latin-1", end="\r\n", pack=gzip.compress
    ),
    "zip": zipped(["ratings.csv"], {}),
    "zip with folders": zipped(["data/", "data/ratings.csv", "__MACOSX/data/._ratings.csv"], {}),
    "zip of several": zipped(["readme.txt", "data/ratings.csv"], {"member": "data/ratings.csv"}),
    "two files": Form(in_two_files, BY_NAME),
    "a list of one": Form(lambda folder, rows: [[(made := form().write(folder, rows))[0]], made[1]], BY_NAME),
    "cells of several lines": Form(below_cells_of_several_lines, BY_NAME),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def write(request, tmp_path):
    """Writes rows in one of the forms: (a function of more options that reads them, the file and line of each row)."""

    def write(rows):
        path, lines = request.param.write(tmp_path, rows)
        return (lambda **options: read_csv(path, **request.param.options | options)), lines

    return write


ROWS = [["7", "é", "4.5", "100", "0.5"], ["8", "b", "0", "50", "1"], ["7", "b", "-1.25", "200", "2"]]


def changed(row, column, cell):
    """ROWS with another cell."""
    rows = [list(each) for each in ROWS]
    rows[row][COLUMNS.index(column)] = cell
    return rows


# What is read


def test_rows(write):
    read, _ = write(ROWS)
    assert as_rows(read()) == [(7, "é", 4.5, 100, 0.5), (8, "b", 0, 50, 1), (7, "b", -1.25, 200, 2)]


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (["7", "8", "7"], [7, 8, 7]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["-1", "0", str(2**60)], [-1, 0, 2**60]),
        ([str(2**63), "1", "2"], [2**63, 1, 2]),
        (["é", "1", "1"], ["é", "1", "1"]),
    ],
    ids=str,
)
def test_ids(write, cells, ids):
    read, _ = write([[cell, f"i{k}", "1", "1", "1"] for k, cell in enumerate(cells)])
    ratings = read()
    assert ratings.user_ids[ratings.user].tolist() == ids


def test_text_ids(write):
    read, _ = write(ROWS)
    assert read(text_ids="user").user_ids.tolist() == ["7", "8"]
    assert read(text_ids="item").user_ids.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("cells", "ticks", "unit"),
    [
        (["1577836800", "5", "-5"], [1577836800, 5, -5], "s"),
        (["1577836800.25", "5", "-5"], [1577836800250, 5000, -5000], "ms"),
        (
            ["2020-01-01", "2020-01-01 00:00:01", "2020-01-01T00:00:00.5"],
            [1577836800000, 1577836801000, 1577836800500],
            "ms",
        ),
        (["2020-01-01T01:00+01:00", "2020-01-01T00:00Z", "2020-01-01 00:00 UTC"], [1577836800] * 3, "s"),
    ],
    ids=str,
)
def test_times(write, cells, ticks, unit):
    read, _ = write([["7", str(k), "1", cell, "1"] for k, cell in enumerate(cells)])
    ratings = read()
    assert (ratings.time.tolist(), ratings.time_unit) == (ticks, unit)
    if unit == "s" and cells[1] == "5":
        assert read(time_unit="ms").time_unit == "ms"


def test_known_ids_and_duplicates(write):
    read, _ = write([*ROWS, ["7", "b", "3", "300", "1"]])
    known = read(user_ids=[9, 7], item_ids=["b", "c"], unknown="drop", duplicates="last")
    assert as_rows(known) == [(7, "b", 3, 300, 1)]
    assert (known.n_users, known.n_items) == (2, 2)
    assert read(duplicates="sum").value.tolist() == [4.5, 0, 1.75]
    with pytest.raises(ValueError, match="^user 7 rated item b more than once"):
        read()
    with pytest.raises(ValueError, match="^user: 8 is not among the 1 known ids"):
        read(user_ids=[7], duplicates="sum")


def test_no_ratings_and_no_weights(write):
    read, _ = write(ROWS)
    assert as_rows(read(value=None, weights=None)) == [(7, "é", 1, 100), (8, "b", 1, 50), (7, "b", 1, 200)]


# Errors, with the line of the file


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("user", "", "column {name} is empty"),
        ("rating", "", "column {name} is empty"),
        ("rating", "good", "column {name}: expected numbers, got 'good'"),
        ("weights", "1 0", "column {name}: expected numbers, got '1 0'"),
        ("rating", "nan", "^value: expected finite numbers, got nan"),
        ("rating", "1e60", r"^value: expected finite numbers, got 1e\+60"),
        ("time", "yesterday", "column {name}: expected numbers, datetimes or text .* got 'yesterday'"),
        ("time", "", "column {name} is empty"),
    ],
)
def test_errors_name_the_line_of_the_file(write, row, column, cell, message):
    rows = changed(row, column, cell)
    if column == "time" and cell:
        for k in {0, 1, 2} - {row}:
            rows[k][3] = "2020-01-01"  # if the others were numbers, the first of them would be named
    read, lines = write(rows)
    name = rf"({COLUMNS.index(column)}|'{column}')"
    with pytest.raises(ValueError, match=message.format(name=name)) as error:
        read()
    source, line = lines[row]
    said = str(error.value)
    assert re.search(rf"\bline {line}\b", said), said
    assert source in said
    assert len(re.findall(r"\bline \d+", said)) == 1, said


def test_ids_that_are_numbers_but_not_integers(write):
    rows = [[f"{k}.0" if k else "7", "b", "1", "1", "1"] for k in range(3)]
    read, lines = write(rows)
    with pytest.raises(ValueError, match=r"expected ids that are integers or strings, got numbers such as '1\.0'") as e:
        read()
    assert f"line {lines[1][1]} of {lines[1][0]}" in str(e.value)
    assert read(text_ids="user").user_ids.tolist() == ["1.0", "2.0", "7"]


def test_a_row_that_is_too_long_names_its_line(write):
    rows = [[*row, *(["more"] if k == 2 else [])] for k, row in enumerate(ROWS)]
    read, lines = write(rows)
    with pytest.raises(ValueError, match=rf"expected \d columns, as in the first line, got \d in line {lines[2][1]}\b"):
        read()


def test_a_row_that_is_too_short_is_an_empty_cell(write):
    read, lines = write([ROWS[0], ROWS[1], ROWS[2][:4]])
    if lines[2][0].endswith("two.csv"):
        return  # its columns are turned around, so that the first is missing, and all others are moved
    with pytest.raises(ValueError, match=rf"column ('weights'|4) is empty in line {lines[2][1]};"):
        read()


def test_columns_that_are_not_there(write):
    read, _ = write(ROWS)
    with pytest.raises(ValueError, match=r"expected numbers of columns from 0 to (4|5), got 6; the first line is \["):
        read(item=6)
    with pytest.raises(ValueError, match="got -1|got True"):
        read(item=-1)
    with pytest.raises(ValueError, match=r"missing: \['nope'\]|expected numbers of columns .* no header, got 'nope'"):
        read(item="nope")
    with pytest.raises(ValueError, match="a different column for each role"):
        read(item=0, user=0)


# Single options


def test_names_that_are_not_one_per_column(tmp_path):
    (tmp_path / "r").write_text("1,2,3\n")
    with pytest.raises(ValueError, match=r"got 2 names and 3 columns; the first row is \('1', '2', '3'\)"):
        read_csv(tmp_path / "r", header=["user", "item"])
    with pytest.raises(ValueError, match="^header: expected True, False or a list of names, got 'user'"):
        read_csv(tmp_path / "r", header="user")
    with pytest.raises(ValueError, match=r"repeated: \['user'\]"):
        read_csv(tmp_path / "r", header=["user", "user", "item"], value="item")


@pytest.mark.parametrize("separator", ["", "\n", ",\n"])
def test_invalid_separators(tmp_path, separator):
    (tmp_path / "r").write_text("1,2,3\n")
    with pytest.raises(ValueError, match="^separator: expected one or more characters within a line"):
        read_csv(tmp_path / "r", separator=separator)


@pytest.mark.parametrize("quote", ["", "''", "«", "\n", ","])
def test_invalid_quotes(tmp_path, quote):
    (tmp_path / "r").write_text("1,2,3\n")
    with pytest.raises(ValueError, match="^quote: expected one ASCII character"):
        read_csv(tmp_path / "r", quote=quote)


def test_a_file_with_every_control_character(tmp_path):
    (tmp_path / "r").write_bytes(bytes(range(32)))
    with pytest.raises(ValueError, match="every control character"):
        read_csv(tmp_path / "r", separator="::")


def test_control_characters_are_kept(tmp_path):
    (tmp_path / "r").write_text('u\x1fx::"a::b"::1\n\x1e::c::2\n')
    ratings = read_csv(tmp_path / "r", separator="::", header=False, user=0, item=1, value=2)
    assert as_rows(ratings) == [("u\x1fx", "a::b", 1), ("\x1e", "c", 2)]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (
            "user,item,rating\né,b,1\nü,ö,1\n".encode("latin-1"),
            "utf-8",
            r"line 2 is not text in utf-8 .*encoding=.*'latin-1'",
        ),
        ("user,item,rating\na,b,1\nü,ö,1\n".encode("latin-1"), "utf-8", "line 3 is not text in utf-8"),
        ("\n\nuser,item,rating\na,b,1\nü,ö,1\n".encode("latin-1"), "utf-8", "line 5 is not text in utf-8"),
        ("user,item,rating\na,é,1\n".encode(), "ascii", "line 2 is not text in ascii"),
        ("user,item,rating\na,b,1\n".encode("utf-16"), "utf-8", "encoding=, such as 'utf-16'"),
        ("user,item,rating\na,b,1\n".encode("utf-16")[:-1], "utf-16", "line 2 is not text in utf-16"),
        (
            b"user,item,rating\na,b,1\n",
            "klingon",
            "^encoding: expected one that Python knows, such as 'latin-1', got 'klingon'",
        ),
    ],
)
def test_other_encodings(tmp_path, content, encoding, message):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "r", encoding=encoding)


@pytest.mark.parametrize(
    ("cell", "message"),
    [("1.5", "a decimal comma and no point, got '1.5'"), ("1.234,5", "no point, got '1.234,5'"), ("1,2,3", "got '1")],
)
@pytest.mark.parametrize("column", ["rating", "time", "weights"])
def test_a_point_beside_a_decimal_comma(tmp_path, cell, message, column):
    row = {"rating": "1", "time": "1", "weights": "1"} | {column: cell}
    (tmp_path / "r").write_text("user;item;rating;time;weights\na;b;2,5;1;1\na;c;" + ";".join(row.values()) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_csv(tmp_path / "r", separator=";", decimal_comma=True, **BY_NAME)
    assert f"{tmp_path / 'r'}: column '{column}'" in str(error.value)
    if (column, cell) != ("time", "1,2,3"):  # there the first time, which is not a date, is named
        assert "is line 3" in str(error.value)


def test_a_decimal_comma_that_was_not_expected(tmp_path):
    (tmp_path / "r").write_text("user;item;rating\na;b;2,5\n")
    with pytest.raises(ValueError, match="got '2,5' at position 0. A decimal comma is read by decimal_comma=True"):
        read_csv(tmp_path / "r", separator=";")
    (tmp_path / "q").write_text('user,item,rating\na,b,"2,5"\n')
    assert read_csv(tmp_path / "q", decimal_comma=True).value.tolist() == [2.5]
    (tmp_path / "i").write_text("user;item;rating\n1,0;b;2,5\n")
    with pytest.raises(ValueError, match="integers or strings, got numbers such as '1,0' .*text_ids=True"):
        read_csv(tmp_path / "i", separator=";", decimal_comma=True)


def test_quotes_that_are_characters(tmp_path):
    content = 'a\t"Weird Al" Yankovic\t1\nb\t12" Mix\t2\nb\t"\t3\na\t"open\t4\n'
    (tmp_path / "r").write_text(content)
    options = {"separator": "\t", "header": False, "user": 0, "item": 1, "value": 2}
    ratings = read_csv(tmp_path / "r", quote=None, **options)
    assert ratings.item_ids[ratings.item].tolist() == ['"Weird Al" Yankovic', '12" Mix', '"', '"open']
    with pytest.raises(ValueError, match="use quote=None"):
        read_csv(tmp_path / "r", **options)


# Packed files


@pytest.fixture
def several(tmp_path):
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for name in ("a/x.csv", "a/y.csv", "a/"):
            archive.writestr(name, f"user,item,rating\n{name},1,2\n")
    return tmp_path / "r.zip"


def test_a_zip_of_several_files_lists_them(several):
    with pytest.raises(ValueError, match=r"a zip of one file, got 2 files: 'a/x.csv', 'a/y.csv'.*member='a/x.csv'"):
        read_csv(several)
    with pytest.raises(ValueError, match=r"a zip with the file 'x.csv', got 2 files: 'a/x.csv', 'a/y.csv'"):
        read_csv(several, member="x.csv")
    assert read_csv(several, member="a/y.csv").user_ids.tolist() == ["a/y.csv"]


def test_a_member_of_a_file_that_is_not_a_zip(tmp_path):
    (tmp_path / "r").write_text("user,item,rating\n1,2,3\n")
    with pytest.raises(ValueError, match="expected a zip, because member='x' was given"):
        read_csv(tmp_path / "r", member="x")


def test_an_empty_zip(tmp_path):
    zipfile.ZipFile(tmp_path / "r.zip", "w").close()
    with pytest.raises(ValueError, match="a zip of one file, got 0 files"):
        read_csv(tmp_path / "r.zip")


@pytest.mark.parametrize("kind", ["gzip", "zip"])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_damaged_archives(tmp_path, several, kind, harm):
    content = b"user,item,rating\n" + b"".join(b"%d,%d,1\n" % (k, k * k) for k in range(1000))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "r", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("r.csv", content)
    else:
        (tmp_path / "r").write_bytes(gzip.compress(content))
    good = (tmp_path / "r").read_bytes()
    half = len(good) // 2
    flipped = good[:half] + bytes([good[half] ^ 1]) + good[half + 1 :]
    (tmp_path / "r").write_bytes(good[:half] if harm == "cut" else flipped)
    with pytest.raises(ValueError, match="r: cannot be unpacked"):
        read_csv(tmp_path / "r")


# Several files


def test_ids_are_numbered_over_all_files(tmp_path):
    (tmp_path / "a").write_text("user,item,rating\n2,x,1\n")
    (tmp_path / "b").write_text("user,item,rating\n1,x,2\n")
    (tmp_path / "c").write_text("user,item,rating\n007,y,3\n")
    ratings = read_csv([tmp_path / "b", tmp_path / "a"])
    assert (ratings.user.tolist(), ratings.user_ids.tolist(), ratings.item.tolist()) == ([0, 1], [1, 2], [0, 0])
    ratings = read_csv(tmp_path / name for name in "abc")
    assert ratings.user_ids[ratings.user].tolist() == ["2", "1", "007"]
    with pytest.raises(ValueError, match="more than once"):
        read_csv([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(ValueError, match="^path: expected a file or several, got an empty list"):
        read_csv([])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_csv([tmp_path / "a", tmp_path / "nowhere"])
    (tmp_path / "d").write_text("user,item,stars\n1,x,2\n")
    with pytest.raises(ValueError, match=r"/d: expected the columns .*missing: \['rating'\]"):
        read_csv([tmp_path / "a", tmp_path / "d"])


# Any text


CELL = st.text(st.sampled_from("ab7\":,;\t 'é\r\n|"), min_size=1, max_size=6)


@settings(deadline=None, max_examples=200)
@given(
    cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6),
    separator=st.sampled_from([",", "\t", "::", "||", "é", ";;;"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]),
    end=st.sampled_from(["\n", "\r\n"]),
    wrong=st.integers(0, 5),
)
def test_quoted_cells_of_any_text_come_back_and_errors_have_their_line(cells, separator, encoding, end, wrong):
    quoted = lambda cell: '"' + cell.replace('"', '""') + '"'
    line = lambda user, item, value: separator.join([quoted(user), quoted(item), value]) + end
    rows = [line(user, item, str(k)) for k, (user, item) in enumerate(cells)]
    options = {"separator": separator, "encoding": encoding, "header": False, "user": 0, "item": 1, "value": 2}
    options |= {"text_ids": True, "duplicates": "first"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r")
        path.write_bytes("".join(rows).encode(encoding))
        ratings = read_csv(path, **options)
        first = {pair: k for k, pair in reversed(list(enumerate(cells)))}
        assert sorted(as_rows(ratings)) == sorted((*pair, k) for pair, k in first.items())
        wrong %= len(cells)
        path.write_bytes("".join([*rows[:wrong], line(*cells[wrong], "bad"), *rows[wrong + 1 :]]).encode(encoding))
        with pytest.raises(ValueError, match=f"got 'bad' .* is line {''.join(rows[:wrong]).count(chr(10)) + 1} of"):
            read_csv(path, **options)


# The published files of the docstring, in ten lines made up for the test


def published(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_u_data(tmp_path):
    rows = [(k % 4 + 1, 7 * k % 10 + 1, k % 5 + 1, 880000000 + k) for k in range(10)]
    path = published(tmp_path, "u.data", "".join("\t".join(map(str, row)) + "\n" for row in rows).encode())
    assert as_rows(read_csv(path, separator="\t", header=False, user=0, item=1, value=2, time=3)) == rows


def test_ratings_dat(tmp_path):
    rows = [(k % 4 + 1, 7 * k % 10 + 1, k % 5 + 1, 978300000 + k) for k in range(10)]
    content = "".join("::".join(map(str, row)) + "\n" for row in rows).encode()
    path = published(tmp_path, "ratings.dat", content)
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/README", "about")
        archive.writestr("ml-1m/ratings.dat", content)
    options = {"separator": "::", "header": False, "user": 0, "item": 1, "value": 2, "time": 3}
    assert as_rows(read_csv(path, **options)) == rows
    assert as_rows(read_csv(tmp_path / "ml-1m.zip", member="ml-1m/ratings.dat", **options)) == rows


def test_movielens_csv(tmp_path):
    rows = [(k % 4 + 1, 7 * k % 10 + 1, (k % 10 + 1) / 2, 1500000000 + k) for k in range(10)]
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in rows)]
    path = published(tmp_path, "ratings.csv", "\r\n".join(lines).encode())
    assert as_rows(read_csv(path, user="userId", item="movieId", time="timestamp")) == rows


def test_amazon(tmp_path):
    items = ["0001055178", "B00000J1EQ", "000500000X"]
    rows = [(f"A{k}MADEUP{k}Z", items[k % 3], float(k % 5 + 1), 1300000000 + k) for k in range(10)]
    path = published(tmp_path, "ratings_Books.csv", "".join(",".join(map(str, row)) + "\n" for row in rows).encode())
    assert as_rows(read_csv(path, header=["user", "item", "rating", "time"], time="time")) == rows


def test_last_fm(tmp_path):
    artists = ['"weird" one', 'Guns n" Roses', "björk", "311", '"', "sigur rós"]
    rows = [(f"{k % 3:040x}", "" if k % 2 else f"{k:08x}-mbid", artists[k % 6], 10 * k + 1) for k in range(10)]
    content = "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()
    path = published(tmp_path, "usersha1-artmbid-artname-plays.tsv", content)
    options = {"separator": "\t", "header": False, "quote": None, "user": 0, "item": 2, "value": 3}
    plays = {}
    for user, _, artist, count in rows:
        plays[user, artist] = plays.get((user, artist), 0) + count
    assert as_rows(read_csv(path, **options, duplicates="sum")) == [(*pair, count) for pair, count in plays.items()]
    with pytest.raises(ValueError, match="column 1 is empty in line 2"):
        read_csv(path, **options | {"item": 1}, duplicates="sum")


def test_retailrocket(tmp_path):
    kinds = ["view", "view", "addtocart", "transaction"]
    rows = [
        (1433221332117 + k, 257597 + k % 3, kinds[k % 4], 355908 + k % 2, "" if k % 4 < 3 else k) for k in range(10)
    ]
    lines = ["timestamp,visitorid,event,itemid,transactionid", *(",".join(map(str, row)) for row in rows)]
    path = published(tmp_path, "events.csv", ("\n".join(lines) + "\n").encode())
    names = {"user": "visitorid", "item": "itemid", "value": None, "time": "timestamp", "time_unit": "ms"}
    ratings = read_csv(path, **names, duplicates="sum")
    pairs = [(visitor, item) for _, visitor, _, item, _ in rows]
    latest = {(visitor, item): when for when, visitor, _, item, _ in rows}
    assert as_rows(ratings) == [(*pair, pairs.count(pair), latest[pair]) for pair in dict.fromkeys(pairs)]
    assert ratings.time_unit == "ms"
    with pytest.raises(ValueError, match="more than once .* Choose duplicates="):
        read_csv(path, **names)


def test_values_are_the_nearest_float32(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000) * 10.0 ** rng.integers(-30, 30, 1000)
    (tmp_path / "r").write_text("user,item,rating\n" + "".join(f"{k},1,{v!r}\n" for k, v in enumerate(values.tolist())))
    np.testing.assert_array_equal(read_csv(tmp_path / "r").value, values.astype(np.float32))
