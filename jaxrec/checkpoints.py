"""Checkpoints: the state of a run in a folder, from which the same call continues after its process was killed.

`training.fit`, `training.grid`, `solvers.als`, `solvers.implicit_als` and `bayes.gibbs` take `checkpoint=`, a folder or
a `Checkpoint`. On a CPU the continued run is bit for bit the uninterrupted one. The folder holds one folder per step::

    step-0000000012/arrays/         the arrays of the state, written by orbax
    step-0000000012/manifest.json   its sha256; then JSON: format, versions, settings, step, meta, the files' sha256

A step's folder is renamed to its name when it is complete. Every digest is checked before anything is read (orbax keeps
none): a step with a changed byte or a missing file is reported, and the step before it is used. Nothing is unpickled.

>>> import tempfile, numpy as np
>>> with tempfile.TemporaryDirectory() as folder:
...     for _ in range(2):  # the second time as after a kill
...         with checkpointed(folder, settings={"run": "count"}, like=np.zeros(2)) as run:
...             step, state = (run.saved.step, run.saved.state) if run.saved else (0, np.zeros(2))
...             run.save(step + 1, state + 1, {"note": "any JSON"})
...             print(step + 1, state + 1)
1 [1. 1.]
2 [2. 2.]
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec._version import __version__
from jaxrec.atomic import flush, lock, temporary_folder

__all__ = ["Checkpoint", "Run", "Saved", "checkpointed", "digest", "shapes"]

logger = logging.getLogger("jaxrec")

FORMAT = 1
# Without `every_steps` and `every_seconds`, a run saves when this many times the seconds that the last save took have
# passed since: saving then takes at most a twentieth of the run's time, whatever the size of the state.
SHARE = 20


@dataclass(frozen=True)
class Checkpoint:
    """Where a run saves its state, and how often. The last state of a run is always saved.

    Attributes:
        folder: is created if it does not exist. One run has it for itself.
        every_steps: save every so many steps (of `fit`: optimizer steps; of solvers and the sampler: sweeps; of `grid`:
            members), or None.
        every_seconds: save when so many seconds have passed since the last time, or None. With neither, saving takes at
            most a twentieth of the run's time.
        keep: how many of the latest steps are kept.

    Raises:
        ValueError: every_steps or keep below 1; every_seconds is not a number >= 0; both intervals are passed.
    """

    folder: str | os.PathLike[str]
    every_steps: int | None = None
    every_seconds: float | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name, number in (("every_steps", self.every_steps), ("keep", self.keep)):
            if number is not None or name == "keep":
                check.whole_number(name, number, least=1)
        if self.every_seconds is not None:
            check.positive("every_seconds", self.every_seconds, zero=True)
            if self.every_steps is not None:
                raise ValueError("expected every_steps= or every_seconds=, got both.")


class Saved(NamedTuple):
    """A state that was found in the folder.

    Attributes:
        step: the number of completed steps.
        state: the arrays, in the structure of `like`.
        meta: the other values.
    """

    step: int
    state: Any
    meta: dict[str, Any]


class Run:
    """A run that saves its state; `checkpointed` makes it. Without a folder, nothing is due and nothing is saved.

    Attributes:
        saved: the latest whole state of the folder, or None.
    """

    def __init__(self, checkpoint: Checkpoint | None, settings: Mapping[str, str], saved: Saved | None) -> None:
        """Starts the clock."""
        self.saved = saved
        self._checkpoint, self._settings = checkpoint, settings
        self._step, self._time, self._cost = saved.step if saved else 0, time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        if (checkpoint := self._checkpoint) is None or step <= self._step:
            return False
        if checkpoint.every_steps is not None:
            return step - self._step >= checkpoint.every_steps
        seconds = SHARE * self._cost if checkpoint.every_seconds is None else checkpoint.every_seconds
        return time.monotonic() - self._time >= seconds

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Saves the state after `step` steps, with values that JSON can hold, and removes all but the latest steps."""
        if self._checkpoint is None:
            return
        import orbax.checkpoint  # noqa: F401 (half a second, which is no cost of this save)

        began, folder = time.monotonic(), Path(self._checkpoint.folder)
        _write(folder, step, state, {"settings": dict(self._settings), "step": step, "meta": dict(meta)})
        for old in _steps(folder)[self._checkpoint.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        self._step, self._time = step, time.monotonic()
        self._cost = self._time - began


@contextmanager
def checkpointed(
    checkpoint: Checkpoint | str | os.PathLike[str] | None, *, settings: Mapping[str, Any], like: Any
) -> Iterator[Run]:
    """Opens a run's folder: reads the latest whole step of it, and keeps other processes out until the block ends.

    Args:
        checkpoint: the folder, or a Checkpoint, or None for a run that saves nothing.
        settings: name -> value (a number, a string, None, or a pytree of arrays): what makes this run different from
            others. A folder with other settings is refused.
        like: a pytree of arrays with the structure, shapes, types and devices of the state.

    Raises:
        ValueError: the folder holds another run, by its settings or versions, and the message names the difference; no
            step in it is whole; another process uses it.
        OSError: the folder cannot be read or written.
    """
    if checkpoint is None:
        yield Run(None, {}, None)
        return
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    described = {"the version of jaxrec": __version__, "the version of jax": jax.__version__}
    described |= {name: _described(value) for name, value in settings.items()}
    folder = Path(checkpoint.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) as is_free:
        if not is_free:
            raise ValueError(f"checkpoint: {folder} is in use by another run. Pass another folder, or wait for it.")
        yield Run(checkpoint, described, _latest(folder, described, like))


def digest(leaf: Any) -> str:
    """The first 16 digits of the sha256 of an array's bytes; '' if other processes hold a part of it."""
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:
            return ""
        leaf = _raw(leaf)
    data: Any = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)  # a view, not a copy of a large array
    return hashlib.sha256(data).hexdigest()[:16]


