"""`data.load` on a tiny MovieLens in both published forms, without a network; on the real one if it is there."""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pooch
import pytest
import requests

import jaxrec
from jaxrec.data import datasets, readers
from jaxrec.data.datasets import DatasetNotFound, load

REAL = os.environ.get("JAXREC_DATA") and Path(os.environ["JAXREC_DATA"]).absolute() / "ml-100k"
SITE = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
real_run = subprocess.run

# Each hard case of the real files: a trailing blank, latin-1, a year before (V), two numbers in brackets, movie 267.
MOVIES = [  # raw id, official title, date, genres, RecBole's title and year
    (1, "Toy Story (1995)", "01-Jan-1995", ["Animation", "Children's", "Comedy"], "Toy Story", "1995"),
    (50, "Star Wars (1977)", "01-Jan-1977", ["Action", "Sci-Fi", "War"], "Star Wars", "1977"),
    (113, 'Misérables, Les "x" (1995)', "01-Jan-1995", ["Drama"], 'Misérables, Les "x"', "1995"),
    (267, "unknown", "", ["unknown"], "unkonwn", "unkonwn"),
    (1412, "Land (1995) (V)", "01-Jan-1995", ["Animation", "Western"], "Land (1995)", "V"),
    (1505, "1984 (1001) (1984)", "01-Jan-1985", ["Film-Noir"], "1984 (1001)", "1984"),
    (1670, "Two Friends (1986) ", "", ["Drama"], "Two Friends", "1986"),
]
USERS = ["1|24|M|technician|85711", '2|53|F|"other|T8H1N', "7|57|M|administrator|05201"]
RATINGS = ["7\t50\t5\t881250949", "1\t1670\t3\t891717742", "2\t267\t1\t878887116", "1\t1\t4\t880606923"]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def lines(rows, encoding="utf-8"):
    return "".join(f"{row}\n" for row in rows).encode(encoding)


def official(data=RATINGS, users=USERS, movies=MOVIES):
    item = [
        "|".join([str(raw), title, date, "", "http://imdb", *(str(int(g in genres)) for g in readers.GENRES)])
        for raw, title, date, genres, *_ in movies
    ]
    return {"u.data": lines(data), "u.item": lines(item, "latin-1"), "u.user": lines(users)}


