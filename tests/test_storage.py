"""One file for what is saved: bit for bit, whole or not at all, and every kind of wrong file is refused by name."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import jaxrec
from jaxrec import atomic, storage
from jaxrec.storage import Model

BITS = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], np.uint32).view(np.float32)  # a NaN's payload, -inf, -0, tiny
ARRAYS = {
    "float32": BITS,
    "float64": np.array([[1 / 3, np.nan]]),
    "float16": np.float16([1.5]),
    "big_endian": np.array([1.5, -2], ">f4"),
    "bfloat16": np.arange(6).astype(jnp.bfloat16).reshape(2, 3),
    "bfloat16_scalar": np.array(1.5, jnp.bfloat16),
    "float8": np.array([0.5, 2], jnp.float8_e5m2),
    "int4": np.array([-8, 7], jnp.int4),
    "scalar": np.array(3.5),
    "int64": np.array([2**62, -1]),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "empty": np.zeros((0, 4), np.float32),
    "empty_bfloat16": np.zeros((3, 0), jnp.bfloat16),
    "strings": np.array(["Amélie", "七人の侍", "", "🎬 x"]),
    "empty_strings": np.zeros(2, "U0"),
    "bytes": np.array([b"ab", b"c"]),
    "time": np.array(["1998-01-01", "NaT"], "M8[s]"),
    "params/dense_0/kernel": np.ones((2, 2), np.float32),
}


def factors(dtype=jnp.float32, *, c=True, mu=None):
    model = jaxrec.models.init(4, 3, 2, key=jax.random.key(0), item_bias=c, dtype=dtype)
    return dataclasses.replace(model, mu=None if mu is None else jnp.asarray(mu, dtype))


def same_bits(a, b):
    return type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def forge(path, change):
    """Changes the header (a dict) and the data (bytes) by change(header, data), and gives the file a valid digest."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:end]), content[end:]
    header, data = change(header, data) or (header, data)
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(with_digest(len(text).to_bytes(8, "little") + text + data))


def with_digest(content):
    content = bytearray(content)
    del content[storage.DIGEST]
    digest = hashlib.sha256(content).hexdigest().encode()
    return bytes(content[: storage.DIGEST.start] + digest + content[storage.DIGEST.start :])


def edit(path, change):
    """Changes the manifest by change(manifest), and gives the file a valid digest."""

    def in_header(header, data):
        manifest = json.loads(header["__metadata__"]["jaxrec"][64:])
        change(manifest)
        header["__metadata__"]["jaxrec"] = "0" * 64 + json.dumps(manifest)

    forge(path, in_header)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.jaxrec"
    storage.write(path, "numbers", {"a": np.arange(3.0), "s": np.array(["x", "yz"])}, {"note": [1, 2.5, None]})
    return path


# The core


def test_arrays_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "all"
    meta = {"n": 2**70, "x": 0.1, "deep": {"list": [1, [True, None]], "text": "é\ud800"}, "tuple": (1, 2)}
    storage.write(path, "any", ARRAYS, meta)
    arrays, read = storage.read(path, "any")
    assert list(arrays) == list(ARRAYS)
    wrong = [name for name, array in ARRAYS.items() if not same_bits(array, arrays[name])]
    assert wrong == []
    assert read == {**meta, "tuple": [1, 2]}
    assert all(array.flags.writeable for array in arrays.values())


