"""A request function saved and loaded: identical in a fresh process, any batch, new rows, and what is refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import serving
from jaxrec.models.two_tower import Tower
from jaxrec.retrieval import candidates, ranking

TOWER = Tower(layers=(8, 4))


def request(state, features, seen, real):
    """A tower, a table, merging and ranking: what a real one does."""

    def one(features, seen, real):
        query = TOWER.apply(state["tower"], features[None])[0]
        similar = candidates.look_up(candidates.Table(*state["similar"]), seen, where=real)
        found = candidates.merge([similar], size=6, exclude=(seen, real), allowed=state["allowed"])
        scores, ids = ranking.rank(query, state["items"], found.ids, found.where, k=3)
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
    assert set(served.program.platforms) == {"cpu", "cuda", "tpu"}
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
    more = serving.with_rows(served, 18, items=best, allowed=np.array([True]))
    more = serving.with_rows(more, 0, similar__0=table)
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
        (0, {"films": np.ones(1)}, "films: no such table; there are"),
    ],
)
def test_rows_that_do_not_fit_are_refused(path, row, tables, message):
    with pytest.raises(ValueError, match=message):
        serving.with_rows(serving.load(path), row, **tables)


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
