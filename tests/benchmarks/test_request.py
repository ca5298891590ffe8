"""The benchmarks of requests and embedding tables on small sizes: only correct answers are timed."""

import json

import pytest

from benchmarks import embeddings, harness, request


@pytest.mark.slow
def test_requests_and_searches_are_checked_and_timed(in_this_process, tmp_path, capsys):
    in_this_process(request)
    settings = request.Settings(items=(500,), searched=(700,), queries=(1, 3), dim=4, k=5, repeats=2, out=str(tmp_path))
    rows = request.main(settings)["metrics"]["rows"]
    assert [(row["what"], row["items"], row["queries"]) for row in rows] == [
        ("request", 500, 1),
        ("search", 700, 1),
        ("search", 700, 3),
    ]
    assert all(0 < row["ms"] <= row["slowest ms"] for row in rows)
    assert rows[1]["extra / catalog"] > 0
    assert json.loads((tmp_path / "request.json").read_text())["experiment"] == "request"
    assert "extra / catalog" in capsys.readouterr().out


def test_a_wrong_request_or_search_is_not_timed(monkeypatch):
    cell = {"items": 300, "queries": 2, "dim": 4, "k": 5, "repeats": 1, "seed": 0}
    respond, search = request.respond, request.top_k
    monkeypatch.setattr(request, "respond", lambda *args: (respond(*args)[0], respond(*args)[1] + 1))
    with pytest.raises(AssertionError):
        request.measure(cell | {"what": "request"})
    monkeypatch.setattr(request, "top_k", lambda *args: (search(*args)[0] * 1.01, search(*args)[1]))
    with pytest.raises(AssertionError):
        request.measure(cell | {"what": "search"})


@pytest.mark.parametrize("module", [request, embeddings])
def test_a_wrong_cell_is_an_error_and_a_cell_that_does_not_fit_is_a_line(module, tmp_path, monkeypatch, capsys):
    answer = {"failed": "not done after 1 s"}
    monkeypatch.setattr(harness, "in_fresh_process", lambda name, cell, *, timeout: dict(answer))
    module.main(module.Settings(out=str(tmp_path)))
    assert "not done after 1 s" in capsys.readouterr().out
    answer["wrong"] = True
    with pytest.raises(RuntimeError, match="not done after 1 s"):
        module.main(module.Settings(out=str(tmp_path)))


@pytest.mark.slow
def test_lazy_and_dense_steps_are_compared_and_timed(in_this_process, tmp_path):
    in_this_process(embeddings)
    settings = embeddings.Settings(rows=(50, 90), batches=(8,), dim=3, repeats=2, out=str(tmp_path))
    table = embeddings.main(settings)["metrics"]["table"]
    assert [line["step"] for line in table] == ["lazy", "dense"]
    for line in table:
        assert line["last / first"] == pytest.approx(line["90 rows, ms"] / line["50 rows, ms"])


def test_a_wrong_step_is_not_timed(monkeypatch):
    cell = {"rows": 50, "dim": 3, "batch": 8, "seed": 0}
    embeddings.check(cell)
    (init, step), lazy = embeddings._steps("dense"), embeddings._steps("lazy")
    twice = lambda state, batch, *, key: step(step(state, batch, key=key)[0], batch, key=key)
    monkeypatch.setattr(embeddings, "_steps", {"lazy": lazy, "dense": (init, twice)}.__getitem__)
    with pytest.raises(AssertionError):
        embeddings.check(cell)
