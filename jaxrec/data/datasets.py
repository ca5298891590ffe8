"""Named datasets: found on this machine or downloaded once, and checked to be the published files, byte for byte.

pooch downloads, retries, checks the archive and unpacks it; `registry.txt`, a registry of pooch's form, has the sha256
of each archive and file, and the archives' addresses. Each file is checked on every load, wherever it came from, so
everyone who loads 'ml-100k' has the same ratings in the same order. To add a dataset, write a reader in `readers`,
which turns the files' bytes into a `Dataset`, add its files to `registry.txt` and a `Form` to `published_files`.
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
from pathlib import Path, PureWindowsPath
from typing import Any

from jaxrec import check
from jaxrec.atomic import temporary_folder
from jaxrec.data.published_files import FORMS, OTHER_SUBFOLDERS, SHARED_SUBFOLDER, Form
from jaxrec.dataset import Dataset

__all__ = ["DatasetNotFound", "load"]

logger = logging.getLogger("jaxrec")
REGISTRY = Path(__file__).with_name("registry.txt")


class DatasetNotFound(FileNotFoundError):  # noqa: N818 (named after FileNotFoundError)
    """A dataset is not on this machine and could not be fetched; the message lists everything that was tried."""


def load(name: str, *, path: str | os.PathLike[str] | None = None, pip: bool = True) -> Dataset:
    """Loads a named dataset from the first of these places that has it.

    1. `path`, if not None: a folder that holds the files, or the zip as published. Nothing else is tried.
    2. The folder `$JAXREC_DATA/NAME` (for ml-1m-ncf also `$JAXREC_DATA/ml-1m/ncf`; for the four datasets of sequences
       also `$JAXREC_DATA/sequences`, if it holds the file of that dataset).
    3. The cache: `jaxrec/NAME` in the user's cache folder (on Linux `$XDG_CACHE_HOME`, or ~/.cache).
    4. The publisher's site, if it has the dataset as one zip. The files needed are then kept in the cache.
    5. For ml-100k the package recbole 1.2.1, whose wheel has the same rows in the same order, but no release dates:
       for machines that reach only a Python package index. Kept in the cache too. This runs `python -I -m pip
       download` in another process, which is announced by a warning on the logger "jaxrec"; pip=False does without.

    The sha256 of every archive and file is known beforehand, whichever way it comes. A download that was interrupted
    leaves nothing that is used: the cache has the complete folder or none. A folder that exists but is incomplete or
    damaged is an error; the later places are not tried.

    | name | ratings | items | users | other data | published splits |
    | --- | --- | --- | --- | --- | --- |
    | ml-100k | 100,000, 1 to 5, times | 1682 films | 943 | age, sex, occupation, zip code; title, genres | u1 .. u5 |
    | ml-1m | 1,000,209, 1 to 5, times [1] | 3883 films, 3706 rated | 6040 | as ml-100k | |
    | ml-1m-ncf | 1,000,209, 1 to 5 | 3706 films | 6040 | 99 negatives per user [2] | leave-one-out |
    | ml-latest-small | 100,836, 0.5 to 5, times | 9742 films, 9724 rated | 610 | title, genres, links | |
    | jester5k | 363,209, real numbers in -10 .. 10 | 100 jokes | 5000 | the jokes' texts as titles | |
    | gowalla | 1,027,370 check-ins, all 1 | 40,981 places | 29,858 | | lightgcn |
    | ml-1m-sequences | 999,611 views, all 1, in order [3] | 3416 films | 6040 | | |
    | amazon-beauty | 198,502 reviews, all 1, in order [3] | 12,101 | 22,363 | | |
    | amazon-sports | 296,337 reviews, all 1, in order [3] | 18,357 | 35,598 | | |
    | amazon-toys | 167,597 reviews, all 1, in order [3] | 11,924 | 19,412 | | |

    [1] The official form. A form with the same lines but no times (ratings.npz) is also read; then `time` is None.
    [2] As published with Neural Collaborative Filtering; for 156 users they include the held-out film itself.
    [3] The rows of a user are in the order of time, but there are no times: `time` is None, and splits and
        `data.sequences` take order='position'. Published tables hold out each user's last item as test and the one
        before it as validation: `data.splits.leave_last(ratings, order="position")`, twice.

    MovieLens is for research and may not be redistributed (latest-small may, under the same terms); cite F. M. Harper
    and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. Jester: K. Goldberg et al.,
    "Eigentaste", Information Retrieval 4(2), 2001. Gowalla: E. Cho et al., KDD 2011, split by X. He et al., "LightGCN",
    SIGIR 2020. ml-1m-ncf: X. He et al., "Neural Collaborative Filtering", WWW 2017. ml-1m-sequences: W.-C. Kang and
    J. McAuley, "Self-attentive sequential recommendation", ICDM 2018. amazon: J. McAuley et al., SIGIR 2015, as split
    by K. Zhou et al., "S3-Rec", CIKM 2020.

    Args:
        name: one of the names above.
        path: see 1.
        pip: see 5: False never runs pip.

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
    check.choice("name", name, tuple(FORMS))
    if path is not None:
        return _from_path(name, Path(path).expanduser())
    tried = ["path=: not given"]

    root = os.environ.get("JAXREC_DATA")
    if not root:
        tried.append("$JAXREC_DATA: not set")
    else:
        folders = [Path(root).expanduser() / subfolder for subfolder in (name, *OTHER_SUBFOLDERS.get(name, ()))]
        for folder in folders:
            is_shared = folder.name == SHARED_SUBFOLDER
            if folder.is_dir() and (not is_shared or any((folder / file).is_file() for file in FORMS[name][0].names)):
                origin = _origin(FORMS[name][0])
                return _from_folder(name, folder, f"Fetch it again from {origin}, or unset JAXREC_DATA.")
        tried.append(f"$JAXREC_DATA: no folder {' or '.join(map(str, folders))}")

    import pooch

    cache = Path(pooch.os_cache("jaxrec")) / name
    advice = f"Delete the folder {cache}, and load again."
    if cache.is_dir():
        return _from_folder(name, cache, advice)
    tried.append(f"the cache: no folder {cache}")

    for form in FORMS[name]:
        if form.archive is None:
            continue
        if not pip and not _origin(form).startswith("https:"):
            tried.append(f"{_origin(form)}: not tried, because pip=False")
            continue
        try:
            _fetch(form, cache)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            tried.append(f"{_origin(form)}: {type(error).__name__}: {error}")
            logger.warning("%s: could not fetch %s", name, tried[-1])
        else:
            logger.info("%s: fetched %s into %s", name, _origin(form), cache)
            return _from_folder(name, cache, advice)
    raise DatasetNotFound(
        f"{name} is not on this machine and could not be fetched:\n"
        + "".join(f"  {k}. {attempt}\n" for k, attempt in enumerate(tried, 1))
        + _manual_instructions(name, FORMS[name][0])
    )


