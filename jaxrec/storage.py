"""Saves a trained model with its ids, titles and scale, or any named arrays, to one file.

The file is an ordinary zip, not compressed (factors do not compress):

    manifest.json    first: format, version, kind, jaxrec, meta; and the dtype, shape and sha256 of each array
    NAME.npy         one per array, never pickled; bfloat16 and similar types are stored as unsigned integers
    zip comment      'jaxrec sha256 ' and the digest of every byte of the file before the digest itself

A changed byte, a truncated file or trailing data therefore raises an error and never gives a wrong number, and `unzip`
and `np.load` can read the file without jaxrec. Writing is atomic, and the same content gives the same bytes. `save` and
`load` are for models; `write` and `read`, on which they are built, are for any other kind of content.

>>> import tempfile, jaxrec
>>> data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
>>> ids = {"user_ids": data.ratings.user_ids, "item_ids": data.ratings.item_ids}
>>> model = Model(jaxrec.models.baselines.popularity(data.ratings), **ids, titles=data.titles, notes={"seed": 0})
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/films.jaxrec", model)
...     model = load(f"{folder}/films.jaxrec")
>>> model
Model(30 users, 20 items, rank 0, float32)

The items that a user has seen are passed separately, in the model's raw ids (for a model without raw ids, contiguous
ids: `Ratings(user, item, value, n_users=len(model.factors.w), n_items=len(model.factors.x))`):

>>> seen = jaxrec.Ratings.from_columns([7, 7], [9, 3], user_ids=model.user_ids, item_ids=model.item_ids)
>>> found = jaxrec.recommend(model.factors, seen, 7, k=2, titles=model.titles)
>>> found.item.tolist(), found.title.tolist(), found.score.tolist()
([12, 18], ['Film 12', 'Film 18'], [18.0, 16.0])
"""

import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy

from jaxrec.atomic import replacing
from jaxrec.types import Factors

__all__ = ["Contents", "Model", "load", "read", "save", "write"]

FORMAT = "jaxrec"
VERSION = 1  # increment it for a new name among a model's arrays, which old readers do not know
MANIFEST = "manifest.json"
SEAL = b"jaxrec sha256 "  # keep the seal and the manifest as first member in every version: errors depend on them
DIGEST = 64  # hexadecimal digits of a sha256
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # 'factors.w', 'params/dense_0/kernel'; no '..'
ADVICE = "Take another copy of the file, or save again."


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model and the data needed to use it: everything that `save` writes and `load` returns.

    Attributes:
        factors: the parameters. If means were subtracted from the ratings before training, add them with
            `data.normalize.add_means(factors, means)`, so that predictions include them.
        user_ids: [n_users], the raw id of each user (integers or strings, distinct), or None if ids are contiguous.
        item_ids: [n_items], the same for items.
        titles: [n_items] strings, or None.
        scale: the lowest and the highest possible rating, or None.
        normalization: named floats and arrays of floats, to subtract the same means from later ratings, such as those
            of a new user: `dataclasses.asdict(means)` here, `normalize.Means(**model.normalization)` after `load`.
            None values are dropped; scalars are loaded as floats. Predictions do not add them: see `factors`.
        notes: anything that JSON can hold: data, split, settings, errors. Tuples are loaded as lists.

    Raises:
        ValueError: tables, ids or titles of inconsistent lengths; ids that are not distinct integers or strings.
    """

    factors: Factors
    user_ids: Any = None
    item_ids: Any = None
    titles: Any = None
    scale: tuple[float, float] | None = None
    normalization: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that the fields are consistent, and converts ids and titles to NumPy arrays."""
        put = lambda name, value: object.__setattr__(self, name, value)
        n_users, n_items = _table_sizes(self.factors)
        put("user_ids", _labels("user_ids", self.user_ids, n_users, kinds="iuUS"))
        put("item_ids", _labels("item_ids", self.item_ids, n_items, kinds="iuUS"))
        put("titles", _labels("titles", self.titles, n_items, kinds="U"))
        if self.scale is not None:
            low, high = map(float, self.scale)
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"scale: expected the lowest and the highest rating, got {self.scale}.")
            put("scale", (low, high))
        normalization = {name: value for name, value in (self.normalization or {}).items() if value is not None}
        put("normalization", normalization or None)

    def __repr__(self) -> str:
        """One line of sizes instead of the tables."""
        (n_users, rank), n_items = np.shape(self.factors.w), len(self.factors.x)
        return f"Model({n_users} users, {n_items} items, rank {rank}, {self.factors.w.dtype})"


