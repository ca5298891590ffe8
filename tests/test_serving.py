"""A request function saved and loaded: identical in a fresh process, any batch, new rows, and what is refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import serving, storage
from jaxrec.models.two_tower import Tower
from jaxrec.retrieval import candidates, rerank

TOWER = Tower(layers=(8, 4))


def request(state, features, seen, real):
    """A tower, a table, merging and ranking: what a real one does."""

    def one(features, seen, real):
        query = TOWER.apply(state["tower"], features[None])[0]
        similar = candidates.look_up(candidates.Table(*state["similar"]), seen, where=real)
        found = candidates.merge([similar], size=6, exclude=(seen, real), allowed=state["allowed"])
        scores, ids = rerank.rank(query, state["items"], found.ids, found.where, k=3)
        return {"scores": scores, "ids": ids}

    return jax.vmap(one)(features, seen, real)


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    items = jnp.asarray(rng.normal(size=(20, 4)), jnp.float32)
    table = candidates.nearest(items, 5, progress=False)
    tower = TOWER.init(jax.random.key(0), jnp.ones((1, 3)))
    return {"items": items, "similar": tuple(table), "allowed": jnp.arange(20) < 18, "tower": tower}


def inputs(n, seed=1):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 3)).astype(np.float32)
    return features, rng.integers(0, 18, (n, 4)).astype(np.int32), rng.random((n, 4)) < 0.8


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "films.jaxrec"
    serving.save(path, request, state, *inputs(2), meta={"titles": ["A"]})
    return path


@pytest.mark.parametrize("n", [1, 2, 7])
def test_loaded_it_answers_as_before_for_any_number_of_requests(path, state, n):
    served = serving.load(path)
    expected, got = request(state, *map(jnp.asarray, inputs(n))), served(*inputs(n))
    np.testing.assert_array_equal(got["ids"], expected["ids"])
    np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-5)
    assert served.meta == {"titles": ["A"]}
    assert set(served.platforms) == {"cpu", "cuda", "tpu"}
    assert {"items", "similar.0", "similar.1", "allowed", "tower.params.Dense_0.kernel"} <= set(served.state)


def test_a_fresh_process_without_flax_gives_identical_results(path, tmp_path):
    np.savez(tmp_path / "in.npz", *inputs(5))
    code = (
        "import sys, numpy as np; from jaxrec import serving\n"
        f"given = list(np.load({str(tmp_path / 'in.npz')!r}).values())\n"
        f"out = serving.load({str(path)!r})(*given)\n"
        f"np.savez({str(tmp_path / 'out.npz')!r}, **out)\n"
        "assert 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    here = serving.load(path)(*inputs(5))
    with np.load(tmp_path / "out.npz") as file:
        other = dict(file)
    for name in ("scores", "ids"):
        np.testing.assert_array_equal(other[name], here[name])


def test_a_new_item_is_found_by_the_next_request(path):
    served = serving.load(path)
    given = inputs(4)
    given[2][:] = True
    assert not (np.asarray(served(*given)["ids"]) == 18).any()
    best = np.asarray(served.state["items"][:1]) * 0 + 50.0  # a vector that some query likes most, or least
    table = np.asarray(served.state["similar.0"]).copy()
    table[:, 0] = 18
    more = serving.with_rows(served, 18, {"items": best, "allowed": np.array([True])})
    more = serving.with_rows(more, 0, {"similar.0": table})
    scores = np.asarray(more(*given)["scores"])
    assert ((np.asarray(more(*given)["ids"]) == 18).any(axis=1) | (scores.max(axis=1) > -np.inf)).all()
    assert (np.asarray(more(*given)["ids"]) == 18).any()
    assert not (np.asarray(served(*given)["ids"]) == 18).any()  # the first is as it was


@pytest.mark.parametrize(
    ("row", "tables", "message"),
    [
        (19, {"items": np.ones((2, 4), np.float32)}, r"items: expected rows float32.* that fit from row 19 into 20"),
        (0, {"items": np.ones((2, 3), np.float32)}, r"items: expected rows float32\['n', 4\]"),
        (0, {"items": np.full((1, 4), np.nan, np.float32)}, "items: expected finite numbers"),
        (0, {"films": np.ones(1)}, "tables: expected names among .*, got 'films'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(path, row, tables, message):
    with pytest.raises(ValueError, match=message):
        serving.with_rows(serving.load(path), row, tables)


def test_inputs_of_other_shapes_are_refused(path):
    served, (features, seen, real) = serving.load(path), inputs(2)
    for wrong in ((features[:, :2], seen, real), (features, seen), (features, seen[:1], real), (features, seen, seen)):
        with pytest.raises(ValueError, match=r"expected float32\[b, 3\], int32\[b, 4\], bool\[b, 4\]; got"):
            served(*wrong)


def test_what_cannot_be_saved_is_refused_and_nothing_is_written(state, tmp_path):
    path = tmp_path / "films.jaxrec"
    with pytest.raises(ValueError, match="at least one example"):
        serving.save(path, request, state)
    with pytest.raises(ValueError, match="state items: expected finite numbers"):
        serving.save(path, request, {**state, "items": state["items"].at[0].set(jnp.inf)}, *inputs(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.cpu
def test_damage_and_other_platforms_are_errors(path, state, tmp_path):
    bad = tmp_path / "bad.jaxrec"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    with pytest.raises(ValueError, match="damaged|sha256|digest"):
        serving.load(bad)
    serving.save(bad, request, state, *inputs(2), platforms=("tpu",))
    with pytest.raises(ValueError, match="exported for tpu, and this process runs on cpu"):
        serving.load(bad)


# Numbers that do not fit, and requests that are none


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Ids and features in, what they were and a table's rows out."""

    def echo(state, ids, features):
        return {"ids": ids, "features": features, "rows": state["table"][ids], "scalar": state["scalar"]}

    path = tmp_path_factory.mktemp("plain") / "echo.jaxrec"
    state = {"table": np.arange(12).reshape(6, 2), "free": np.ones(6), "scalar": np.float32(2)}
    serving.save(path, echo, state, [0, 1], [[0.5], [1.5]])
    return serving.load(path)