def recbole(data=RATINGS, users=USERS, movies=MOVIES):
    item = [f"{raw}\t{title}\t{year}\t{' '.join(genres)}" for raw, _, _, genres, title, year in movies]
    user = [row.replace("|", "\t") for row in users]
    return {
        "ml-100k.inter": lines(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *data]),
        "ml-100k.item": lines(["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *item]),
        "ml-100k.user": lines(["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", *user]),
    }


def put(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path, entries):
    with zipfile.ZipFile(path, "w") as out:
        for name, content in entries.items():
            out.writestr(name, content)
    return path


def members(form, files):
    """The files of a form by their names in its archive."""
    return {f"{form.folder}/{name}": content for name, content in files.items()}


def register(path, monkeypatch, digests):
    """Replaces digests in the registry: as if the tiny files were the published ones."""
    rows = [line.split() for line in datasets.REGISTRY.read_text().splitlines() if line and not line.startswith("#")]
    path.write_text("".join(" ".join([name, digests.get(name, old), *url]) + "\n" for name, old, *url in rows))
    monkeypatch.setattr(datasets, "REGISTRY", path)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A small ml-100k under the real name; it is not on the machine, and the site and the index are down."""
    site, wheel = datasets.FORMS["ml-100k"]
    official_zip = pack(tmp_path / "ml-100k.zip", members(site, official()) | {"x/y": "z"})
    wheel_zip = pack(tmp_path / "recbole-1.2.1-py3-none-any.whl", members(wheel, recbole()))
    register(
        tmp_path / "registry.txt",
        monkeypatch,
        {
            name: sha256(content)
            for form in (members(site, official()), members(wheel, recbole()))
            for name, content in form.items()
        }
        | {site.archive: sha256(official_zip.read_bytes()), wheel.archive: sha256(wheel_zip.read_bytes())},
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before pooch's second attempt
    monkeypatch.delenv("JAXREC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    world = SimpleNamespace(
        zip=official_zip, wheel=wheel_zip, cache=tmp_path / "home/jaxrec/ml-100k", asked=[], site=None, pip=None
    )

    def download(self, url, output_file, pooch, check_only=False):  # below pooch.stream_download, whose check stays
        world.asked.append(url)
        assert self.kwargs["timeout"][0] <= 10
        if world.site is None:
            raise requests.exceptions.ConnectionError("site is down")
        Path(output_file).write_bytes(world.site)

    def pip(command, **options):
        world.asked.append(command[-1])
        assert command[:5] == [sys.executable, "-I", "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} < set(command)
        assert options["timeout"] <= 300
        if isinstance(world.pip, Exception):
            raise world.pip
        if world.pip is None:
            return subprocess.CompletedProcess(command, 1, "", "a warning\nERROR: index is down\n")
        Path(command[command.index("--dest") + 1], world.wheel.name).write_bytes(world.pip)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    monkeypatch.setattr(subprocess, "run", pip)
    return world


def same(a, b):
    """Checks that two Datasets agree, save for the source and the release dates, which RecBole's form does not have."""
    for column in ("user", "item", "value", "time", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(a.ratings, column), getattr(b.ratings, column))
    np.testing.assert_array_equal(a.titles, b.titles)
    assert a.titles.dtype == b.titles.dtype
    assert a.users.equals(b.users)
    assert a.items.schema == b.items.schema
    assert a.items.drop("release_date").equals(b.items.drop("release_date"))
    assert (a.name, a.scale) == (b.name, b.scale)


# What is read


def test_official_form(tiny, tmp_path):
    folder = put(tmp_path / "given", official())
    found = load("ml-100k", path=folder)
    ratings = found.ratings
    assert (found.name, found.scale, found.source) == ("ml-100k", (1.0, 5.0), str(folder))
    np.testing.assert_array_equal(ratings.user_ids, [1, 2, 7])
    np.testing.assert_array_equal(ratings.item_ids, [1, 50, 113, 267, 1412, 1505, 1670])
    assert ratings.user_ids.dtype.kind == ratings.item_ids.dtype.kind == "i"
    np.testing.assert_array_equal(ratings.user, [2, 0, 1, 0])  # the file's order; items without ratings count
    np.testing.assert_array_equal(ratings.item, [1, 6, 3, 0])
    np.testing.assert_array_equal(ratings.value, [5, 3, 1, 4])
    np.testing.assert_array_equal(ratings.time, [881250949, 891717742, 878887116, 880606923])
    assert found.titles.tolist() == [title.strip() for _, title, *_ in MOVIES]
    assert found.titles.dtype.kind == "U"
    assert found.users.columns == ["user_id", "age", "sex", "occupation", "zip_code"]
    assert found.users.row(1) == (2, 53, "F", '"other', "T8H1N")
    assert found.users.row(2) == (7, 57, "M", "administrator", "05201")
    assert found.items.columns == ["item_id", "title", "year", "release_date", "genres"]
    assert found.items["item_id"].to_list() == ratings.item_ids.tolist()
    assert found.items["title"].to_list() == found.titles.tolist()
    assert found.items["year"].to_list() == [1995, 1977, 1995, None, 1995, 1984, 1986]
    assert found.items["release_date"].to_list()[2:4] == ["01-Jan-1995", None]
    assert found.items["genres"].to_list() == [genres for _, _, _, genres, *_ in MOVIES]


def test_both_forms_are_one_dataset(tiny, tmp_path):
    a = load("ml-100k", path=put(tmp_path / "a", official()))
    b = load("ml-100k", path=put(tmp_path / "b", recbole()))
    same(a, b)
    assert b.items["release_date"].null_count() == len(MOVIES)
    assert b.items["release_date"].dtype == pl.String


# path=


@pytest.mark.parametrize("archive", ["zip", "wheel"])
def test_path_to_an_archive(tiny, archive):
    archive = getattr(tiny, archive)
    found = load("ml-100k", path=str(archive))
    assert len(found.ratings) == len(RATINGS)
    assert found.source == str(archive)
    assert not tiny.cache.exists()
    assert tiny.asked == []


def test_path_is_the_only_place_tried(tiny, tmp_path, monkeypatch):
    put(tmp_path / "data/ml-100k", official())
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    put(tiny.cache, official())
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist") as caught:
        load("ml-100k", path=tmp_path / "nowhere")
    assert not isinstance(caught.value, DatasetNotFound)  # the caller's mistake, not an absent dataset
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: expected the files u\.data, u\.item, u\.user"):
        load("ml-100k", path=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"wrong\.zip: expected sha256 .*, got .*https://"):
        load("ml-100k", path=pack(tmp_path / "wrong.zip", {"ml-100k/u.data": "1\t1\t1\t1\n"}))
    assert tiny.asked == []


def test_path_expands_the_home_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("ml-100k", path="~/ml-100k.zip").source == str(tiny.zip)


# The order of the places


def test_places_in_their_order(tiny, tmp_path, monkeypatch):
    given = put(tmp_path / "given", official())
    folder = put(tmp_path / "data/ml-100k", official())
    put(tiny.cache, recbole())
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    assert load("ml-100k", path=given).source == str(given)
    assert load("ml-100k").source == str(folder)
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path))  # holds no folder ml-100k
    assert load("ml-100k").source == str(tiny.cache)
    monkeypatch.setenv("JAXREC_DATA", "")  # an empty variable counts as not set, not as the working folder
    monkeypatch.chdir(tmp_path / "data")
    assert load("ml-100k").source == str(tiny.cache)
    assert tiny.asked == []


