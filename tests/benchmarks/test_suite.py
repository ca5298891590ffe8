"""The suite on small sizes: answers are checked, missing peers are named, and wrong peers are not reported."""

import json

import pytest

from benchmarks import harness, peers, suite

pytestmark = pytest.mark.usefixtures("one_bucket")

SMALL = {
    "n_users": 60,
    "n_items": 40,
    "ratings": 900,
    "gradient_rank": 4,
    "explicit_rank": 4,
    "implicit_ranks": (4,),
    "searched": (500,),
    "queries": (3, 1),
    "evaluated": ("synthetic",),
    "neighbors": ("synthetic",),
    "ease": ("synthetic",),
    "bpr": ("synthetic",),
    "softmax": (40,),
    "grid": "synthetic",
    "sweeps": 2,
    "repeats": 1,
    "rounds": 1,
}


def replace_peers(monkeypatch, peer):
    """Measures the project's cells in this process, and replaces the answer of a peer by peer(cell)."""

    def run(module, cell, **_):
        cell = json.loads(json.dumps(cell))
        return peer(cell) if module == "benchmarks.peers" else json.loads(json.dumps(suite.measure(cell)))

    monkeypatch.setattr(harness, "in_fresh_process", run)


@pytest.mark.slow
def test_every_operation_is_measured_also_if_its_peer_is_missing(tmp_path, monkeypatch, capsys):
    replace_peers(monkeypatch, lambda cell: {"failed": "no such module"})
    result = suite.main(suite.Settings(**SMALL, out=str(tmp_path)))["metrics"]
    names = [row["operation"] for row in result["rows"]]
    assert len(names) == 1 + 5 + 3 + 3 + 1 + 1 + 3 + 1
    assert all(row["jaxrec s"] > 0 and row["bound s"] > 0 and row["peer s"] == "failed" for row in result["rows"])
    assert "PyTorch autograd: no such module" in capsys.readouterr().out
    assert json.loads((tmp_path / "suite.json").read_text())["experiment"] == "suite"


def test_a_peer_that_agrees_is_compared_and_one_that_disagrees_is_an_error(tmp_path, monkeypatch):
    answer = suite.measure(
        {"what": "search", "items": 500, "dim": 32, "queries": 3, "k": 100, "bits": 32, "seed": 0, "repeats": 1}
    )
    replace_peers(monkeypatch, lambda cell: {"seconds": 1.0, "scores": answer["scores"], "peak": 0})
    settings = suite.Settings(**SMALL | {"queries": (3,)}, what=("search",), out=str(tmp_path))
    row = suite.main(settings)["metrics"]["rows"][0]
    assert row["ratio"] == pytest.approx(1 / row["jaxrec s"])
    replace_peers(monkeypatch, lambda cell: {"seconds": 1.0, "scores": answer["scores"] * 1.01, "peak": 0})
    with pytest.raises(AssertionError, match="exact top-100"):
        suite.main(settings)


def test_an_unknown_operation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="what: expected some of gradient"):
        suite.main(suite.Settings(what=("sorting",), out=str(tmp_path)))


@pytest.mark.slow
def test_the_objective_of_a_peer_is_computed_from_its_factors(tmp_path, monkeypatch):
    """The objective of cmfrec after the same number of sweeps is computed in float64 from the factors it writes."""
    import numpy as np

    def peer(cell):
        tables = {"w": (60, 4), "b": (60,), "x": (40, 4), "c": (40,)}
        np.savez(cell["out"], **{name: np.zeros(shape) for name, shape in tables.items()}, mu=3.5)
        return {"seconds": 1.0, "peak": 0}

    replace_peers(monkeypatch, peer)
    rows = suite.main(suite.Settings(**SMALL, what=("explicit",), out=str(tmp_path)))["metrics"]["rows"]
    ratings = suite.data.synthetic.low_rank(60, 40, 900, rng=0).ratings
    expected = ((ratings.value - 3.5) ** 2).sum() / 2
    assert float(rows[0]["theirs"]) == pytest.approx(expected, rel=1e-4)
    assert float(rows[0]["jaxrec"].split()[1]) < expected


def test_the_peers_import_neither_jax_nor_the_project():
    assert not any(name in peers.__dict__ for name in ("jax", "jnp", "jaxrec"))
    seconds, model = peers._per_sweep(lambda sweeps: sweeps, 3)
    assert model == 3
    assert abs(seconds) < 1


