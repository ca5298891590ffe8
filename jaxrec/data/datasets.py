"""Named datasets: found on this machine or downloaded once, and checked to be the published files, byte for byte.

Each file is checked against its sha256 on every load, wherever it came from, so everyone who loads 'ml-100k' has the
same ratings in the same order. To add a dataset, write a reader in `readers`, which turns the files' bytes into a
`Dataset`, and add a record to `RECORDS`.
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

from jaxrec import check
from jaxrec.data import readers
from jaxrec.ratings import Dataset

__all__ = ["DatasetNotFound", "load"]

logger = logging.getLogger("jaxrec")


class DatasetNotFound(FileNotFoundError):  # noqa: N818 (named after FileNotFoundError)
    """A dataset is not on this machine and could not be fetched; the message lists everything that was tried."""


@dataclass(frozen=True)
class Form:
    """One published form of a dataset: the zip that holds it, the files needed from it, and how to read them.

    Attributes:
        origin: what `fetch` downloads: a URL or a package requirement. Without `fetch`, where to find the files.
        fetch: a function (form, folder) that downloads the zip into the folder and returns its path; raises OSError or
            ValueError. None if the files are not published as one zip: then the user puts them in place.
        sha256: the sha256 of the zip; '' without one.
        prefix: the files' folder inside the zip.
        files: the sha256 of each file needed, by name.
        read: a function from the bytes of those files, by name, to the Dataset.
    """

    origin: str
    fetch: Callable[[Form, Path], Path] | None
    sha256: str
    prefix: str
    files: Mapping[str, str]
    read: Callable[[Mapping[str, bytes]], Dataset]


def load(name: str, *, path: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a named dataset from the first of these places that has it.

    1. `path`, if not None: a folder that holds the files, or the zip as published. Nothing else is tried.
    2. The folder `$JAXREC_DATA/NAME` (for ml-1m-ncf also `$JAXREC_DATA/ml-1m/ncf`).
    3. The cache: `jaxrec/NAME` in the user's cache folder (on Linux `$XDG_CACHE_HOME`, or ~/.cache).
    4. The publisher's site, if it has the dataset as one zip. The files needed are then kept in the cache.
    5. For ml-100k the package recbole 1.2.1, whose wheel has the same rows in the same order, but no release dates:
       for machines that reach only a Python package index. Kept in the cache too.

    A folder that exists but is incomplete or damaged is an error; the later places are not tried.

    | name | ratings | items | users | other data | published splits |
    | --- | --- | --- | --- | --- | --- |
    | ml-100k | 100,000, 1 to 5, times | 1682 films | 943 | age, sex, occupation, zip code; title, genres | u1 .. u5 |
    | ml-1m | 1,000,209, 1 to 5, times [1] | 3883 films, 3706 rated | 6040 | as ml-100k | |
    | ml-1m-ncf | 1,000,209, 1 to 5 | 3706 films | 6040 | 99 negatives per user [2] | leave-one-out |
    | ml-latest-small | 100,836, 0.5 to 5, times | 9742 films, 9724 rated | 610 | title, genres, links | |
    | jester5k | 363,209, real numbers in -10 .. 10 | 100 jokes | 5000 | the jokes' texts as titles | |
    | gowalla | 1,027,370 check-ins, all 1 | 40,981 places | 29,858 | | lightgcn |

    [1] The official form. A form with the same lines but no times (ratings.npz) is also read; then `time` is None.
    [2] As published with Neural Collaborative Filtering; for 156 users they include the held-out film itself.

    MovieLens is for research and may not be redistributed (latest-small may, under the same terms); cite F. M. Harper
    and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. Jester: K. Goldberg et al.,
    "Eigentaste", Information Retrieval 4(2), 2001. Gowalla: E. Cho et al., KDD 2011, split by X. He et al., "LightGCN",
    SIGIR 2020. ml-1m-ncf: X. He et al., "Neural Collaborative Filtering", WWW 2017.

    Args:
        name: one of the names above.
        path: see 1.

    Returns:
        The Dataset. Its ratings are in the order of the file (train then test, if there are two files), with raw ids.
        Users and items are those of the tables `users` and `items`, in their order; unknown values are null.
        `data.splits.canonical(dataset, name)` returns a published split.

    Raises:
        ValueError: the name is unknown; a file or zip differs from the published one.
        FileNotFoundError: `path` does not exist; files are missing from a folder.
        DatasetNotFound: no place has the dataset, and every download failed.

    >>> load("ml-100m")
    Traceback (most recent call last):
    ...
    ValueError: name: expected one of 'ml-100k', 'ml-1m', 'ml-1m-ncf', ..., got 'ml-100m'.
    """
    check.choice("name", name, tuple(RECORDS))
    forms = RECORDS[name]
    if path is not None:
        return _from_path(name, Path(path).expanduser())
    tried = ["path=: not given"]

    root = os.environ.get("JAXREC_DATA")
    if not root:
        tried.append("$JAXREC_DATA: not set")
    else:
        folders = [Path(root).expanduser() / subfolder for subfolder in (name, *OTHER_SUBFOLDERS.get(name, ()))]
        for folder in folders:
            if folder.is_dir():
                return _from_folder(name, folder, f"Fetch it again from {forms[0].origin}, or unset JAXREC_DATA.")
        tried.append(f"$JAXREC_DATA: no folder {' or '.join(map(str, folders))}")

    import pooch

    cache = Path(pooch.os_cache("jaxrec")) / name
    advice = f"Delete the folder {cache}, and load again."
    if cache.is_dir():
        return _from_folder(name, cache, advice)
    tried.append(f"the cache: no folder {cache}")

    for form in forms:
        if form.fetch is None:
            continue
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
        + "".join(f"  {k}. {attempt}\n" for k, attempt in enumerate(tried, 1))
        + _manual_instructions(name, forms[0])
    )