def test_site_then_cache(tiny, caplog):
    tiny.site, tiny.pip = tiny.zip.read_bytes(), tiny.wheel.read_bytes()
    with caplog.at_level(logging.INFO, logger="jaxrec"):
        found = load("ml-100k")
    assert found.source == str(tiny.cache)
    assert found.items["release_date"][0] == "01-Jan-1995"
    assert [url.rpartition("/")[2] for url in tiny.asked] == ["ml-100k.zip"]
    assert "fetched https://" in caplog.text
    assert sorted(path.name for path in tiny.cache.iterdir()) == ["u.data", "u.item", "u.user"]
    assert [path.name for path in tiny.cache.parent.iterdir()] == ["ml-100k"]
    same(load("ml-100k"), found)
    assert len(tiny.asked) == 1


@pytest.mark.parametrize(("site", "why"), [(None, "site is down"), (b"<html>sign in</html>", "hash")])
def test_wheel_where_the_site_fails(tiny, caplog, site, why):
    tiny.site, tiny.pip = site, tiny.wheel.read_bytes()
    found = load("ml-100k")
    assert found.source == str(tiny.cache)
    assert tiny.asked == [SITE, SITE, "recbole==1.2.1"]  # pooch tries a site twice
    assert why in caplog.text  # the failure is logged
    assert sorted(path.name for path in tiny.cache.iterdir()) == sorted(recbole())
    same(found, load("ml-100k", path=tiny.zip))


@pytest.mark.parametrize(
    ("site", "pip", "said"),
    [
        (None, None, ["ConnectionError: site is down", "pip download exited with code 1: ERROR: index is down"]),
        (
            b"",
            b"no wheel",
            [
                rf"{where}.*: ValueError: SHA256 hash of downloaded file .* expected \w+ but got \w+"
                for where in (SITE, "recbole")
            ],
        ),
        (None, subprocess.TimeoutExpired("pip", 120), ["TimeoutError: pip download took more than 120 seconds"]),
        (None, FileNotFoundError("no python"), ["FileNotFoundError: no python"]),
    ],
)
def test_all_ways_fail(tiny, tmp_path, monkeypatch, site, pip, said):
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    tiny.site, tiny.pip = site, pip
    with pytest.raises(DatasetNotFound) as caught:
        load("ml-100k")
    message = str(caught.value)
    ways = [
        "path=: not given",
        re.escape(f"$JAXREC_DATA: no folder {tmp_path / 'data/ml-100k'}"),
        re.escape(f"the cache: no folder {tiny.cache}"),
        r"https://files\.grouplens\.org/datasets/movielens/ml-100k\.zip: ",
        "recbole==1.2.1: ",
    ]
    for k, way in enumerate(ways, 1):
        assert re.search(f"^  {k}. {way}", message, re.MULTILINE), message
    for pattern in [*said, r"path=THE_ZIP", "set JAXREC_DATA"]:
        assert re.search(pattern, message), message
    assert not tiny.cache.exists()
    monkeypatch.delenv("JAXREC_DATA")
    with pytest.raises(FileNotFoundError, match=r"2\. \$JAXREC_DATA: not set"):
        load("ml-100k")