@pytest.mark.slow
def test_three_steps_are_compared_with_the_peers_own_steps_and_all_else_with_its_cholesky(tmp_path, monkeypatch):
    peer_cells = []
    replace_peers(
        monkeypatch, lambda cell: peer_cells.append((cell["what"], cell.get("cg"))) or {"seconds": 1.0, "peak": 0}
    )
    small = SMALL | {"cg_steps": (3, 0, 10), "what": ("explicit",), "out": str(tmp_path)}
    rows = suite.main(suite.Settings(**small))["metrics"]["rows"]
    assert peer_cells == [("cmfrec_als", True), ("cmfrec_als", False), ("lenskit_als", None)]  # no peer runs twice
    steps = [(row["operation"].split(", ")[-1], row["peer"]) for row in rows]
    names = ("cmfrec", "LensKit BiasedMF")
    assert steps == [("3 CG steps", "cmfrec"), *((of, peer) for of in ("exact", "10 CG steps") for peer in names)]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_every_peer_of_a_cpu_or_gpu_has_a_function_that_measures_it(monkeypatch, backend):
    monkeypatch.setattr(suite.jax, "default_backend", lambda: backend)
    for what in ("gradient", "explicit", "implicit", "search"):
        found = suite._peers(what)
        assert all(callable(peers.MEASURES[peer["what"]]) for peer in found.values())
        assert {peer["what"] for peer in found.values()} <= set(peers.__all__)
        assert bool(found) != ((backend, what) == ("gpu", "explicit"))  # no peer has explicit ALS on a GPU


def test_an_operation_without_a_peer_has_a_row(tmp_path, monkeypatch):
    replace_peers(monkeypatch, lambda cell: {"failed": "there is no peer"})
    monkeypatch.setattr(suite, "_peers", lambda what: {})
    small = SMALL | {"cg_steps": (3, 0), "what": ("explicit",), "out": str(tmp_path)}
    result = suite.main(suite.Settings(**small))["metrics"]
    assert [(row["peer"], row["peer s"]) for row in result["rows"]] == [("none", "-")] * 2
    machine = result["machine"]
    assert machine["platform"] == "cpu"
    assert machine["flops"] > 0
    assert machine["flops_default"] > 0
    assert {"device", "driver", "jax", "jaxlib", "bytes"} <= set(machine)


def test_measurements_before_a_failure_are_kept(tmp_path, monkeypatch):
    replace_peers(monkeypatch, lambda cell: {"failed": "no such module"})
    measured = harness.in_fresh_process
    monkeypatch.setattr(
        harness,
        "in_fresh_process",
        lambda module, cell, **_: {"failed": "out of memory"} if cell["what"] == "search" else measured(module, cell),
    )
    with pytest.raises(RuntimeError, match="exact top-100.*out of memory"):
        suite.main(suite.Settings(**SMALL, what=("gradient", "search"), out=str(tmp_path)))
    rows = json.loads((tmp_path / "suite.json").read_text())["metrics"]["rows"]
    assert [row["peer"] for row in rows] == ["PyTorch autograd"]


def test_neighbors_are_those_of_a_peer_with_the_same_similarities(tmp_path, monkeypatch):
    import numpy as np

    def peer(cell):
        arrays = np.load(cell["path"])
        x = np.zeros((60, 40))
        x[arrays["user"], arrays["item"]] = 1
        norm = np.linalg.norm(x, axis=0)
        cosine = x.T @ x / np.maximum(np.outer(norm, norm), 1)
        np.fill_diagonal(cosine, 0)
        return {"seconds": 1.0, "similarity": -np.sort(-cosine, axis=1)[:, : cell["k"]].sum(), "peak": 0}

    replace_peers(monkeypatch, peer)
    (row,) = suite.main(suite.Settings(**SMALL, what=("neighbors",), out=str(tmp_path)))["metrics"]["rows"]
    assert row["peer"] == "implicit"
    assert row["ratio"] == pytest.approx(1 / row["jaxrec s"])


@pytest.mark.slow
def test_operations_on_implicit_feedback_have_the_numbers_of_numpy(tmp_path, monkeypatch):
    """EASE by its formula, the softmax by its definition; of BPR that it learns: the AUC of its chance is 1/2."""
    import numpy as np

    from benchmarks import implicit_operations
    from benchmarks.peers import draw_batch

    def peer(cell):
        if cell["what"] == "torch_softmax":
            user, item, ids = draw_batch(cell)
            score = user.astype(np.float64) @ item.T
            log_sum = np.log(np.exp(score).sum(axis=1))
            return {"seconds": 1.0, "value": float((log_sum - score[np.arange(len(ids)), ids]).mean()), "peak": 0}
        arrays = np.load(cell["path"])
        x = np.zeros((60, 40))
        x[arrays["user"], arrays["item"]] = 1
        if cell["what"] == "irspack_ease":
            inverse = np.linalg.inv(x.T @ x + cell["l2"] * np.eye(40))
            scores = x @ (np.eye(40) - inverse / np.diagonal(inverse)[None, :])
            return {"seconds": 1.0, "scores": float((scores**2).sum()), "peak": 0}
        return {"seconds": 1.0, "auc": 0.5, "peak": 0}

    replace_peers(monkeypatch, peer)
    monkeypatch.setattr(implicit_operations, "BATCH", 64)
    small = suite.Settings(**SMALL, what=("ease", "bpr", "softmax"), out=str(tmp_path))
    rows = {row["operation"].split()[0]: row for row in suite.main(small)["metrics"]["rows"]}
    assert rows.keys() == {"EASE", "epoch", "softmax"}  # numbers that differ would have raised
    assert all(row["ratio"] > 0 for row in rows.values())
    assert float(rows["epoch"]["jaxrec"].split()[1]) > 0.55