def _registry(folder: Path | str = "") -> Any:
    """Returns the registry as a pooch that keeps what it fetches in `folder`."""
    import pooch

    registry = pooch.create(path=folder, base_url="", retry_if_failed=1)  # a site that is down fails soon
    registry.load_registry(REGISTRY)
    return registry


def _origin(form: Form) -> str:
    return form.origin if form.archive is None else _registry().get_url(form.archive)


def _manual_instructions(name: str, form: Form) -> str:
    if form.archive is None:
        return (
            f"It comes from {form.origin}. Put the files {', '.join(form.names)} into a folder and call "
            f"load({name!r}, path=THE_FOLDER); or name the folder {name!r} and set JAXREC_DATA to its parent folder."
        )
    return (
        f"Download {_origin(form)} on a machine that can reach it and call load({name!r}, path=THE_ZIP); "
        f"or unpack it and set JAXREC_DATA to the folder that holds the folder {name!r}."
    )


def _from_path(name: str, path: Path) -> Dataset:
    """Loads from a folder, or from the zip of any form."""
    first, registry = FORMS[name][0], _registry().registry
    if path.is_dir():
        return _from_folder(name, path, f"Fetch it again from {_origin(first)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected path= to be a folder or a zip, got {path}, which does not exist.")
    if first.archive is None:
        raise ValueError(
            f"{path}: expected a folder, because {name} has no known zip. {_manual_instructions(name, first)}"
        )
    got = _sha256(path.read_bytes())
    for form in FORMS[name]:
        if form.archive is not None and got == registry[form.archive]:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / name
                _unpack(path, folder, form)
                return dataclasses.replace(_from_folder(name, folder, ""), source=str(path))
    raise ValueError(
        f"{path}: expected sha256 {registry[first.archive]}, got {got}. Fetch it again from {_origin(first)}."
    )


