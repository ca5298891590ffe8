"""One file for what is saved: a trained model with its ids, titles and scale, and anything else that is named arrays.

The file is an ordinary zip, stored and not compressed (factors are noise to a compressor):

    manifest.json    first: format, version, kind, jaxrec, meta; and of each array its dtype, shape and sha256
    NAME.npy         one per array, never pickled; bfloat16 and its like stand there as unsigned integers of their size
    zip comment      'jaxrec sha256 ' and the digest of every byte of the file before the digest itself

so a changed byte, a file cut short or one with something behind it is an error, never a wrong number, and `unzip` and
`np.load` still read it where there is no jaxrec. A file appears whole or not at all, and with the same content it has
the same bytes. `save` and `load` are for models; `write` and `read`, which they stand on, for every other kind.

>>> import tempfile, jaxrec
>>> data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
>>> ids = {"user_ids": data.ratings.user_ids, "item_ids": data.ratings.item_ids}
>>> model = Model(jaxrec.models.baselines.popularity(data.ratings), **ids, titles=data.titles, notes={"seed": 0})
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/films.jaxrec", model)
...     model = load(f"{folder}/films.jaxrec")
>>> model
Model(30 users, 20 items, rank 0, float32)

What a user has seen goes beside it, in the raw ids that the model knows (a model without raw ids takes contiguous ones:
`Ratings(user, item, value, n_users=len(model.factors.w), n_items=len(model.factors.x))`):

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
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy

from jaxrec.types import Factors

__all__ = ["Contents", "Model", "load", "read", "save", "write"]

FORMAT = "jaxrec"
VERSION = 1  # a new name among a model's arrays is a new version: an old reader would not know what to do with it
MANIFEST = "manifest.json"
SEAL = b"jaxrec sha256 "  # the seal and the manifest as first member stay in every version: they name all other errors
DIGEST = 64  # hexadecimal digits of a sha256
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # 'factors.w', 'params/dense_0/kernel'; nothing that leaves
AGAIN = "Take another copy of the file, or save again."


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model, and what it takes to use it: all that `save` writes and `load` gives back.

    Attributes:
        factors: the parameters. Ratings that were fitted less their means: put the means in by
            `data.normalize.add_means(factors, means)`, and every prediction has them.
        user_ids: [n_users], the raw id of each user (integers or strings, distinct), or None where ids are contiguous.
        item_ids: [n_items], the same for items.
        titles: [n_items] strings, or None.
        scale: the lowest and the highest rating there can be, or None.
        normalization: named floats and arrays of them, to subtract the same means from ratings that come later (a new
            user's, say): `dataclasses.asdict(means)` here, `normalize.Means(**model.normalization)` after `load`.
            What is None is left out; numbers come back as floats. No prediction adds them: see `factors`.
        notes: anything that JSON holds: data, split, settings, errors. Tuples come back as lists.

    Raises:
        ValueError: tables, ids, titles of lengths that do not fit; ids that are not distinct integers or strings.
    """

    factors: Factors
    user_ids: Any = None
    item_ids: Any = None
    titles: Any = None
    scale: tuple[float, float] | None = None
    normalization: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks what belongs together, and makes NumPy arrays of ids and titles."""
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
        given = {name: value for name, value in (self.normalization or {}).items() if value is not None}
        put("normalization", given or None)

    def __repr__(self) -> str:
        """A line, not a million numbers."""
        (n_users, rank), n_items = np.shape(self.factors.w), len(self.factors.x)
        return f"Model({n_users} users, {n_items} items, rank {rank}, {self.factors.w.dtype})"


def save(path: str | os.PathLike[str], model: Model) -> None:
    """Save a model to one file, whole or not at all; one that was there is replaced. See `write`.

    Raises:
        ValueError: NaN or infinity in the factors or the normalization: a model that diverged is not saved.
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
                f"{name}: expected finite numbers, got NaN or infinity in {wrong} of {array.size} places. A model that "
                "diverged is not saved: a smaller learning rate, or more l2."
            )
    labels = {name: getattr(model, name) for name in ("user_ids", "item_ids", "titles")}
    arrays |= {name: label for name, label in labels.items() if label is not None}
    write(path, "model", arrays, {"scale": model.scale, "notes": model.notes})


