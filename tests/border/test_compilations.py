"""A second identical eager call compiles nothing, so that a notebook does not wait for the compiler again."""

import importlib
import inspect

import jax
import pytest

from tests.border.calls import CALLS

# Modules whose public functions must all be in CALLS.
MODULES = (
    *("losses", "losses.closed_form", "losses.content", "losses.implicit", "losses.pairwise", "losses.softmax"),
    *("metrics", "models", "models.bag_of_items", "models.baselines", "models.linear"),
    *("models.neighbors", "models.recency", "solvers.neighbors", "training.negatives"),
    *("retrieval", "retrieval.candidates", "retrieval.quantized", "retrieval.rerank", "evaluation"),
    *("evaluation.off_policy", "evaluation.propensity"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("as_users_run")
def test_a_second_identical_call_compiles_nothing(name, compilations):
    jax.block_until_ready(CALLS[name]())
    before = compilations()
    jax.block_until_ready(CALLS[name]())
    assert compilations() == before


def test_a_compilation_is_counted(compilations):
    before = compilations()
    jax.jit(lambda x: x + 1)(1.0)
    assert compilations() > before


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_has_a_call(module):
    loaded = importlib.import_module(f"jaxrec.{module}")
    functions = [name for name in loaded.__all__ if inspect.isroutine(getattr(loaded, name))]
    missing = [name for name in functions if f"{module}.{name}" not in CALLS]
    assert missing == []
