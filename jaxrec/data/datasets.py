"""Named datasets: found on this machine, or fetched once, and never other bytes than the ones we know.

Each file is checked against its sha256 on every load, wherever it came from: two people who load 'ml-100k' have the
same ratings in the same order. To add a dataset, write its reader, which makes a `Dataset` of the files' bytes, and a
line in `RECORDS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np

from jaxrec import check
from jaxrec.ratings import Dataset, Ratings

if TYPE_CHECKING:
    import polars as pl

__all__ = ["DatasetNotFound", "load"]

logger = logging.getLogger("jaxrec")


class DatasetNotFound(FileNotFoundError):  # noqa: N818 (it says what happened, as FileNotFoundError's readers expect)
    """A dataset is nowhere on this machine, and no way of fetching it worked; the message lists every way."""


@dataclass(frozen=True)
class Form:
    """One published form of a dataset: the zip that it comes in, the files needed from it, and how to read them.

    Attributes:
        origin: what `fetch` takes: a URL, or a package's requirement.
        fetch: (form, folder) -> the zip, put into that folder; raises OSError or ValueError.
        sha256: of the zip.
        prefix: the files' folder inside the zip.
        files: name -> sha256, of the files needed.
        read: name -> bytes, of those files, to the Dataset.
    """

    origin: str
    fetch: Callable[[Form, Path], Path]
    sha256: str
    prefix: str
    files: Mapping[str, str]
    read: Callable[[Mapping[str, bytes]], Dataset]


def load(name: str, *, path: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a named dataset, from the first of these places that has it.

    1. `path`, where given: a folder that holds the files, or the zip as published. Nothing else is tried.
    2. The folder `$JAXREC_DATA/NAME`.
    3. The cache: `jaxrec/NAME` in the user's cache folder (on Linux `$XDG_CACHE_HOME`, or ~/.cache).
    4. Its owner's site. What is needed is then kept in the cache.
    5. For ml-100k the package recbole 1.2.1, whose wheel has the same rows in the same order: it reaches machines
       that see a Python package index and nothing else. Kept in the cache too; it has no release dates.

    A folder that is there but incomplete or damaged is an error: what was put there was meant to be used.

    ml-100k is MovieLens 100K: 100,000 ratings of 1 to 5 for 1682 films by 943 users, with times. For research only;
    it may not be redistributed. Cite F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context",
    ACM TiiS 5(4), 2015.

    Args:
        name: 'ml-100k'.
        path: see 1.

    Returns:
        The Dataset: ratings in the order of the file, with integer raw ids, and every user and item of the tables
        `users` (user_id, age, sex, occupation, zip_code) and `items` (item_id, title, year, release_date, genres),
        in their order; null stands for what is not known.

    Raises:
        ValueError: an unknown name; a file or zip that is not, byte for byte, the published one.
        FileNotFoundError: `path` does not exist; a folder lacks files.
        DatasetNotFound: no place has it, and no way of fetching it worked.

    >>> load("ml-100m")
    Traceback (most recent call last):
    ...
    ValueError: name: expected one of 'ml-100k', got 'ml-100m'.
    """
    check.choice("name", name, tuple(RECORDS))
    forms = RECORDS[name]
    if path is not None:
        return _from_path(name, Path(path).expanduser())
    tried = ["path=: not given"]

    root = os.environ.get("JAXREC_DATA")
    if not root:
        tried.append("$JAXREC_DATA: not set")
    elif (folder := Path(root).expanduser() / name).is_dir():
        return _from_folder(name, folder, f"Fetch it again from {forms[0].origin}, or unset JAXREC_DATA.")
    else:
        tried.append(f"$JAXREC_DATA: no folder {folder}")

    import pooch

    cache = Path(pooch.os_cache("jaxrec")) / name
    advice = f"Delete the folder {cache}, and load again."
    if cache.is_dir():
        return _from_folder(name, cache, advice)
    tried.append(f"the cache: no folder {cache}")

    for form in forms:
        try:
            with tempfile.TemporaryDirectory() as temporary:
                _unpack(form.fetch(form, Path(temporary)), cache, prefix=form.prefix, members=form.files)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            tried.append(f"{form.origin}: {type(error).__name__}: {error}")
            logger.warning("%s: could not fetch %s", name, tried[-1])
        else:
            logger.info("%s: fetched %s into %s", name, form.origin, cache)
            return _from_folder(name, cache, advice)
    raise DatasetNotFound(
        f"{name} is not on this machine and could not be fetched:\n"
        + "".join(f"  {k}. {what}\n" for k, what in enumerate(tried, 1))
        + f"Get {forms[0].origin} by a machine that can, and call load({name!r}, path=THE_ZIP); "
        f"or unpack it and set JAXREC_DATA to the folder that holds the folder {name!r}."
    )


