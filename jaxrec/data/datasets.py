"""Named datasets: found on this machine, or fetched once, and never other bytes than the ones we know.

Each file is checked against its sha256 on every load, wherever it came from: two people who load 'ml-100k' have the
same ratings in the same order. To add a dataset, write its reader in `readers`, which makes a `Dataset` of the files'
bytes, and a record in `RECORDS`.
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


class DatasetNotFound(FileNotFoundError):  # noqa: N818 (it says what happened, as FileNotFoundError's readers expect)
    """A dataset is nowhere on this machine, and no way of fetching it worked; the message lists every way."""


@dataclass(frozen=True)
class Form:
    """One published form of a dataset: the zip that it comes in, the files needed from it, and how to read them.

    Attributes:
        origin: what `fetch` takes: a URL, or a package's requirement; without `fetch`, where a person finds it.
        fetch: (form, folder) -> the zip, put into that folder; raises OSError or ValueError. None where nobody
            publishes the files as one zip: they are put in place by hand.
        sha256: of the zip; '' without one.
        prefix: the files' folder inside the zip.
        files: name -> sha256, of the files needed.
        read: name -> bytes, of those files, to the Dataset.
    """

    origin: str
    fetch: Callable[[Form, Path], Path] | None
    sha256: str
    prefix: str
    files: Mapping[str, str]
    read: Callable[[Mapping[str, bytes]], Dataset]


def load(name: str, *, path: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a named dataset, from the first of these places that has it.

    1. `path`, where given: a folder that holds the files, or the zip as published. Nothing else is tried.
    2. The folder `$JAXREC_DATA/NAME` (for ml-1m-ncf also `$JAXREC_DATA/ml-1m/ncf`).
    3. The cache: `jaxrec/NAME` in the user's cache folder (on Linux `$XDG_CACHE_HOME`, or ~/.cache).
    4. Its owner's site, where that has one zip. What is needed is then kept in the cache.
    5. For ml-100k the package recbole 1.2.1, whose wheel has the same rows in the same order: it reaches machines
       that see a Python package index and nothing else. Kept in the cache too; it has no release dates.

    A folder that is there but incomplete or damaged is an error: what was put there was meant to be used.

    | name | ratings | of | by | beside them | published splits |
    | --- | --- | --- | --- | --- | --- |
    | ml-100k | 100,000 of 1 to 5, times | 1682 films | 943 users | age, sex, job, zip; title, genres | u1 .. u5 |
    | ml-1m | 1,000,209 of 1 to 5, times [1] | 3883 films, 3706 rated | 6040 users | as ml-100k | |
    | ml-1m-ncf | 1,000,209 of 1 to 5 | 3706 films | 6040 users | 99 negatives a user [2] | leave-one-out |
    | ml-latest-small | 100,836 of 0.5 to 5, times | 9742 films, 9724 rated | 610 users | title, genres, links | |
    | jester5k | 363,209 reals in -10 .. 10 | 100 jokes | 5000 users | the jokes' texts as titles | |
    | gowalla | 1,027,370 check-ins, all 1 | 40,981 places | 29,858 users | | lightgcn |

    [1] The official form; a form with the same lines but no times (ratings.npz) is read too, and then `time` is None.
    [2] As Neural Collaborative Filtering published them: of 156 users they hold the held-out film itself.

    MovieLens is for research and may not be redistributed (latest-small may, under the same terms); cite F. M. Harper
    and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. Jester: K. Goldberg et al.,
    "Eigentaste", Information Retrieval 4(2), 2001. Gowalla: E. Cho et al., KDD 2011, split by X. He et al., "LightGCN",
    SIGIR 2020. ml-1m-ncf: X. He et al., "Neural Collaborative Filtering", WWW 2017.

    Args:
        name: one of the above.
        path: see 1.

    Returns:
        The Dataset: ratings in the order of the file (train then test, where it comes as two), with raw ids, and every
        user and item of the tables `users` and `items`, in their order; null stands for what is not known.
        `data.splits.canonical(dataset, name)` takes a published split.

    Raises:
        ValueError: an unknown name; a file or zip that is not, byte for byte, the published one.
        FileNotFoundError: `path` does not exist; a folder lacks files.
        DatasetNotFound: no place has it, and no way of fetching it worked.

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
        folders = [Path(root).expanduser() / place for place in (name, *ALSO_AT.get(name, ()))]
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
        + "".join(f"  {k}. {what}\n" for k, what in enumerate(tried, 1))
        + _by_hand(name, forms[0])
    )


def _by_hand(name: str, form: Form) -> str:
    if form.fetch is None:
        return (
            f"It comes from {form.origin}. Put the files {', '.join(form.files)} into a folder, and call "
            f"load({name!r}, path=THE_FOLDER); or call the folder {name!r} and set JAXREC_DATA to what holds it."
        )
    return (
        f"Get {form.origin} by a machine that can, and call load({name!r}, path=THE_ZIP); "
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
    if not form.sha256:
        raise ValueError(
            f"{path}: expected a folder, for {name} is published as no zip that is known. {_by_hand(name, form)}"
        )
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


# Where else under $JAXREC_DATA a dataset may be.
ALSO_AT = {"ml-1m-ncf": ("ml-1m/ncf",)}

ML_1M_TABLES = {
    "users.dat": "1dc3a95300cb19f7c10e027daf29b8cdf1d908dab65b5edfb45950aa389a10a3",
    "movies.dat": "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9",
}

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