def test_views_and_jax_arrays_are_written_by_value(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    given = {"fortran": np.asfortranarray(table), "strided": table[::2, ::-1], "jax": jnp.ones(3, jnp.bfloat16)}
    storage.write(tmp_path / "f", "any", given, {})
    arrays, _ = storage.read(tmp_path / "f", "any")
    assert all(same_bits(np.asarray(given[name]), arrays[name]) for name in given)


def test_no_arrays_are_a_file_too(tmp_path):
    storage.write(tmp_path / "f", "any", {}, {"a": 1})
    assert storage.read(tmp_path / "f", "any") == ({}, {"a": 1})


def test_the_file_is_an_ordinary_safetensors_file(small):
    """Another program reads it without jaxrec: numbers as they are, other arrays as bytes with a dtype."""
    with safetensors.safe_open(small, framework="numpy") as tensors:
        assert set(tensors.keys()) == {"a", "s"}
        np.testing.assert_array_equal(tensors.get_tensor("a"), np.arange(3.0))
        assert tensors.get_tensor("s").tobytes() == np.array(["x", "yz"]).tobytes()
        text = tensors.metadata()["jaxrec"]
    manifest = json.loads(text[64:])
    assert list(manifest) == ["format", "version", "kind", "jaxrec", "meta", "arrays"]
    assert (manifest["format"], manifest["version"], manifest["kind"]) == ("jaxrec", 2, "numbers")
    assert manifest["jaxrec"] == jaxrec.__version__
    assert manifest["arrays"] == {"a": {"dtype": "float64", "shape": [3]}, "s": {"dtype": "<U2", "shape": [2]}}
    content = small.read_bytes()
    where = content.index(text[:64].encode())
    assert text[:64] == hashlib.sha256(content[:where] + content[where + 64 :]).hexdigest()


def test_the_same_content_is_the_same_bytes(small):
    before = small.read_bytes()
    storage.write(small, "numbers", *storage.read(small, "numbers"))
    assert small.read_bytes() == before


def test_every_flipped_byte_is_an_error(small):
    content = bytearray(small.read_bytes())
    for k in range(len(content)):
        for flip in (0x01, 0x20, 0xFF):
            content[k] ^= flip
            small.write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(str(small))):
                storage.read(small, "numbers")
            content[k] ^= flip


def test_a_flipped_byte_under_a_forged_digest_raises_no_other_error_and_pickles_nothing(small):
    """Who can write a digest can write any numbers, but nothing else: a ValueError, or arrays and JSON."""
    content = bytearray(small.read_bytes())
    refused = 0
    for k in range(len(content)):
        for flip in (0x01, 0xFF):
            content[k] ^= flip
            small.write_bytes(with_digest(content))
            try:
                arrays, _ = storage.read(small, "numbers")
            except ValueError:  # and nothing else
                refused += 1
            else:
                assert all(array.dtype.kind in "fU" for array in arrays.values())
            content[k] ^= flip
    assert refused > len(content)


def test_every_truncation_and_anything_behind_is_an_error(small):
    content = small.read_bytes()
    wrong = [content[:k] for k in range(len(content))]
    wrong += [content + b"\0", content + b"\n" * 100, b"\0" + content, content + content]
    for changed in wrong:
        small.write_bytes(changed)
        with pytest.raises(ValueError, match="small.jaxrec"):
            storage.read(small, "numbers")


def test_what_damage_is_called(small):
    content = small.read_bytes()
    for changed in (content[:-1], content[:200], content[:300] + b"?" + content[301:], content + b"?"):
        small.write_bytes(changed)
        with pytest.raises(ValueError, match="small.jaxrec: damaged: truncated, or changed.*Take another copy"):
            storage.read(small, "numbers")


def test_other_files_are_named(tmp_path):
    path = tmp_path / "other"
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(ValueError, match="other: expected a file that jaxrec saved, got one.*PK.*np.load"):
        storage.read(path, "any")
    safetensors.numpy.save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="other: expected a file that jaxrec saved, got one.*another safetensors file"):
        storage.read(path, "any")
    for content in (b"", b"hello", b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"one that begins with {content[:10]!r}"):
            storage.read(path, "any")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        storage.read(tmp_path / "nowhere", "any")
    with pytest.raises(IsADirectoryError):
        storage.read(tmp_path, "any")