def _from_path(name: str, path: Path) -> Dataset:
    """Load from a folder, or from the zip of any form."""
    if path.is_dir():
        return _from_folder(name, path, f"Fetch it again from {RECORDS[name][0].origin}.")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected path= to be a folder or a zip, got {path}, which does not exist.")
    got = _sha256(path.read_bytes())
    for form in RECORDS[name]:
        if got == form.sha256:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / name
                _unpack(path, folder, prefix=form.prefix, members=form.files)
                return dataclasses.replace(_from_folder(name, folder, ""), source=str(path))
    form = RECORDS[name][0]
    raise ValueError(f"{path}: expected sha256 {form.sha256}, got {got}. Fetch it again from {form.origin}.")


def _from_folder(name: str, folder: Path, advice: str) -> Dataset:
    """Load from a folder that is there: the form whose files it has, each with the right bytes, or an error."""
    lacks = [[file for file in form.files if not (folder / file).is_file()] for form in RECORDS[name]]
    form, lacking = min(zip(RECORDS[name], lacks, strict=True), key=lambda pair: len(pair[1]))
    if lacking:
        raise FileNotFoundError(
            f"{folder}: expected the files {', '.join(form.files)}; {', '.join(lacking)} not there. {advice}"
        )
    files = {file: (folder / file).read_bytes() for file in form.files}  # read once: what is checked is what is used
    for file, expected in form.files.items():
        if (got := _sha256(files[file])) != expected:
            raise ValueError(f"{folder / file}: expected sha256 {expected}, got {got}. {advice}")
    logger.info("%s: reading %s", name, folder)
    return dataclasses.replace(form.read(files), source=str(folder))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_site(form: Form, folder: Path) -> Path:
    """Download a zip; pooch checks the sha256 before the file has its name."""
    import pooch

    # Seconds to connect and between two packets: a site that is down costs seconds, and is not asked twice.
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(5, 30))
    return Path(pooch.retrieve(form.origin, form.sha256, fname="data.zip", path=folder, downloader=downloader))