def test_pip_without_output_and_without_a_wheel(tiny, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    with pytest.raises(DatasetNotFound, match="exited with code 0: no message"):
        load("ml-100k")


def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tiny.site = tiny.zip.read_bytes()
    with pytest.raises(DatasetNotFound, match=r"4\. https.*Error: .*file/jaxrec"):
        load("ml-100k")


def test_unknown_name():
    with pytest.raises(ValueError, match="expected one of 'ml-100k', 'ml-1m', .*, got 'ml-1b'"):
        load("ml-1b")


# Damaged folders


@pytest.mark.parametrize("form", [official, recbole])
@pytest.mark.parametrize("place", ["path", "env", "cache"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_folder_is_an_error_with_advice(tiny, tmp_path, monkeypatch, form, place, damage):
    folder = {"path": tmp_path / "given", "env": tmp_path / "data/ml-100k", "cache": tiny.cache}[place]
    put(folder, form())
    victim = sorted(folder.iterdir())[-1]
    good = victim.read_bytes()
    if place == "env":
        monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
        put(tiny.cache, official())  # an undamaged copy, which must not be used instead
    tiny.site = tiny.zip.read_bytes()
    if damage == "changed":
        victim.write_bytes(good[:-1])
        expected = ValueError, f"{victim}: expected sha256 {sha256(good)}, got {sha256(good[:-1])}."
    else:
        victim.unlink()
        expected = FileNotFoundError, f"{folder}: expected the files {', '.join(form())}; {victim.name} missing."
    advice = {
        "path": "Fetch it again from https://",
        "env": "unset JAXREC_DATA",
        "cache": f"Delete the folder {folder}, and load",
    }
    with pytest.raises(expected[0], match=re.escape(expected[1]) + ".*" + re.escape(advice[place])) as caught:
        load("ml-100k", path=folder if place == "path" else None)
    assert not isinstance(caught.value, DatasetNotFound)
    assert tiny.asked == []


# Zips


EVIL = ["../x", "ml-100k/../../x", "/etc/x", "..\\x", "\\x", "C:\\x", "C:x", "//host/share/x", "a/.."]


@pytest.mark.parametrize("name", EVIL)
def test_evil_entries_are_refused(tmp_path, name):
    archive = pack(tmp_path / "evil.zip", {"p/a": "1", name: "2", "p/b": "3"})
    with pytest.raises(ValueError, match="refused: the entry"):
        datasets._unpack(archive, tmp_path / "deep/out", datasets.Form(None, "p", ["a"]))
    assert [path.name for path in tmp_path.rglob("*")] == ["evil.zip"]


def test_evil_entries_are_refused_by_load(tiny, tmp_path, monkeypatch):
    site, _ = datasets.FORMS["ml-100k"]
    archive = pack(tmp_path / "evil.zip", members(site, official()) | {"../x": "2"})
    digest = sha256(archive.read_bytes())  # as if it had been registered
    register(tmp_path / "evil.txt", monkeypatch, {site.archive: digest})
    with pytest.raises(ValueError, match=r"refused: the entry '\.\./x'"):
        load("ml-100k", path=archive)


def test_harmless_names_pass(tmp_path):
    archive = pack(tmp_path / "fine.zip", {"p/..a": "1", "p/q/b.": "2", "p/a..b": "3"})
    datasets._unpack(archive, tmp_path / "deep/out", datasets.Form(None, "p", ["..a", "a..b"]))
    assert {path.name: path.read_text() for path in (tmp_path / "deep/out").iterdir()} == {"..a": "1", "a..b": "3"}


def test_a_zip_without_its_members(tmp_path):
    archive = pack(tmp_path / "poor.zip", {"p/a": "1"})
    with pytest.raises(ValueError, match="expected the entries p/b, which are not in it"):
        datasets._unpack(archive, tmp_path / "out", datasets.Form(None, "p", ["a", "b"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_unpack_leaves_nothing(tiny, monkeypatch, error):
    tiny.site = tiny.zip.read_bytes()
    read = zipfile.ZipFile.open

    def interrupted(self, member, *args, **options):
        if getattr(member, "filename", member).endswith("u.user"):
            assert not tiny.cache.exists()  # not even while it is being written
            assert len(list(tiny.cache.parent.rglob("u.*"))) == 2
            raise error
        return read(self, member, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", interrupted)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else DatasetNotFound):
            load("ml-100k")
    assert list(tiny.cache.parent.iterdir()) == []
    assert load("ml-100k").source == str(tiny.cache)


def test_a_folder_that_another_process_has_unpacked_is_kept(tmp_path, monkeypatch):
    archive = pack(tmp_path / "fine.zip", {"p/a": "1"})
    put(tmp_path / "out", {"a": b"theirs"})
    datasets._unpack(archive, tmp_path / "out", datasets.Form(None, "p", ["a"]))
    assert (tmp_path / "out/a").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine.zip", "out"]

    def fails(self, target):
        raise PermissionError("no")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(PermissionError):  # nobody was faster: the error is real
        datasets._unpack(archive, tmp_path / "new", datasets.Form(None, "p", ["a"]))


def test_the_unpacked_folder_is_open_to_its_group_as_any_new_folder(tmp_path):
    datasets._unpack(pack(tmp_path / "fine.zip", {"p/a": "1"}), tmp_path / "out", datasets.Form(None, "p", ["a"]))
    (tmp_path / "any").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "any").stat().st_mode


# pip


def test_pip_is_announced_before_it_runs(tiny, caplog, monkeypatch):
    tiny.pip = tiny.wheel.read_bytes()
    run, said = subprocess.run, []

    def record(command, **options):
        said.extend((entry.levelno, entry.getMessage()) for entry in caplog.records)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", record)
    load("ml-100k")
    announced = [text for level, text in said if level >= logging.WARNING and "Running pip" in text]
    assert len(announced) == 1
    assert "pip=False does without" in announced[0]
    assert f"{sys.executable} -I -m pip download" in announced[0]
    assert "recbole==1.2.1" in announced[0]


def test_load_without_pip(tiny):
    tiny.pip = tiny.wheel.read_bytes()
    with pytest.raises(DatasetNotFound, match="5. recbole==1.2.1: not tried, because pip=False"):
        load("ml-100k", pip=False)
    assert tiny.asked == [SITE, SITE]
    tiny.site = tiny.zip.read_bytes()
    assert len(load("ml-100k", pip=False).ratings) == len(RATINGS)


# The registry


def test_every_file_is_registered_and_every_entry_is_used():
    registry = datasets._registry()
    used = set()
    for forms in datasets.FORMS.values():
        for form in forms:
            used |= set(form.files) | ({form.archive} - {None})
            assert form.archive is None or registry.get_url(form.archive).startswith(("https://", "recbole=="))
            assert bool(form.archive) != bool(form.origin)
    assert set(registry.registry) == used
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in registry.registry.values())
    assert set(registry.urls) == {form.archive for forms in datasets.FORMS.values() for form in forms} - {None}


def test_the_registry_is_part_of_the_package():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    assert (
        datasets.REGISTRY.relative_to(Path(jaxrec.__file__).parent).as_posix()
        in (project["tool"]["setuptools"]["package-data"]["jaxrec"])
    )


# What a killed process leaves behind

KILLED = """
import os, signal, sys, zipfile, pooch
from pathlib import Path
from jaxrec.data import datasets
datasets.REGISTRY = Path(sys.argv[1])
where, content = sys.argv[2], Path(sys.argv[3]).read_bytes()
die = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)

def download(self, url, output_file, pooch, check_only=False):
    Path(output_file).write_bytes(content[:100])
    if where == "download":
        die()
    Path(output_file).write_bytes(content)

pooch.HTTPDownloader.__call__ = download
if where == "unpack":
    extract, count = zipfile.ZipFile._extract_member, []
    zipfile.ZipFile._extract_member = lambda *args: die() if len(count) == 2 else (count.append(1), extract(*args))[1]
if where == "rename":
    Path.rename = die
datasets.load("ml-100k", pip=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize("where", ["download", "unpack", "rename"])
def test_a_killed_load_leaves_nothing_that_is_used(tiny, where):
    cache = tiny.cache.parent
    command = [sys.executable, "-c", KILLED, str(datasets.REGISTRY), where, str(tiny.zip)]
    done = real_run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = list(cache.iterdir())
    assert left != []
    assert all(re.fullmatch(r"\.jaxrec-.*\.tmp", path.name) for path in left)
    tiny.site = tiny.zip.read_bytes()
    assert len(load("ml-100k").ratings) == len(RATINGS)
    assert len(tiny.asked) == 1, "it was downloaded again"
    assert set(cache.iterdir()) == {*left, tiny.cache}, "what is younger than a day may be in use"
    shutil.rmtree(tiny.cache)
    for path in left:
        os.utime(path, (0, 0))
    load("ml-100k")
    assert list(cache.iterdir()) == [tiny.cache]


def test_the_folder_of_a_running_load_is_not_removed(tiny):
    fcntl = pytest.importorskip("fcntl")
    running, abandoned = (tiny.cache.parent / f".jaxrec-{name}.tmp" for name in ("running", "abandoned"))
    for folder in (running, abandoned):
        put(folder, {"u.data": b"half"})
        os.utime(folder, (0, 0))
    tiny.site = tiny.zip.read_bytes()
    lock = os.open(running, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load("ml-100k")
    finally:
        os.close(lock)
    assert sorted(tiny.cache.parent.iterdir()) == [running, tiny.cache]


def test_heavy_imports_wait_for_their_use():
    code = "import sys, jaxrec.data.datasets; print(*{'polars', 'pooch', 'requests'} & set(sys.modules))"
    done = real_run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# The real files

needs_real = pytest.mark.skipif(
    not REAL or not REAL.is_dir(), reason="needs the MovieLens 100K files in $JAXREC_DATA/ml-100k, which is not there"
)


@pytest.fixture(scope="module")
def real():
    return load("ml-100k", path=REAL)


@needs_real
def test_real_ratings(real, monkeypatch):
    monkeypatch.setenv("JAXREC_DATA", str(REAL.parent))
    assert load("ml-100k").source == str(REAL)
    ratings = real.ratings
    assert (len(ratings), ratings.n_users, ratings.n_items) == (100_000, 943, 1682)
    assert ratings.value.mean(dtype=np.float64) == pytest.approx(3.52986, abs=1e-12)
    np.testing.assert_array_equal(ratings.user_ids, np.arange(1, 944))
    np.testing.assert_array_equal(ratings.item_ids, np.arange(1, 1683))
    assert (ratings.user_ids[ratings.user[0]], ratings.item_ids[ratings.item[0]]) == (196, 242)
    assert (ratings.value[0], ratings.time[0]) == (3, 881250949)


@needs_real
def test_real_tables(real):
    assert real.titles[np.flatnonzero(real.ratings.item_ids == 50)[0]] == "Star Wars (1977)"
    assert real.titles[266] == "unknown"
    assert real.items["title"].to_list() == real.titles.tolist()
    assert all(title == title.strip() for title in real.titles)
    assert real.items["year"].null_count() == 1
    assert (real.items["year"].min(), real.items["year"].max()) == (1922, 1998)
    assert real.items["genres"].list.len().min() == 1
    assert real.users.row(0) == (1, 24, "M", "technician", "85711")


@needs_real
def test_real_u1_to_u5_are_slices(real):
    rows = (REAL / "u.data").read_bytes().splitlines()
    for k in range(1, 6):
        if not (test := REAL / f"u{k}.test").is_file():
            pytest.skip(f"{test.name} is not beside u.data")
        assert set(test.read_bytes().splitlines()) == set(rows[20_000 * (k - 1) : 20_000 * k])


@needs_real
def test_real_recbole_form_is_the_official_one_rewritten(real, tmp_path):
    """The official files rewritten in RecBole's form have the checksums of the wheel's files, byte for byte."""
    movies = []
    for line in (REAL / "u.item").read_text("latin-1").splitlines():
        raw, title, date, _, _, *flags = line.split("|")
        short, _, year = title.strip().removesuffix(")").rpartition(" (")
        short, year = (short, year) if short else ("unkonwn", "unkonwn")
        genres = [genre for genre, flag in zip(readers.GENRES, flags, strict=True) if flag == "1"]
        movies.append((raw, title, date, genres, short, year))
    read = lambda name: (REAL / name).read_text("latin-1").splitlines()
    folder = put(tmp_path / "recbole", recbole(read("u.data"), read("u.user"), movies))
    same(load("ml-100k", path=folder), real)