def test_another_kind_and_a_newer_version_are_named(small):
    with pytest.raises(ValueError, match="expected the kind 'model', got 'numbers'"):
        storage.read(small, "model")
    edit(small, lambda manifest: manifest.update(version=3, jaxrec="9.9", arrays="in another way"))
    with pytest.raises(ValueError, match=r"written by a newer jaxrec, 9.9 \(format 3; this one, .*reads 2\): upgrade"):
        storage.read(small, "numbers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "expected the format 'jaxrec', got 'other'"),
        (lambda m: m.pop("kind"), "not as jaxrec writes it .KeyError: 'kind'"),
        (lambda m: m.update(version="1"), "not as jaxrec writes it .TypeError"),
        (lambda m: m.update(arrays=[]), "missing: .*; extra: "),
        (lambda m: m["arrays"].pop("a"), r"missing: \[\]; extra: \['a'\]"),
        (lambda m: m["arrays"].update(b=m["arrays"]["a"]), r"missing: \['b'\]; extra: \[\]"),
        (lambda m: m["arrays"]["a"].update(dtype="float32"), "a: expected float32"),
        (lambda m: m["arrays"]["a"].update(dtype="int64"), "a: expected int64"),
        (lambda m: m["arrays"]["a"].update(dtype="<f4"), "a: "),
        (lambda m: m["arrays"]["s"].update(dtype="<U3"), "s: "),
        (lambda m: m["arrays"]["s"].update(dtype="bfloat16"), "s: expected bfloat16"),
        (lambda m: m["arrays"]["a"].update(dtype="O"), "nothing is pickled"),
        (lambda m: m["arrays"]["a"].update(dtype="nonsense"), "TypeError.*nonsense"),
        (lambda m: m["arrays"]["a"].update(dtype="i4,("), ""),
        (lambda m: m["arrays"]["a"].update(dtype={"names": ["a"], "formats": ["f4"]}), ""),
        (lambda m: m["arrays"]["s"].update(dtype="|O"), "s: .*nothing is pickled"),
        (lambda m: m["arrays"]["a"].update(shape=[3, 1]), "a: expected"),
        (lambda m: m["arrays"]["a"].update(shape=[2**40]), "a: expected"),
        (lambda m: m["arrays"]["s"].update(shape=[2**40]), "s: "),
        (lambda m: m["arrays"]["a"].update(shape=3), "TypeError"),
        (lambda m: m["arrays"]["a"].update(more=3), "TypeError"),
    ],
)
def test_a_forged_manifest_is_refused(small, change, message):
    edit(small, change)
    with pytest.raises(ValueError, match=f"small.jaxrec: .*{message}"):
        storage.read(small, "numbers")


def tensor(header, **changes):
    header["a"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, data: header.pop("__metadata__"), "begins with"),
        (lambda header, data: header["__metadata__"].update(jaxrec="0" * 64 + "{"), "Expecting property name"),
        (lambda header, data: header["__metadata__"].update(jaxrec="0" * 64 + "[1]"), "TypeError"),
        (lambda header, data: header["__metadata__"].update(jaxrec="0" * 64 + "[" * 10**6), "RecursionError"),
        (lambda header, data: header["__metadata__"].update(jaxrec="0" * 64), "Expecting value"),
        (lambda header, data: (b'{"__metadata__":{"jaxrec":"' + b"0" * 64, data), "SafetensorError"),
        (lambda header, data: header.update({"../../evil": header["a"]}), "SafetensorError"),
        (lambda header, data: (header, data + b"0"), "SafetensorError"),
        (lambda header, data: (header, data[:-1]), "SafetensorError"),
        (lambda header, data: tensor(header, dtype="F32"), "SafetensorError"),
        (lambda header, data: tensor(header, dtype="O"), "SafetensorError"),
        (lambda header, data: tensor(header, shape=[4]), "SafetensorError"),
        (lambda header, data: tensor(header, data_offsets=[8, 32]), "SafetensorError"),
        (lambda header, data: tensor(header, data_offsets=[24, 0]), "SafetensorError"),
    ],
)
def test_a_forged_header_is_refused(small, change, message):
    def changed(header, data):
        got = change(header, data)
        return got if isinstance(got, tuple) else None

    forge(small, changed)
    with pytest.raises(ValueError, match=f"small.jaxrec: .*{message}"):
        storage.read(small, "numbers")


def test_a_declared_petabyte_takes_no_memory(small):
    """The header and the manifest agree on 2**47 numbers, and the file is short."""
    edit(small, lambda manifest: manifest["arrays"]["a"].update(shape=[2**47]))
    forge(small, lambda header, data: tensor(header, shape=[2**47], data_offsets=[0, 2**50]))
    with pytest.raises(ValueError, match="small.jaxrec: .*SafetensorError"):
        storage.read(small, "numbers")