def _from_pip(form: Form, folder: Path) -> Path:
    """Download a wheel (which is a zip) by pip, so by whatever index, proxy or mirror this machine's pip is set to."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--retries", "1", "--timeout", "15", "--dest", str(folder), form.origin]
    logger.info("Downloading %s by pip", form.origin)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError("pip download took more than 120 seconds") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise ConnectionError(f"pip download ended with {done.returncode} and said: {said[-1]}")
    if (got := _sha256(wheels[0].read_bytes())) != form.sha256:
        raise ValueError(f"{wheels[0].name}: expected sha256 {form.sha256}, got {got}")
    return wheels[0]


def _unpack(archive: Path, folder: Path, *, prefix: str, members: Iterable[str]) -> None:
    """Make `folder` of the members `prefix + member` of a zip, whole or not at all; one that is there stays as it is.

    Raises:
        ValueError: an entry's name leaves the folder, wanted or not (such a zip is not what it says it is);
            a member is missing.
    """
    with zipfile.ZipFile(archive) as entries:
        for entry in entries.namelist():
            place = PureWindowsPath(entry)  # knows both slashes, and drive letters
            if place.drive or place.root or ".." in place.parts:
                raise ValueError(f"{archive}: refused: the entry {entry!r} would be written outside of the folder.")
        if missing := {prefix + member for member in members} - set(entries.namelist()):
            raise ValueError(f"{archive}: expected the entries {', '.join(sorted(missing))}, which are not in it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            half = Path(temporary) / folder.name
            half.mkdir()  # the temporary folder itself is closed to all other users
            for member in members:
                (half / member).write_bytes(entries.read(prefix + member))
            try:
                half.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same files
                    raise


Movie = tuple[int, str, str | None, list[str]]  # raw id, title, release date, genres

# In the order of the flags in u.item, which is the order of the words in ml-100k.item too.
GENRES = (  # noqa: SIM905
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()


def _read_ml_100k(files: Mapping[str, bytes]) -> Dataset:
    """Read the official form: no headers, latin-1, one flag per genre."""
    movies: list[Movie] = []
    for line in files["u.item"].splitlines():
        raw, title, date, _, _, *flags = line.decode("latin-1").split("|")
        genres = [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]
        movies.append((int(raw), title.strip(), date or None, genres))  # three titles end in a blank
    return _ml_100k(files["u.data"], files["u.user"].replace(b"|", b"\t"), movies)


def _read_ml_100k_recbole(files: Mapping[str, bytes]) -> Dataset:
    """Read RecBole's form: headers, UTF-8, genres as words, no dates, the year cut off from the title."""
    rows = {name: content.partition(b"\n")[2] for name, content in files.items()}
    movies: list[Movie] = []
    for line in rows["ml-100k.item"].splitlines():
        raw, title, year, genres = line.decode().split("\t")
        # Movie 267 has neither title nor year; u.item calls it unknown.
        movies.append((int(raw), "unknown" if title == "unkonwn" else f"{title} ({year})", None, genres.split()))
    return _ml_100k(rows["ml-100k.inter"], rows["ml-100k.user"], movies)


def _ml_100k(data: bytes, user: bytes, movies: list[Movie]) -> Dataset:
    """Build the Dataset from what both forms come to: tab-separated rows without a header, and the movies."""
    import polars as pl

    def table(content: bytes, **types: type[pl.DataType]) -> pl.DataFrame:
        return pl.read_csv(content, separator="\t", has_header=False, quote_char=None, schema=types)

    rows = table(data, user=pl.Int64, item=pl.Int64, rating=pl.Float32, time=pl.Int64)
    users = table(user, user_id=pl.Int64, age=pl.Int64, sex=pl.String, occupation=pl.String, zip_code=pl.String)
    items = pl.DataFrame(
        movies,
        schema={"item_id": pl.Int64, "title": pl.String, "release_date": pl.String, "genres": pl.List(pl.String)},
        orient="row",
    )
    # The last number in brackets, for a title may have two, or go on behind it: "... (1995) (V)".
    year = pl.col("title").str.extract(r".*\((\d{4})\)").cast(pl.Int64).alias("year")
    items = items.select("item_id", "title", year, "release_date", "genres")
    ratings = Ratings.from_columns(
        *(rows[name].to_numpy() for name in ("user", "item", "rating")),
        time=rows["time"].to_numpy(),
        user_ids=users["user_id"].to_numpy(),
        item_ids=items["item_id"].to_numpy(),
    )
    # u1 .. u5 are the consecutive fifths of u.data: the files u1.test, u2.test, ... hold just these rows.
    fifth = np.arange(len(ratings)) * 5 // len(ratings)
    titles = np.array([movie[1] for movie in movies])
    published = {f"u{k + 1}": fifth == k for k in range(5)}
    return Dataset("ml-100k", ratings, titles, users, items, scale=(1.0, 5.0), published=published)


# Name -> its forms: the owner's first, then those tried where the owner cannot be reached.
RECORDS: dict[str, tuple[Form, ...]] = {
    "ml-100k": (
        Form(
            origin="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            fetch=_from_site,
            sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            prefix="ml-100k/",
            files={
                "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
            },
            read=_read_ml_100k,
        ),
        Form(
            origin="recbole==1.2.1",
            fetch=_from_pip,
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            prefix="recbole/dataset_example/ml-100k/",
            files={
                "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
            },
            read=_read_ml_100k_recbole,
        ),
    ),
}