def _manual_instructions(name: str, form: Form) -> str:
    if form.fetch is None:
        return (
            f"It comes from {form.origin}. Put the files {', '.join(form.files)} into a folder and call "
            f"load({name!r}, path=THE_FOLDER); or name the folder {name!r} and set JAXREC_DATA to its parent folder."
        )
    return (
        f"Download {form.origin} on a machine that can reach it and call load({name!r}, path=THE_ZIP); "
        f"or unpack it and set JAXREC_DATA to the folder that holds the folder {name!r}."
    )


def _from_path(name: str, path: Path) -> Dataset:
    """Loads from a folder, or from the zip of any form."""
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
    if not form.sha256:
        raise ValueError(
            f"{path}: expected a folder, because {name} has no known zip. {_manual_instructions(name, form)}"
        )
    raise ValueError(f"{path}: expected sha256 {form.sha256}, got {got}. Fetch it again from {form.origin}.")


def _from_folder(name: str, folder: Path, advice: str) -> Dataset:
    """Loads from an existing folder, in the form with the fewest missing files; missing or damaged files are errors."""
    missing_files = [[file for file in form.files if not (folder / file).is_file()] for form in RECORDS[name]]
    form, missing = min(zip(RECORDS[name], missing_files, strict=True), key=lambda pair: len(pair[1]))
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected the files {', '.join(form.files)}; {', '.join(missing)} missing. {advice}"
        )
    files = {file: (folder / file).read_bytes() for file in form.files}  # read once: the bytes checked are those used
    for file, expected in form.files.items():
        if (got := _sha256(files[file])) != expected:
            raise ValueError(f"{folder / file}: expected sha256 {expected}, got {got}. {advice}")
    logger.info("%s: reading %s", name, folder)
    return dataclasses.replace(form.read(files), source=str(folder))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_site(form: Form, folder: Path) -> Path:
    """Downloads a zip; pooch checks the sha256 before it renames the file to its final name."""
    import pooch

    # Timeouts in seconds, to connect and between two packets: a site that is down fails fast, and is not retried.
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(5, 30))
    return Path(pooch.retrieve(form.origin, form.sha256, fname="data.zip", path=folder, downloader=downloader))