def shapes(tree: Any) -> list[tuple[str, str]]:
    """(path, type and shape) of each array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        (jax.tree_util.keystr(path) or "the array", f"{jnp.result_type(x)}{list(np.shape(x))}") for path, x in leaves
    ]


def _described(value: Any) -> str:
    """A short text by which two values can be compared and shown."""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1:
        return f"{jnp.result_type(leaves[0])}{list(np.shape(leaves[0]))} {digest(leaves[0])}"
    structure = re.sub(r"0x[0-9a-f]+", "", str(jax.tree.structure(value)))  # without the addresses of functions
    lines = [structure, *(f"{kind} {digest(leaf)}" for (_, kind), leaf in zip(shapes(value), leaves, strict=True))]
    return f"{len(leaves)} arrays {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


def _steps(folder: Path) -> list[Path]:
    """The folders of the steps, latest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _raw(leaf: Any) -> Any:
    """A random key as its numbers; other arrays unchanged."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _arrays(state: Any) -> dict[str, Any]:
    """The arrays of a state by number, without empty ones, which orbax refuses. The structure comes from `like`."""
    return {str(n): _raw(leaf) for n, leaf in enumerate(jax.tree.leaves(state)) if np.size(leaf)}


def _write(folder: Path, step: int, state: Any, content: dict[str, Any]) -> None:
    """Writes the folder of one step: the arrays, then the manifest, then its name."""
    import orbax.checkpoint as ocp

    with temporary_folder(folder) as temporary:
        complete = temporary / "step"
        with ocp.StandardCheckpointer() as checkpointer:
            complete.mkdir()
            checkpointer.save((complete / "arrays").resolve(), _arrays(state))
        files = {str(path.relative_to(complete)): _sha256(path) for path in complete.rglob("*") if path.is_file()}
        head = {"format": FORMAT, "shapes": shapes(state), "files": files}
        text = json.dumps(head | content)
        manifest = complete / "manifest.json"
        manifest.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        flush(manifest)
        flush(complete)
        name = folder / f"step-{step:010d}"
        shutil.rmtree(name, ignore_errors=True)  # a damaged step, made again
        os.replace(complete, name)
    flush(folder)


def _latest(folder: Path, settings: Mapping[str, str], like: Any) -> Saved | None:
    """Reads the latest whole step, after checking that it is of this run; None if there is no step."""
    damaged = []
    for path in _steps(folder):
        try:
            content = _manifest(path)
        except (ValueError, KeyError, OSError) as error:
            damaged.append(f"{path.name}: {error}")
            logger.warning("checkpoint: %s of %s is damaged (%s); trying the step before.", path.name, folder, error)
            continue
        if content["format"] != FORMAT:
            raise ValueError(
                f"checkpoint: {folder} was written in format {content['format']} by jaxrec "
                f"{content['settings'].get('the version of jaxrec')}, and {__version__} reads format {FORMAT}. Pass "
                "another folder, or install that version."
            )
        for name in settings | content["settings"]:
            was, is_ = content["settings"].get(name, "not there"), settings.get(name, "not there")
            if was != is_:
                raise ValueError(
                    f"checkpoint: {folder} was written by another run: {name} is {is_}, was {was}. Pass the same "
                    "arguments, or another folder."
                )
        if content["shapes"] != [list(pair) for pair in shapes(like)]:
            raise ValueError(
                f"checkpoint: {folder} was written by another run: its state has the arrays {content['shapes']}, "
                f"this run's {shapes(like)}. Pass the same arguments, or another folder."
            )
        logger.info("checkpoint: continuing from step %d of %s", content["step"], folder)
        return Saved(content["step"], _read(path / "arrays", like), content["meta"])
    if damaged:
        raise ValueError(
            f"checkpoint: no step of {folder} is whole ({'; '.join(damaged)}). Delete the folder to start again."
        )
    return None


def _manifest(path: Path) -> dict[str, Any]:
    """Reads a step's manifest, after checking every digest."""
    expected, _, text = (path / "manifest.json").read_text().partition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != expected:
        raise ValueError("manifest.json was changed since it was written")
    content: dict[str, Any] = json.loads(text)
    for name, sha256 in content["files"].items():
        if _sha256(path / name) != sha256:
            raise ValueError(f"{name} was changed since it was written")
    return content


def _read(path: Path, like: Any) -> Any:
    """Reads the arrays into the structure of `like`, onto its devices."""
    import orbax.checkpoint as ocp

    leaves, tree = jax.tree.flatten(like)
    # One device's arrays go through NumPy, because orbax would commit them to it, and other arguments may be elsewhere.
    target = {name: leaf if _is_spread(leaf) else np.asarray(leaf) for name, leaf in _arrays(like).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(path.resolve(), jax.tree.map(ocp.utils.to_shape_dtype_struct, target))
    return jax.tree.unflatten(tree, [_placed(arrays.get(str(n), leaf), leaf) for n, leaf in enumerate(leaves)])


def _is_spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def _placed(array: Any, leaf: Any) -> Any:
    """The array as a random key where `leaf` is one, and on its device if it was put there."""
    if array is leaf or _is_spread(leaf):
        return array
    array = np.asarray(array)
    if not isinstance(leaf, jax.Array):
        return array
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jax.device_put(array, leaf.sharding) if leaf.committed else jnp.asarray(array)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