def save(path: str | os.PathLike[str], model: Model) -> None:
    """Saves a model to one file atomically, replacing an existing one. See `write`.

    Raises:
        ValueError: NaN or infinity in the factors or the normalization (the model diverged).
        Exception: as `write`.
    """
    arrays = {f"factors.{name}": table for name, table in vars(model.factors).items() if table is not None}
    arrays |= {f"normalization.{name}": value for name, value in (model.normalization or {}).items()}
    for name, table in arrays.items():
        array = np.asarray(table)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating-point numbers, got {array.dtype}.")
        if wrong := int((~np.isfinite(array)).sum()):
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in {wrong} of {array.size} entries. A model "
                "that diverged is not saved: use a smaller learning rate or more l2."
            )
    labels = {name: getattr(model, name) for name in ("user_ids", "item_ids", "titles")}
    arrays |= {name: label for name, label in labels.items() if label is not None}
    write(path, "model", arrays, {"scale": model.scale, "notes": model.notes})


def load(path: str | os.PathLike[str]) -> Model:
    """Loads a model, with the factors as JAX arrays of the dtypes they were saved with.

    Raises:
        ValueError: as `read`; float64 factors if JAX has float64 disabled (JAX would round them silently).
        FileNotFoundError: no such file.
    """
    arrays, meta = read(path, "model")
    pop = lambda prefix: {name[len(prefix) :]: arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
    try:
        factors = Factors(**{name: _to_jax(name, table) for name, table in pop("factors.").items()})
        means = {name: value if value.ndim else float(value) for name, value in pop("normalization.").items()}
        fields: dict[str, Any] = arrays | meta
        return Model(factors, normalization=means, **fields)
    except (TypeError, ValueError) as error:  # a TypeError: a missing or an unknown array
        raise ValueError(f"{path}: {error}") from error


def write(path: str | os.PathLike[str], kind: str, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes named arrays and metadata to one file atomically (`atomic.replacing`).

    Args:
        path: the file, with any extension; its folder must exist, so that a mistyped one is not created.
        kind: the kind of content, such as 'model', which `read` checks.
        arrays: name -> array, of numbers, bools, times or strings, of any shape; saved and read bit for bit. Names are
            letters, digits and any of _ . - with / between parts.
        meta: values that JSON can hold: strings, finite numbers, bools, None, lists and dicts of these. Tuples become
            lists.

    Raises:
        ValueError: an array of Python objects or of random keys; a name or meta that cannot be written.
        FileNotFoundError: no such folder.
        OSError: the disk is full or the folder not writable. No partial file is left, and the old one is unchanged.
    """
    entries, stored = {}, {}
    for name, value in arrays.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"arrays: expected names of letters, digits, _ . - with / between parts, got {name!r}.")
        try:
            array = np.asarray(value, order="C")
            dtype = _npy_dtype(array.dtype)
        except (TypeError, ValueError) as error:  # a TypeError: JAX's random keys, whose message says what to do
            raise ValueError(f"arrays[{name!r}]: {error}") from error
        stored[name] = array.view(dtype)
        dtype_name = array.dtype.str if dtype == array.dtype else array.dtype.name
        entries[name] = {"dtype": dtype_name, "shape": list(array.shape), "sha256": _sha256(stored[name])}
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "jaxrec": _jaxrec_version()}
    manifest = json.dumps({**head, "meta": _json("meta", meta), "arrays": entries}, indent=1).encode()
    with replacing(path) as temporary, open(temporary, "x+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(MANIFEST), manifest)  # a ZipInfo is dated 1980: the bytes hold no time
            for name, array in stored.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    npy.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.comment = SEAL + b"0" * DIGEST
        seal = _seal(file)
        file.seek(-DIGEST, os.SEEK_END)
        file.write(seal)


class Contents(NamedTuple):
    """Result of `read`.

    Attributes:
        arrays: name -> array.
        meta: the metadata, values that JSON can hold.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def read(path: str | os.PathLike[str], kind: str) -> Contents:
    """Reads a file of `write`: (arrays, meta). Checks everything, extracts nothing to disk and unpickles nothing.

    Raises:
        ValueError: not a jaxrec file; damaged; of another kind; written by a newer jaxrec.
        FileNotFoundError: no such file.
    """
    with open(path, "rb") as file:
        try:
            _check_seal(file)
            with zipfile.ZipFile(file) as archive:
                return Contents(*_read(archive, kind, size=os.fstat(file.fileno()).st_size))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (OSError, MemoryError):  # a problem of the machine, not of the file
            raise
        except Exception as error:  # the seal is valid, so another program wrote it: anything can be wrong
            raise ValueError(f"{path}: not as jaxrec writes it ({type(error).__name__}: {error}). {ADVICE}") from error


def _read(archive: zipfile.ZipFile, kind: str, *, size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    members = archive.infolist()
    plain = all(m.compress_type == zipfile.ZIP_STORED and 0 <= m.header_offset < size for m in members)
    if not plain or sum(m.file_size for m in members) > size:  # no zip bomb: no more can be read than the file's size
        raise ValueError(f"expected members inside the file, none compressed and none overlapping. {ADVICE}")
    manifest = json.loads(archive.read(MANIFEST))
    if manifest["format"] != FORMAT:
        raise ValueError(f"expected the format {FORMAT!r}, got {manifest['format']!r}.")
    if manifest["version"] > VERSION:
        raise ValueError(
            f"written by a newer jaxrec, {manifest['jaxrec']} (format {manifest['version']}; this one, "
            f"{_jaxrec_version()}, reads {VERSION}): upgrade jaxrec."
        )
    if manifest["kind"] != kind:
        raise ValueError(f"expected the kind {kind!r}, got {manifest['kind']!r}. Is it the right file?")
    names, expected = archive.namelist(), [MANIFEST, *(f"{name}.npy" for name in manifest["arrays"])]
    if sorted(names) != sorted(expected):
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        raise ValueError(
            f"expected the members of the manifest, each once; missing: {missing}; extra: {extra}. {ADVICE}"
        )
    arrays = {
        name: _read_array(archive.getinfo(f"{name}.npy"), archive, name, e) for name, e in manifest["arrays"].items()
    }
    return arrays, manifest["meta"]


def _read_array(info: zipfile.ZipInfo, archive: zipfile.ZipFile, name: str, entry: dict[str, Any]) -> np.ndarray:
    """Reads one member, after comparing its dtype, shape and size with the manifest before allocating memory."""
    dtype = np.dtype(entry["dtype"])
    expected = (tuple(entry["shape"]), False, _npy_dtype(dtype))
    with archive.open(info) as member:
        version = npy.read_magic(member)
        got = npy.read_array_header_1_0(member) if version == (1, 0) else None
        if got != expected or member.tell() + math.prod(expected[0]) * expected[2].itemsize != info.file_size:
            raise ValueError(
                f"{name}: expected (shape, Fortran order, dtype) {expected}, got {got}, or a wrong size. {ADVICE}"
            )
        member.seek(0)
        array = npy.read_array(member, allow_pickle=False)
    if _sha256(array) != entry["sha256"]:
        raise ValueError(f"{name}: damaged: expected sha256 {entry['sha256']}, got {_sha256(array)}. {ADVICE}")
    return array.view(dtype)


def _check_seal(file: IO[bytes]) -> None:
    """Raises a ValueError unless the file ends with the seal and the digest of all bytes before the digest."""
    file.seek(0)
    head = file.read(30 + len(MANIFEST))
    start = max(0, file.seek(0, os.SEEK_END) - DIGEST - len(SEAL))
    file.seek(start)
    tail = file.read()
    if tail.startswith(SEAL) and tail.removeprefix(SEAL) == _seal(file):
        return
    if head[30:] == MANIFEST.encode() or tail.startswith(SEAL):
        raise ValueError(f"damaged: truncated, changed since it was written, or zipped again. {ADVICE}")
    if zipfile.is_zipfile(file):
        raise ValueError("expected a file that jaxrec saved, got another zip. If it is an .npz, read it with np.load.")
    raise ValueError(f"expected a file that jaxrec saved, got one that begins with {head[:8]!r}. Is it the right file?")


def _seal(file: IO[bytes]) -> bytes:
    """The digest of all but the last 64 bytes, computed by chunks."""
    remaining = file.seek(0, os.SEEK_END) - DIGEST
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(min(remaining, 1 << 20)):
        digest.update(chunk)
        remaining -= len(chunk)
    return digest.hexdigest().encode()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data if array.nbytes else b"").hexdigest()


def _npy_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype as which .npy stores it: uint16 for bfloat16, which ml_dtypes registers with NumPy."""
    if dtype.isbuiltin == 2:
        return np.dtype(f"u{dtype.itemsize}")
    if dtype.kind not in "biufcmMUS" or dtype.char in "gG":  # long doubles differ between machines
        raise ValueError(f"expected numbers, bools, times or strings, got {dtype}: nothing is pickled. Use dtype=str?")
    return dtype


def _json(where: str, value: Any) -> Any:
    """Converts to plain dicts and lists; raises a ValueError that names the first value that JSON would change."""
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_json(f"{where}[{k}]", element) for k, element in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json(f"{where}[{key!r}]", element) for key, element in value.items()}
    got = f"keys {list(value)[:3]}" if isinstance(value, Mapping) else f"{type(value).__name__} {value!r}"
    raise ValueError(
        f"{where}: expected what JSON can hold (strings, finite numbers, lists, dicts by string), got {got}."
    )


def _jaxrec_version() -> str:
    try:
        return metadata.version("jaxrec")
    except metadata.PackageNotFoundError:  # a folder on the path that is not installed
        return "unknown"


def _to_jax(name: str, table: np.ndarray) -> Any:
    out = jnp.asarray(table)
    if out.dtype != table.dtype:
        raise ValueError(
            f"factors.{name}: expected {table.dtype}, as it was saved, got {out.dtype}, because float64 is disabled. "
            "Call jax.config.update('jax_enable_x64', True) first."
        )
    return out


def _table_sizes(factors: Factors) -> tuple[int, int]:
    """Returns (n_users, n_items), after checking that all tables have these sizes."""
    if np.ndim(factors.w) != 2 or np.ndim(factors.x) != 2:
        raise ValueError(f"factors: expected tables w and x, got {np.shape(factors.w)} and {np.shape(factors.x)}.")
    (n_users, rank), n_items = np.shape(factors.w), len(factors.x)
    allowed: dict[str, list[tuple[int, ...]]] = {
        "x": [(n_items, rank)],
        "b": [(n_users,)],
        "c": [(n_items,)],
        "mu": [(), (n_items,)],
    }
    for name, shapes in allowed.items():
        table = getattr(factors, name)
        optional = name in ("c", "mu") and table is None
        if not optional and np.shape(table) not in shapes:
            raise ValueError(f"factors.{name}: expected shape {shapes[-1]}, got {np.shape(table)}.")
    return n_users, n_items


def _labels(name: str, labels: Any, size: int, *, kinds: str) -> np.ndarray | None:
    """One label per row as a NumPy array. Strings get NumPy's string type; polars returns them as objects."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind in "OT":
        array = array.astype(str)
    if array.shape != (size,):
        raise ValueError(f"{name}: expected one per row of the table, shape ({size},), got {array.shape}.")
    # NumPy converts mixtures and None to strings, and drops a trailing NUL: then the array differs from the labels.
    original = list(labels) if isinstance(labels, list | tuple) else np.asarray(labels).tolist()
    if array.dtype.kind not in kinds or array.tolist() != original:
        expected = "strings" if kinds == "U" else "integers or strings, not both"
        raise ValueError(f"{name}: expected {expected}, got {np.asarray(labels).dtype} such as {original[:2]}.")
    if name != "titles" and len(np.unique(array)) != size:
        raise ValueError(f"{name}: expected distinct ids, got {size - len(np.unique(array))} repeated.")
    return array