def load(path: str | os.PathLike[str]) -> Model:
    """Load a model, the factors as JAX arrays of the dtypes they were saved with.

    Raises:
        ValueError: as `read`; float64 factors where JAX has no float64 (JAX would round them without a word).
        FileNotFoundError: no such file.
    """
    arrays, meta = read(path, "model")
    take = lambda part: {name[len(part) :]: arrays.pop(name) for name in list(arrays) if name.startswith(part)}
    try:
        factors = Factors(**{name: _to_jax(name, table) for name, table in take("factors.").items()})
        means = {name: value if value.ndim else float(value) for name, value in take("normalization.").items()}
        fields: dict[str, Any] = arrays | meta
        return Model(factors, normalization=means, **fields)
    except (TypeError, ValueError) as error:  # a TypeError: an array that is missing, or one too many
        raise ValueError(f"{path}: {error}") from error


def write(path: str | os.PathLike[str], kind: str, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write named arrays and a few words about them to one file, whole or not at all.

    Written under a temporary name in the same folder, flushed to the disk, then renamed: whoever kills the process,
    `path` is the old file or the new one. (After a kill -9 a file `.jaxrec-*.tmp` may stay behind, for you to delete.)
    Symbolic links are followed; the mode is what the umask gives.

    Args:
        path: the file, with whatever extension; its folder must be there, for a mistyped one would be made unseen.
        kind: what it holds, such as 'model': `read` asks for it by this name.
        arrays: name -> array, of numbers, bools, times or strings, of any shape; saved and read bit for bit. Names are
            letters, digits and any of _ . - with / between parts.
        meta: what JSON holds: strings, finite numbers, bools, None, lists and dicts of these. Tuples become lists.

    Raises:
        ValueError: an array of Python objects, or of random keys; a name or meta that cannot be written.
        FileNotFoundError: no such folder.
        OSError: the disk is full, the folder closed. There is no half file then, and the old one is as it was.
    """
    path = Path(os.path.realpath(path))
    entries, stored = {}, {}
    for name, value in arrays.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"arrays: expected names of letters, digits, _ . - with / between parts, got {name!r}.")
        try:
            array = np.asarray(value, order="C")
            dtype = _npy_dtype(array.dtype)
        except (TypeError, ValueError) as error:  # a TypeError: JAX's random keys, and what to do about them
            raise ValueError(f"arrays[{name!r}]: {error}") from error
        stored[name] = array.view(dtype)
        known = array.dtype.str if dtype == array.dtype else array.dtype.name
        entries[name] = {"dtype": known, "shape": list(array.shape), "sha256": _sha256(stored[name])}
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "jaxrec": _jaxrec_version()}
    manifest = json.dumps({**head, "meta": _json("meta", meta), "arrays": entries}, indent=1).encode()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}. Make it first.")

    temporary = path.parent / f".jaxrec-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "x+b") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(zipfile.ZipInfo(MANIFEST), manifest)  # a ZipInfo of 1980: no clock in the bytes
                for name, array in stored.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        npy.write_array(member, array, version=(1, 0), allow_pickle=False)
                archive.comment = SEAL + b"0" * DIGEST
            seal = _seal(file)
            file.seek(-DIGEST, os.SEEK_END)
            file.write(seal)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, is on the disk
        finally:
            os.close(folder)


class Contents(NamedTuple):
    """What `read` found in a file.

    Attributes:
        arrays: name -> array.
        meta: what JSON holds.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def read(path: str | os.PathLike[str], kind: str) -> Contents:
    """Read what `write` wrote: (arrays, meta). Everything is checked, nothing is unpacked to disk, nothing unpickled.

    Raises:
        ValueError: not a file of jaxrec's; damaged; of another kind; written by a newer jaxrec.
        FileNotFoundError: no such file.
    """
    with open(path, "rb") as file:
        try:
            _check_seal(file)
            with zipfile.ZipFile(file) as archive:
                return Contents(*_read(archive, kind, size=os.fstat(file.fileno()).st_size))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (OSError, MemoryError):  # this machine's trouble, not the file's
            raise
        except Exception as error:  # the seal is right: not damage but another hand, so anything can be wrong
            raise ValueError(f"{path}: not as jaxrec writes it ({type(error).__name__}: {error}). {AGAIN}") from error


def _read(archive: zipfile.ZipFile, kind: str, *, size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    members = archive.infolist()
    plain = all(m.compress_type == zipfile.ZIP_STORED and 0 <= m.header_offset < size for m in members)
    if not plain or sum(m.file_size for m in members) > size:  # so no bomb: all that can be read is the file itself
        raise ValueError(f"expected members inside the file, none compressed and none overlapping. {AGAIN}")
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
            f"expected the members of the manifest, each once; missing: {missing}; extra: {extra}. {AGAIN}"
        )
    arrays = {
        name: _read_array(archive.getinfo(f"{name}.npy"), archive, name, e) for name, e in manifest["arrays"].items()
    }
    return arrays, manifest["meta"]


def _read_array(info: zipfile.ZipInfo, archive: zipfile.ZipFile, name: str, entry: dict[str, Any]) -> np.ndarray:
    """One member, whose dtype, shape and size are compared with the manifest's before any memory is taken for it."""
    dtype = np.dtype(entry["dtype"])
    expected = (tuple(entry["shape"]), False, _npy_dtype(dtype))
    with archive.open(info) as member:
        version = npy.read_magic(member)
        got = npy.read_array_header_1_0(member) if version == (1, 0) else None
        if got != expected or member.tell() + math.prod(expected[0]) * expected[2].itemsize != info.file_size:
            raise ValueError(f"{name}: expected (shape, Fortran order, dtype) {expected}, got {got}, or cut. {AGAIN}")
        member.seek(0)
        array = npy.read_array(member, allow_pickle=False)
    if _sha256(array) != entry["sha256"]:
        raise ValueError(f"{name}: damaged: expected sha256 {entry['sha256']}, got {_sha256(array)}. {AGAIN}")
    return array.view(dtype)


def _check_seal(file: IO[bytes]) -> None:
    file.seek(0)
    head = file.read(30 + len(MANIFEST))
    start = max(0, file.seek(0, os.SEEK_END) - DIGEST - len(SEAL))
    file.seek(start)
    tail = file.read()
    if tail.startswith(SEAL) and tail.removeprefix(SEAL) == _seal(file):
        return
    if head[30:] == MANIFEST.encode() or tail.startswith(SEAL):
        raise ValueError(f"damaged: cut short, or changed since it was written, or zipped anew. {AGAIN}")
    if zipfile.is_zipfile(file):
        raise ValueError("expected a file that jaxrec saved, got another zip. If it is an .npz, np.load reads it.")
    raise ValueError(f"expected a file that jaxrec saved, got one that begins with {head[:8]!r}. Is it the right file?")


def _seal(file: IO[bytes]) -> bytes:
    """The digest of all but the last 64 bytes, in pieces."""
    left = file.seek(0, os.SEEK_END) - DIGEST
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(min(left, 1 << 20)):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data if array.nbytes else b"").hexdigest()