def _from_folder(name: str, folder: Path, advice: str) -> Dataset:
    """Loads from an existing folder, in the form with the fewest missing files; missing or damaged files are errors."""
    missing_files = [[file for file in form.names if not (folder / file).is_file()] for form in FORMS[name]]
    form, missing = min(zip(FORMS[name], missing_files, strict=True), key=lambda pair: len(pair[1]))
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected the files {', '.join(form.names)}; {', '.join(missing)} missing. {advice}"
        )
    registry = _registry().registry
    files = {file: (folder / file).read_bytes() for file in form.names}  # read once: the bytes checked are those used
    for file, content, registered in zip(form.names, files.values(), form.files, strict=True):
        if (got := _sha256(content)) != (expected := registry[registered]):
            raise ValueError(f"{folder / file}: expected sha256 {expected}, got {got}. {advice}")
    logger.info("%s: reading %s", name, folder)
    return dataclasses.replace(form.read(files), source=str(folder))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fetch(form: Form, folder: Path) -> None:
    """Downloads the form's archive and unpacks its files into `folder`; pooch checks the sha256 of the archive."""
    import pooch

    site = pooch.HTTPDownloader(progressbar=True, timeout=(5, 30))  # seconds, to connect and between two packets
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as temporary:
        downloader = site if _origin(form).startswith("https:") else _download_by_pip
        archive = _registry(temporary).fetch(form.archive, downloader=downloader)
        _unpack(Path(archive), folder, form)


def _download_by_pip(requirement: str, output_file: str, pooch: Any) -> None:
    """A downloader of pooch: a wheel (which is a zip) from the index, proxy or mirror configured on this machine."""
    # -I: neither the working folder nor PYTHONPATH says which pip runs. pip itself reads its configuration as always.
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--retries", "1", "--timeout", "15", "--dest"]
    with tempfile.TemporaryDirectory(dir=Path(output_file).parent) as wheels:
        command += [wheels, requirement]
        logger.warning("Running pip to download %s (pip=False does without): %s", requirement, " ".join(command))
        options: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 120}
        try:
            process = subprocess.run(command, check=False, **options)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError("pip download took more than 120 seconds") from error
        found = list(Path(wheels).glob("*.whl"))
        if process.returncode or not found:
            stderr = process.stderr.strip().splitlines() or ["no message"]
            raise ConnectionError(f"pip download exited with code {process.returncode}: {stderr[-1]}")
        found[0].replace(output_file)


def _unpack(archive: Path, folder: Path, form: Form) -> None:
    """Unpacks the files of a form into `folder`, atomically; an existing folder is left unchanged.

    pooch's Unzip writes into the final folder, and passes over files that are missing and entries that lead outside.
    So the entries are checked before, and it unpacks into a temporary folder, which is renamed when it is complete.

    Raises:
        ValueError: a file is missing; the path of any entry, needed or not, leads outside the folder.
    """
    import pooch

    with zipfile.ZipFile(archive) as zipped:
        entries = zipped.namelist()
    for entry in entries:
        path = PureWindowsPath(entry)  # handles both slashes and drive letters
        if path.drive or path.root or ".." in path.parts:
            raise ValueError(f"{archive}: refused: the entry {entry!r} would be written outside of the folder.")
    if missing := set(form.files) - set(entries):
        raise ValueError(f"{archive}: expected the entries {', '.join(sorted(missing))}, which are not in it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as temporary:
        unpacked = temporary / "unpacked"  # not the temporary folder itself, which other users cannot read
        pooch.Unzip(members=form.files, extract_dir=str(unpacked))(str(archive.absolute()), "download", None)
        try:
            (unpacked / form.folder).rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same files
                raise