@pytest.mark.parametrize("kind", [list, np.array, jnp.array])
def test_lists_and_wide_types_that_fit_are_taken(plain, kind):
    got = plain(kind([1, 5]), kind([[1.0], [2.0]]))
    assert got["ids"].tolist() == [1, 5]
    assert got["rows"].tolist() == [[2, 3], [10, 11]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((np.array([2**40 + 1]), [[1.0]]), r"inputs\[0\]: expected numbers that fit int32, got 1099511627777"),
        (([2**31], [[1.0]]), r"inputs\[0\]: expected numbers that fit int32"),
        (([-(2**32)], [[1.0]]), r"inputs\[0\]: expected numbers that fit int32"),
        (([1], np.array([[1e39]])), r"inputs\[1\]: expected numbers that fit float32, got 1e\+39"),
        (([1, 2], [[1.0], [np.nan]]), r"inputs\[1\]: expected numbers, got NaN in request 1"),
        (([1], jnp.array([[jnp.nan]])), r"inputs\[1\]: expected numbers, got NaN in request 0"),
        (([1, 2], [[1.0]]), r"expected int32\[b\], float32\[b, 1\]; got int32\[2\], float32\[1, 1\]"),
        ((np.zeros(0, np.int32), np.zeros((0, 1), np.float32)), "expected at least one request, got none"),
        ((1, [[1.0]]), r"expected int32\[b\], .*; got int32\[\]"),
        ((np.array([1], np.uint32), [[1.0]]), r"expected int32\[b\], .*; got uint32\[1\]"),
        (([0.5], [[1.0]]), r"expected int32\[b\], .*; got float32\[1\]"),
        ((["a"], [[1.0]]), r"inputs\[0\]: expected numbers, got"),
        ((), r"expected int32\[b\]"),
    ],
)
def test_requests_that_are_none_are_refused(plain, inputs, message):
    with pytest.raises(ValueError, match=message):
        plain(*inputs)