def _npy_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype as .npy knows it: that of bfloat16 (registered with NumPy by ml_dtypes) is uint16."""
    if dtype.isbuiltin == 2:
        return np.dtype(f"u{dtype.itemsize}")
    if dtype.kind not in "biufcmMUS" or dtype.char in "gG":  # long doubles are other bits on other machines
        raise ValueError(f"expected numbers, bools, times or strings, got {dtype}: nothing is pickled. Use dtype=str?")
    return dtype


def _json(where: str, value: Any) -> Any:
    """The same as plain dicts and lists, or an error that says where JSON would change it."""
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_json(f"{where}[{k}]", one) for k, one in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json(f"{where}[{key!r}]", one) for key, one in value.items()}
    got = f"keys {list(value)[:3]}" if isinstance(value, Mapping) else f"{type(value).__name__} {value!r}"
    raise ValueError(f"{where}: expected what JSON holds (strings, finite numbers, lists, dicts by string), got {got}.")


def _jaxrec_version() -> str:
    try:
        return metadata.version("jaxrec")
    except metadata.PackageNotFoundError:  # a folder on the path, not installed
        return "unknown"


def _to_jax(name: str, table: np.ndarray) -> Any:
    out = jnp.asarray(table)
    if out.dtype != table.dtype:
        raise ValueError(
            f"factors.{name}: expected {table.dtype}, as it was saved, got {out.dtype}, all that JAX has now. "
            "Call jax.config.update('jax_enable_x64', True) first."
        )
    return out


def _table_sizes(factors: Factors) -> tuple[int, int]:
    """(n_users, n_items), having checked that every table is of these."""
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


def _labels(name: str, given: Any, size: int, *, kinds: str) -> np.ndarray | None:
    """One label per row, strings as NumPy's own: polars gives them as objects."""
    if given is None:
        return None
    array = np.asarray(given)
    if array.dtype.kind in "OT":
        array = array.astype(str)
    if array.shape != (size,):
        raise ValueError(f"{name}: expected one per row of the table, shape ({size},), got {array.shape}.")
    # NumPy makes strings of a mixture and of None, and cuts a last NUL off: then it is not what was given
    before = list(given) if isinstance(given, list | tuple) else np.asarray(given).tolist()
    if array.dtype.kind not in kinds or array.tolist() != before:
        what = "strings" if kinds == "U" else "integers or strings, not both"
        raise ValueError(f"{name}: expected {what}, got {np.asarray(given).dtype} such as {before[:2]}.")
    if name != "titles" and len(np.unique(array)) != size:
        raise ValueError(f"{name}: expected distinct ids, got {size - len(np.unique(array))} that came before.")
    return array
