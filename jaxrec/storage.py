"""Saves a trained model with its ids, titles and scale, or any named arrays, to one file.

The file is a safetensors file (https://huggingface.co/docs/safetensors), which other programs can read without jaxrec.
Its metadata has one entry, `jaxrec`: the sha256 of every other byte of the file, then the manifest, which is JSON::

    {"format", "version", "kind", "jaxrec", "meta", "arrays": {name: {"dtype", "shape"}}}

Strings, times and other types that safetensors does not have are stored as bytes, and the manifest has their dtype. A
changed byte, a truncated file or trailing data raises an error and never gives a wrong number, nothing is unpickled,
writing is atomic, and the same content gives the same bytes. `save` and `load` are for models; `write` and `read`, on
which they are built, are for any other kind of content.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrec._version import __version__
from jaxrec.atomic import replacing
from jaxrec.types import Factors

__all__ = ["Contents", "Model", "load", "read", "save", "write"]

FORMAT = "jaxrec"
VERSION = 2  # 1 was the zip of jaxrec 0.1.0. Increment it for a new name among a model's arrays, which old readers lack
# What follows the 8 bytes of the header's length. Keep it, and the digest after it, in every version: errors need them.
PREFIX = b'{"__metadata__":{"jaxrec":"'
DIGEST = slice(8 + len(PREFIX), 8 + len(PREFIX) + 64)  # the hexadecimal digits of a sha256
TYPES = ["bool", "bfloat16", "complex64", *(f"float{n}" for n in (16, 32, 64))]
TYPES += [f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)]
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
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    entries, tensors = {}, {}
    for name, value in arrays.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"arrays: expected names of letters, digits, _ . - with / between parts, got {name!r}.")
        try:
            array = np.asarray(value, order="C")
            _check_storable(array.dtype)
        except (TypeError, ValueError) as error:  # a TypeError: JAX's random keys, whose message says what to do
            raise ValueError(f"arrays[{name!r}]: {error}") from error
        entries[name] = {"dtype": _name(array.dtype), "shape": list(array.shape)}
        tensors[name] = array if _name(array.dtype) in TYPES else array.reshape(-1).view(np.uint8)
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "jaxrec": __version__}
    manifest = json.dumps({**head, "meta": _json("meta", meta), "arrays": entries})
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"jaxrec": "0" * 64 + manifest})
        except SafetensorError as error:  # the arrays were checked, so it is the disk
            raise OSError(f"{path}: {error}") from error
        with open(temporary, "r+b") as file:
            digest = _sha256(file)
            file.seek(DIGEST.start)
            file.write(digest)


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
    from safetensors import safe_open

    try:
        with open(path, "rb") as file:
            _check_digest(file)
        with safe_open(path, framework="numpy") as tensors:  # checks that the arrays fill the file and do not overlap
            manifest = json.loads(tensors.metadata()["jaxrec"][64:])
            _check_manifest(manifest, kind, set(tensors.keys()))
            decoded = {name: _decoded(name, tensors.get_tensor(name), **e) for name, e in manifest["arrays"].items()}
        return Contents(decoded, manifest["meta"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, MemoryError):  # a problem of the machine, not of the file
        raise
    except Exception as error:  # the digest is valid, so another program wrote it: anything can be wrong
        raise ValueError(f"{path}: not as jaxrec writes it ({type(error).__name__}: {error}). {ADVICE}") from error


def _check_digest(file: BinaryIO) -> None:
    """Raises a ValueError unless the file begins as `write` begins it and has the digest of all its other bytes."""
    head = file.read(DIGEST.stop)
    if head[8 : DIGEST.start] == PREFIX:
        if head[DIGEST] == _sha256(file):
            return
        raise ValueError(f"damaged: truncated, or changed since it was written. {ADVICE}")
    if head.startswith(b"PK") and b"manifest.json" in head:
        raise ValueError(
            "written by jaxrec 0.1.0, whose files this version does not read. Save the model again; or take its arrays "
            "with np.load(path), such as np.load(path)['factors.w'], and save a Model of them."
        )
    hint = "Is it the right file?"
    if head.startswith(b"PK"):
        hint = "If it is an .npz, read it with np.load."
    elif head[8:10] == b'{"':
        hint = "If it is another safetensors file, read it with the package safetensors."
    raise ValueError(f"expected a file that jaxrec saved, got one that begins with {head[:10]!r}. {hint}")


def _sha256(file: BinaryIO) -> bytes:
    """The digest of a file without the bytes that are for the digest, in chunks of a mebibyte."""
    file.seek(0)
    digest = hashlib.sha256(file.read(DIGEST.start))
    file.seek(DIGEST.stop)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest().encode()


def _check_manifest(manifest: dict[str, Any], kind: str, names: set[str]) -> None:
    if manifest["format"] != FORMAT:
        raise ValueError(f"expected the format {FORMAT!r}, got {manifest['format']!r}.")
    if manifest["version"] > VERSION:
        raise ValueError(
            f"written by a newer jaxrec, {manifest['jaxrec']} (format {manifest['version']}; this one, "
            f"{__version__}, reads {VERSION}): upgrade jaxrec."
        )
    if manifest["kind"] != kind:
        raise ValueError(f"expected the kind {kind!r}, got {manifest['kind']!r}. Is it the right file?")
    if names != set(manifest["arrays"]):
        missing, extra = sorted(set(manifest["arrays"]) - names), sorted(names - set(manifest["arrays"]))
        raise ValueError(f"expected the arrays of the manifest; missing: {missing}; extra: {extra}. {ADVICE}")


def _decoded(name: str, tensor: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    """Returns a stored array with the dtype and shape that it had in `write`."""
    try:
        _check_storable(expected := np.dtype(dtype))
        array = tensor if dtype in TYPES else tensor.view(expected).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}. {ADVICE}") from error
    if (array.dtype, array.shape) != (expected, tuple(shape)):
        raise ValueError(f"{name}: expected {dtype}{shape}, got {array.dtype}{list(array.shape)}. {ADVICE}")
    return array


def _name(dtype: np.dtype[Any]) -> str:
    """'float32' for the types of safetensors, 'int4' for others of JAX, '>f4' or '<U7' for others of NumPy."""
    return dtype.name if dtype.isbuiltin == 2 or (dtype.isnative and dtype.name in TYPES) else dtype.str


def _check_storable(dtype: np.dtype[Any]) -> None:
    if dtype.isbuiltin != 2 and (dtype.kind not in "biufcmMUS" or dtype.char in "gG"):
        raise ValueError(f"expected numbers, bools, times or strings, got {dtype}: nothing is pickled. Use dtype=str?")


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