def test_files_of_0_1_0_say_what_to_do(tmp_path):
    """Format 1 was a zip with manifest.json first, and its arrays can be read without jaxrec."""
    path = tmp_path / "old.jaxrec"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("manifest.json"), '{"format": "jaxrec", "version": 1, "kind": "model"}')
        with archive.open("factors.w.npy", "w") as member:
            np.lib.format.write_array(member, np.ones((2, 1), np.float32))
        archive.comment = b"jaxrec sha256 " + b"0" * 64
    for read in (storage.load, jaxrec.serving.load):
        with pytest.raises(ValueError, match=r"old.jaxrec: written by jaxrec 0.1.0.*Save .*again.*np.load\(path\)"):
            read(path)
    with np.load(path) as arrays:  # the advice works
        np.testing.assert_array_equal(arrays["factors.w"], np.ones((2, 1)))


def test_trouble_of_the_disk_is_not_called_damage(small, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "_sha256", broken)
    with pytest.raises(OSError, match="Input/output error"):
        storage.read(small, "numbers")


@pytest.mark.parametrize(
    ("arrays", "meta", "message"),
    [
        ({"a": np.array([1, None])}, {}, "arrays.'a'.: expected numbers, bools, times or strings, got object"),
        ({"a": np.longdouble([1])}, {}, "expected numbers.*got .*: nothing is pickled"),
        ({"a": np.zeros(2, [("x", "f4")])}, {}, "nothing is pickled"),
        ({"a": np.array(["x"], np.dtypes.StringDType())}, {}, "nothing is pickled"),
        ({"a": jax.random.key(0)}, {}, "arrays.'a'.: .*key_data"),
        ({"../a": np.ones(1)}, {}, "expected names of letters"),
        ({"/a": np.ones(1)}, {}, "expected names of letters"),
        ({"a/..": np.ones(1)}, {}, "expected names of letters"),
        ({"": np.ones(1)}, {}, "expected names of letters"),
        ({}, {"x": float("nan")}, "meta.'x'.: expected what JSON can hold.*float nan"),
        ({}, {"x": {"y": [1, np.float32(2)]}}, r"meta.'x'..'y'..1.: .*got float32"),
        ({}, {"x": {1: 2}}, r"meta.'x'.: .*keys .1."),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_written(tmp_path, arrays, meta, message):
    with pytest.raises(ValueError, match=message):
        storage.write(tmp_path / "f", "any", arrays, meta)
    assert list(tmp_path.iterdir()) == []


# Whole or not at all


def test_a_missing_folder_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*typo. Create it first"):
        storage.write(tmp_path / "typo" / "f", "any", {}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(small, monkeypatch, what):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = small.read_bytes()
    monkeypatch.setattr(os, what, full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(small, "numbers", {"a": np.zeros(3)}, {})
    assert [path.name for path in small.parent.iterdir()] == ["small.jaxrec"]
    assert small.read_bytes() == before


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(small, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    before = small.read_bytes()
    monkeypatch.setattr(safetensors.numpy, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.write(small, "numbers", {"a": np.zeros(3)}, {})
    assert [path.name for path in small.parent.iterdir()] == ["small.jaxrec"]
    assert small.read_bytes() == before


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_killed_at_any_time_a_save_leaves_the_old_file_or_the_new_one(small, how):
    """Killed while members are written, before the file is on the disk, before and after it has its name."""
    code = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        import safetensors.numpy
        from jaxrec import storage
        path, when, how = sys.argv[1:]
        kill = lambda *_, **__: os.kill(os.getpid(), getattr(signal, how))
        fsync, calls = os.fsync, []
        if when == "writing":
            safetensors.numpy.save_file = lambda _, path, **__: (path.write_bytes(b"half"), kill())
        elif when == "before":
            os.fsync = kill
        elif when == "naming":
            os.replace = kill
        else:
            os.fsync = lambda number: calls.append(fsync(number)) if len(calls) == 0 else kill()
        storage.write(path, "numbers", {"a": np.full(100_000, 7.0), "b": np.ones(9)}, {})
    """)
    content = small.read_bytes()
    for when in ("writing", "before", "naming", "after"):
        small.write_bytes(content)
        root = Path(jaxrec.__file__).parents[1]
        run = subprocess.run([sys.executable, "-c", code, small, when, how], cwd=root, capture_output=True, check=False)
        assert run.returncode == -getattr(signal, how), run.stderr.decode()
        arrays, _ = storage.read(small, "numbers")
        assert len(arrays["a"]) == (100_000 if when == "after" else 3), when
        left = [path for path in small.parent.iterdir() if path != small]
        assert [path.name[:8] for path in left] == ([] if when == "after" else [".jaxrec-"]), when
        for path in left:
            shutil.rmtree(path)


def test_a_new_files_mode_is_the_umasks(small):
    before = os.umask(0o022)
    try:
        storage.write(small, "numbers", {}, {})
        assert small.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_replaced_file_keeps_its_mode(small):
    for mode in (0o600, 0o664, 0o444):
        small.chmod(mode)
        storage.write(small, "numbers", {}, {"mode": mode})
        assert small.stat().st_mode & 0o777 == mode
        assert storage.read(small, "numbers").meta == {"mode": mode}


def test_links_are_followed(small):
    link = small.parent / "latest"
    link.symlink_to(small.name)
    storage.write(link, "numbers", {}, {"by": "the link"})
    assert link.is_symlink()
    assert storage.read(small, "numbers").meta == {"by": "the link"}


def test_what_killed_processes_left_is_removed_after_a_day_unless_it_is_locked(tmp_path):
    """Files (of 0.1.0) and folders; a process that has been writing for two days holds its lock."""
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    names = [
        ".jaxrec-old.tmp",
        ".jaxrec-folder.tmp",
        ".jaxrec-locked.tmp",
        ".jaxrec-new.tmp",
        ".other-old.tmp",
        "mine.tmp",
    ]
    for name in names:
        (tmp_path / name).mkdir() if name == ".jaxrec-folder.tmp" else (tmp_path / name).touch()
    (tmp_path / ".jaxrec-folder.tmp" / "half").write_text("half")
    for name in set(names) - {".jaxrec-new.tmp"}:
        os.utime(tmp_path / name, (two_days_ago, two_days_ago))
    with open(tmp_path / ".jaxrec-locked.tmp") as other_process:
        fcntl.flock(other_process, fcntl.LOCK_EX)
        storage.write(tmp_path / "f", "numbers", {}, {})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".jaxrec-locked.tmp", ".jaxrec-new.tmp", ".other-old.tmp", "mine.tmp", "f"}
    storage.write(tmp_path / "f", "numbers", {}, {})
    assert {path.name for path in tmp_path.iterdir()} == left - {".jaxrec-locked.tmp"}


def test_a_running_save_holds_a_lock(tmp_path):
    with atomic.replacing(tmp_path / "f") as temporary:
        os.utime(temporary.parent, (0, 0))  # as if it had begun in 1970
        storage.write(tmp_path / "g", "numbers", {}, {})
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "g"]


def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(small):
    """The limit on the size of a file stands for the disk's."""
    code = textwrap.dedent("""
        import resource, signal, sys
        import numpy as np
        from jaxrec import storage
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            storage.write(sys.argv[1], "numbers", {"a": np.zeros(100_000)}, {})
        except OSError as error:
            print(error)
    """)
    before = small.read_bytes()
    root = Path(jaxrec.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code, small], cwd=root, capture_output=True, check=True, text=True)
    assert "small.jaxrec: " in run.stdout
    assert "File too large" in run.stdout
    assert [path.name for path in small.parent.iterdir()] == ["small.jaxrec"]
    assert small.read_bytes() == before


def test_of_two_writers_the_file_is_one_of_the_two(tmp_path):
    """Ten times each, at once; every read in between gets one of the two, whole."""
    code = textwrap.dedent("""
        import sys
        import numpy as np
        from jaxrec import storage
        for n in range(10):
            storage.write(sys.argv[1], "numbers", {"a": np.full(100_000, float(sys.argv[2]))}, {"n": n})
    """)
    path, root = tmp_path / "f", Path(jaxrec.__file__).parents[1]
    storage.write(path, "numbers", {"a": np.zeros(100_000)}, {})
    writers = [subprocess.Popen([sys.executable, "-c", code, path, value], cwd=root) for value in "12"]
    while any(writer.poll() is None for writer in writers):
        assert len(set(storage.read(path, "numbers").arrays["a"])) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert storage.read(path, "numbers").meta == {"n": 9}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


# Models


@dataclass(frozen=True, eq=False)
class Means:
    """As data.normalize.Means."""

    overall: float
    user: np.ndarray | None = None
    item: np.ndarray | None = None


def equal_factors(a, b):
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return all(
        y is None if x is None else isinstance(y, jax.Array) and same_bits(np.asarray(x), np.asarray(y))
        for x, y in pairs
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("c", "mu"), [(True, None), (False, 3.5), (True, [1, 2, 3])])
def test_a_model_comes_back_whole(tmp_path, dtype, c, mu):
    means = Means(3.5283, user=np.float32([0, 0.5, -1, 0]))
    model = Model(
        factors(dtype, c=c, mu=mu),
        user_ids=["ann", "bob", "Zoë", "李"],
        item_ids=np.array([10, 2**40, 3]),
        titles=np.array(["Amélie", "M", "七人の侍"], object),  # as polars gives them
        scale=(1, 5),
        normalization=dataclasses.asdict(means),
        notes={"data": "ml-100k", "errors": {"rmse": 0.93}},
    )
    storage.save(tmp_path / "m", model)
    loaded = storage.load(tmp_path / "m")
    assert equal_factors(model.factors, loaded.factors)
    assert all(same_bits(getattr(model, name), getattr(loaded, name)) for name in ("user_ids", "item_ids", "titles"))
    assert loaded.user_ids.tolist() == ["ann", "bob", "Zoë", "李"]
    assert loaded.titles.dtype.kind == "U"
    assert loaded.scale == (1.0, 5.0)
    assert loaded.notes == {"data": "ml-100k", "errors": {"rmse": 0.93}}
    back = Means(**loaded.normalization)
    assert back.overall == means.overall
    assert type(back.overall) is float
    assert same_bits(means.user, back.user)
    assert back.item is None
    assert repr(loaded) == f"Model(4 users, 3 items, rank 2, {np.dtype(dtype)})"


def test_a_bare_model_comes_back_bare(tmp_path):
    storage.save(tmp_path / "m", Model(factors()))
    loaded = storage.load(tmp_path / "m")
    assert equal_factors(factors(), loaded.factors)
    others = [getattr(loaded, f.name) for f in dataclasses.fields(loaded)][1:]
    assert others == [None, None, None, None, None, {}]


def test_the_repositorys_own_means_come_back(tmp_path):
    data = jaxrec.data.synthetic.low_rank(4, 3, 6, rng=0)
    normalize = jaxrec.data.normalize
    means = normalize.means_by_item_then_user(data.ratings)
    model = Model(normalize.add_means(factors(), means), normalization=dataclasses.asdict(means))
    storage.save(tmp_path / "m", model)
    loaded = storage.load(tmp_path / "m")
    back = normalize.Means(**loaded.normalization)
    np.testing.assert_array_equal(
        normalize.subtract(data.ratings, back).value, normalize.subtract(data.ratings, means).value
    )
    np.testing.assert_array_equal(jaxrec.models.predict_all(loaded.factors), jaxrec.models.predict_all(model.factors))


def test_float64_needs_x64(tmp_path):
    with jax.enable_x64(True):
        model = Model(factors(jnp.float64))
        storage.save(tmp_path / "m", model)
        assert equal_factors(model.factors, storage.load(tmp_path / "m").factors)
    with pytest.raises(
        ValueError, match="m: factors.w: expected float64, as it was saved, got float32.*jax_enable_x64"
    ):
        storage.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["w", "b", "x", "c", "mu"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_model_that_diverged_is_not_saved(tmp_path, name, bad, dtype):
    good = factors(dtype, mu=[1, 2, 3])
    table = getattr(good, name)
    broken = dataclasses.replace(good, **{name: table.at[(0,) * table.ndim].set(bad)})
    with pytest.raises(ValueError, match=f"factors.{name}: expected finite numbers.*in 1 of .*diverged is not saved"):
        storage.save(tmp_path / "m", Model(broken))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_floats_are_not_factors(tmp_path):
    with pytest.raises(ValueError, match="factors.mu: expected floating-point numbers, got int"):
        storage.save(tmp_path / "m", Model(dataclasses.replace(factors(), mu=jnp.array(3))))
    with pytest.raises(ValueError, match="normalization.item: expected finite"):
        storage.save(tmp_path / "m", Model(factors(), normalization={"item": np.array([np.nan])}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_ids": [1, 2, 3]}, r"user_ids: expected one per row of the table, shape \(4,\), got \(3,\)"),
        ({"item_ids": [1, 2, 3, 4]}, "item_ids: expected one per row"),
        ({"titles": ["a", "b"]}, "titles: expected one per row"),
        ({"titles": [["a"], ["b"], ["c"]]}, "titles: expected one per row"),
        ({"item_ids": [1, "b", "c"]}, "item_ids: expected integers or strings, not both"),
        ({"item_ids": np.array(["a", "b", None], object)}, "item_ids: expected integers or strings"),
        ({"item_ids": np.array([1, 2, 3], object)}, "item_ids: expected integers or strings.*object"),
        ({"item_ids": [1.0, 2.0, 3.0]}, "item_ids: expected integers or strings.*float64"),
        ({"item_ids": [5, 6, 5]}, "item_ids: expected distinct ids, got 1 repeated"),
        ({"titles": ["a", "b", "c\0"]}, "titles: expected strings"),
        ({"titles": ["a", None, "c"]}, "titles: expected strings"),
        ({"titles": [1, 2, 3]}, "titles: expected strings"),
        ({"scale": (5, 1)}, "scale: expected the lowest and the highest"),
        ({"scale": (1, np.inf)}, "scale: expected the lowest and the highest"),
    ],
)
def test_what_does_not_belong_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Model(factors(), **fields)


def test_titles_may_repeat():
    assert Model(factors(), titles=["Hamlet", "Hamlet", "M"]).titles.tolist() == ["Hamlet", "Hamlet", "M"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("w", (4,)), ("x", (3, 5)), ("x", (6,)), ("b", (4, 1)), ("c", (4,)), ("mu", (4,)), ("mu", (3, 1))],
)
def test_factors_of_shapes_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(ValueError, match="factors"):
        Model(dataclasses.replace(factors(), **{name: jnp.zeros(shape)}))
    with pytest.raises(ValueError, match="factors.b: expected"):
        Model(dataclasses.replace(factors(), b=None))


@pytest.mark.parametrize(
    ("arrays", "meta", "message"),
    [
        ({"x": None}, {}, "'x'"),
        ({"z": np.ones(3)}, {}, "'z'"),
        ({"b": np.ones(7, np.float32)}, {}, r"factors.b: expected shape \(2,\)"),
        ({}, {"mood": "good"}, "'mood'"),
    ],
)
def test_a_file_that_says_model_and_is_none_is_refused(tmp_path, arrays, meta, message):
    given = {"w": np.ones((2, 1)), "b": np.ones(2), "x": np.ones((3, 1)), **arrays}
    given = {f"factors.{name}": np.float32(array) for name, array in given.items() if array is not None}
    storage.write(tmp_path / "m", "model", given, meta)
    with pytest.raises(ValueError, match=f"m: .*{message}"):
        storage.load(tmp_path / "m")


def test_a_loaded_model_recommends_what_the_saved_one_did(tmp_path):
    data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
    ratings = data.ratings
    model = Model(
        jaxrec.models.init(30, 20, 4, key=jax.random.key(1), scale=1.0),
        user_ids=[f"u{j}" for j in range(30)],
        item_ids=ratings.item_ids,
        titles=data.titles,
    )
    storage.save(tmp_path / "m", model)
    loaded = storage.load(tmp_path / "m")
    rows = ratings.user == 7
    seen = jaxrec.Ratings.from_columns(
        loaded.user_ids[ratings.user[rows]],
        loaded.item_ids[ratings.item[rows]],
        user_ids=loaded.user_ids,
        item_ids=loaded.item_ids,
    )
    got = jaxrec.recommend(loaded.factors, seen, "u7", k=5, titles=loaded.titles)
    expected = jaxrec.recommend(model.factors, ratings, ratings.user_ids[7], k=5, titles=data.titles)
    assert [column.tolist() for column in got[1:]] == [column.tolist() for column in expected[1:]]