def _from_pip(form: Form, folder: Path) -> Path:
    """Downloads a wheel (which is a zip) with pip, from the index, proxy or mirror configured on this machine."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--retries", "1", "--timeout", "15", "--dest", str(folder), form.origin]
    logger.info("Downloading %s with pip", form.origin)
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError("pip download took more than 120 seconds") from error
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        stderr = process.stderr.strip().splitlines() or ["no message"]
        raise ConnectionError(f"pip download exited with code {process.returncode}: {stderr[-1]}")
    if (got := _sha256(wheels[0].read_bytes())) != form.sha256:
        raise ValueError(f"{wheels[0].name}: expected sha256 {form.sha256}, got {got}")
    return wheels[0]


def _unpack(archive: Path, folder: Path, *, prefix: str, members: Iterable[str]) -> None:
    """Extracts the entries `prefix + member` of a zip into `folder`, atomically; an existing folder is left unchanged.

    Raises:
        ValueError: a member is missing; the path of any entry, member or not, leads outside the folder.
    """
    with zipfile.ZipFile(archive) as entries:
        for entry in entries.namelist():
            path = PureWindowsPath(entry)  # handles both slashes and drive letters
            if path.drive or path.root or ".." in path.parts:
                raise ValueError(f"{archive}: refused: the entry {entry!r} would be written outside of the folder.")
        if missing := {prefix + member for member in members} - set(entries.namelist()):
            raise ValueError(f"{archive}: expected the entries {', '.join(sorted(missing))}, which are not in it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            unpacked = Path(temporary) / folder.name
            unpacked.mkdir()  # not the temporary folder itself, which other users cannot read
            for member in members:
                (unpacked / member).write_bytes(entries.read(prefix + member))
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, with the same files
                    raise


# Other subfolders of $JAXREC_DATA where a dataset may be.
OTHER_SUBFOLDERS = {"ml-1m-ncf": ("ml-1m/ncf",)}

ML_1M_TABLES = {
    "users.dat": "1dc3a95300cb19f7c10e027daf29b8cdf1d908dab65b5edfb45950aa389a10a3",
    "movies.dat": "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9",
}

# The forms of each dataset: the publisher's first, then those tried if the publisher cannot be reached.
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
            read=readers.ml_100k,
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
            read=readers.ml_100k_recbole,
        ),
    ),
    "ml-1m": (
        Form(
            origin="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            fetch=_from_site,
            sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            prefix="ml-1m/",
            files=ML_1M_TABLES | {"ratings.dat": "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f"},
            read=readers.ml_1m,
        ),
        Form(
            origin="the project's data folder",
            fetch=None,
            sha256="",
            prefix="",
            files=ML_1M_TABLES | {"ratings.npz": "65ed4cb9f6829c63a4e0109dabfd6889314269cf311d4a92cf20c7fa02509252"},
            read=readers.ml_1m_without_times,
        ),
    ),
    "ml-1m-ncf": (
        Form(
            origin="github.com/hexiangnan/neural_collaborative_filtering (Data/ml-1m.*; its train file without times, "
            "and a map of its item ids to MovieLens')",
            fetch=None,
            sha256="",
            prefix="",
            files={
                "ml-1m.train.notime.rating": "d0d5027b3f9468eacebab8514330d7ac9894a2a8e7ce63d0c7fa0e5b38556024",
                "ml-1m.test.rating": "231ae11eb060b643a8c58c063cd17ffc743b54f569afb073d1abb6cf126b88b5",
                "ml-1m.test.negative": "127853228a76b7d21c0481e8ef8d00dd009cd5c88670dbdd9e9debfdb9f93de4",
                "item_map.tsv": "6298a915779ab44e6643db05ea1a0cd4b3c2d2f1495aee8975a8761a5ee7acc5",
            },
            read=readers.ml_1m_ncf,
        ),
    ),
    "ml-latest-small": (
        Form(
            origin="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
            fetch=_from_site,
            sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
            prefix="ml-latest-small/",
            files={
                "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
                "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
                "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
            },
            read=readers.ml_latest_small,
        ),
    ),
    "jester5k": (
        Form(
            origin="the Jester5k data of the R package recommenderlab, written as ratings.csv (user,joke,rating) and "
            "jokes.csv (joke,text)",
            fetch=None,
            sha256="",
            prefix="",
            files={
                "ratings.csv": "177d24ed9c5fc5382f8aaa7e5846664748a4345cfe6b16824c228acf8982f9bc",
                "jokes.csv": "ce5a8095903043e02fce64db1f716f9523d593a9cb26d1ea47e4ad661cd22fc6",
            },
            read=readers.jester5k,
        ),
    ),
    "gowalla": (
        Form(
            origin="github.com/gusye1234/LightGCN-PyTorch (data/gowalla)",
            fetch=None,
            sha256="",
            prefix="",
            files={
                "train.txt": "0f086326b28a56c2e6dcb81d86ee72d4ccb7eed3a8d26788392356d8f51111cc",
                "test.txt": "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3",
                "user_list.txt": "5344c4d0deef610e1f148f23ad216a0db03b36f88834cd39a06786a672c5f5a1",
                "item_list.txt": "6b186f92890cc3f0c15a6dae5d6285f125a302bb8c5ea0cd9a16cf9c16347139",
            },
            read=readers.gowalla,
        ),
    ),
}