@pytest.mark.parametrize(
    ("row", "tables", "message"),
    [
        (-1, {"table": np.ones((1, 2), int)}, "table: expected rows int32.* that fit from row -1 into 6"),
        (2**40, {"table": np.ones((1, 2), int)}, "table: expected rows int32.* that fit from row 1099511627776"),
        (0, {"table": np.full((1, 2), 2**40)}, "table: expected numbers that fit int32, got 1099511627776"),
        (0, {"free": np.array([1e39])}, r"free: expected numbers that fit float32, got 1e\+39"),
        (0, {"free": np.array([np.inf])}, "free: expected finite numbers, got inf at position 0"),
        (0, {"free": 1.0}, "free: expected rows of a table"),
        (0, {"scalar": np.ones(1)}, "scalar: expected rows of a table"),
        (0.0, {"free": np.ones(1)}, "row: expected the position of the first row, an integer, got 0.0"),
        (True, {"free": np.ones(1)}, "row: expected the position of the first row, an integer, got True"),
    ],
)
def test_rows_that_the_table_does_not_hold_are_refused(plain, row, tables, message):
    with pytest.raises(ValueError, match=message):
        serving.with_rows(plain, row, tables)
    more = serving.with_rows(plain, np.int64(5), {"table": [[7, 8]], "free": [3.0]})
    assert more([5], [[0.0]])["rows"].tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("state", "inputs", "message"),
    [
        ({"t": np.array([2**40])}, ([1],), "state t: expected numbers that fit int32, got 1099511627776"),
        ({"t": np.array([1e39])}, ([1],), r"state t: expected numbers that fit float32, got 1e\+39"),
        ({"t": np.array(["a"])}, ([1],), "state t: expected numbers, got"),
        ({"t": np.ones(1)}, ([2**40],), r"inputs\[0\]: expected numbers that fit int32"),
        ({"t": np.ones(1)}, ([1], [1, 2]), r"expected columns of one length, got inputs\[0\]: 1, inputs\[1\]: 2"),
        ({"t": np.ones(1)}, (3,), "at least one example, each with the requests"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, ([1],), r"state: expected leaves of different names, got 'a\.b'"),
    ],
)
def test_states_and_examples_that_do_not_fit_are_not_saved(tmp_path, state, inputs, message):
    with pytest.raises(ValueError, match=message):
        serving.save(tmp_path / "x.jaxrec", lambda state, *inputs: inputs, state, *inputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["save", "load"])
def test_without_flatbuffers_the_extra_is_named(monkeypatch, tmp_path, call):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    path = tmp_path / "request.jaxrec"
    with pytest.raises(ImportError, match=r"pip install 'jaxrec\[serving\]'"):
        serving.load(path) if call == "load" else serving.save(path, lambda state, x: x, {}, np.ones(1))


def test_a_program_that_calls_other_code_is_refused(tmp_path):
    """The name of LAPACK's Cholesky factorization is changed, in the program's bytes, into names of the same length."""
    path, matrix = tmp_path / "f", np.eye(3, dtype=np.float32)
    solve = lambda state, query: (jnp.linalg.cholesky(state["a"])[None] * query[:, None, None],)
    serving.save(path, solve, {"a": matrix}, np.ones(2, np.float32), platforms=["cpu"])
    np.testing.assert_array_equal(serving.load(path)(np.ones(1, np.float32))[0], matrix[None])
    arrays, meta = storage.read(path, "request")
    program = arrays["program/cpu"].tobytes()
    assert program.count(b"lapack_spotrf_ffi") == 1
    for name in (b"xla_python_cpu_cb", b"lapack spotrf_ffi", b"lapack_spotrf_ff@", b"lapack_spotrf\nffi"):
        arrays["program/cpu"] = np.frombuffer(program.replace(b"lapack_spotrf_ffi", name), np.uint8)
        storage.write(path, "request", arrays, meta)
        with pytest.raises(ValueError, match="f: expected a program of XLA's operations.*got calls of"):
            serving.load(path)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_linear_algebra_selection_and_random_numbers_can_be_served(tmp_path, platform):
    def request(state, query):
        gram = state["x"].T @ state["x"]
        solved = jnp.linalg.solve(gram, state["x"].T)
        decompositions = jnp.linalg.eigh(gram)[0], jnp.linalg.svd(gram)[1], jnp.linalg.cholesky(gram)
        random = jax.random.normal(jax.random.key(0), state["x"].shape)
        return query, solved, *jnp.linalg.qr(gram), *decompositions, random

    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    serving.save(tmp_path / "f", request, {"x": x}, np.ones((2, 3), np.float32), platforms=[platform])


def test_a_callback_cannot_be_saved(tmp_path):
    callback = lambda state, query: (query, jax.pure_callback(np.sin, state["x"], state["x"]))
    with pytest.raises(NotImplementedError, match="host_callbacks"):
        serving.save(tmp_path / "f", callback, {"x": np.ones(2, np.float32)}, np.ones(2, np.float32), platforms=["cpu"])
    assert list(tmp_path.iterdir()) == []
