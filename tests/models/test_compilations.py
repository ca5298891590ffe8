"""The second identical eager call of every public function of models, serving and normalize compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import data, serving
from jaxrec.data import normalize
from jaxrec.models import baselines, history, hybrid
from jaxrec.models.head import Head
from jaxrec.models.two_tower import TwoTower, from_unit, to_unit, unit_vectors

compiled = 0


def _count(event: str, duration: float, **_: object) -> None:
    global compiled
    compiled += event == "/jax/core/compile/backend_compile_duration"  # read from the cache, too


jax.monitoring.register_event_duration_secs_listener(_count)

TOWERS = TwoTower(layers=(8, 4), dropout=0.1)
HEAD = Head(layers=(8,), dropout=0.1)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Name -> a call without arguments, which makes its arrays anew, as a user would."""
    ratings = data.synthetic.low_rank(30, 20, 200, rng=0).ratings
    linked, means = data.linked(ratings), normalize.means_by_item_then_user(ratings)
    key, tags = jax.random.key(0), np.eye(20, 4, dtype=np.float32)
    content = hybrid.Content(np.ones((30, 4), np.float32), np.ones((20, 3), np.float32), tags)
    init = lambda: hybrid.init_params(TOWERS, content, linked, key=jax.random.key(0), rank=2, width=3, mu=3.5)
    params = init()
    keep = history.sample_mask(linked, key=key)
    features = history.history_features(linked, keep, mu=3.5, tags=tags)
    known = np.ones(30, bool), np.ones(20, bool)
    user = lambda: (np.array([1, 2, 2**40]), np.float32([5, 3, np.nan]), np.array([True, True, False]))
    x = lambda *shape: np.ones(shape, np.float32)
    towers = TOWERS.init(key, x(3, 5), x(4, 7))
    head = HEAD.init(key, x(2, 4), x(2, 5, 4))
    noise = lambda: {"train": True, "rngs": {"dropout": jax.random.key(1)}}
    factors = hybrid.as_factors(TOWERS, params, content, linked)
    path = tmp_path_factory.mktemp("compilations") / "sum.jaxrec"
    serving.save(path, lambda state, a: state["t"].sum() + a, {"t": x(4)}, x(2, 1), platforms=("cpu",))
    served = serving.load(path)
    total = lambda table: history.pooled_embeddings(features, linked, table, params.user_embedding)[0].sum()
    return {
        "unit_vectors": lambda: unit_vectors(x(3, 4)),
        "gradient of unit_vectors": lambda: jax.grad(lambda a: unit_vectors(a).sum())(x(3, 4)),
        "to_unit": lambda: to_unit(x(3), (1, 5)),
        "from_unit": lambda: from_unit(x(3), (1, 5)),
        "TwoTower.init": lambda: TOWERS.init(jax.random.key(0), x(3, 5), x(4, 7)),
        "TwoTower.apply": lambda: TOWERS.apply(towers, x(3, 5), x(4, 7)),
        "TwoTower.apply in training": lambda: TOWERS.apply(towers, x(3, 5), x(4, 7), **noise()),
        "TwoTower.users": lambda: TOWERS.apply(towers, x(3, 5), method="users"),
        "Head.init": lambda: HEAD.init(jax.random.key(0), x(2, 4), x(2, 5, 4)),
        "Head.apply": lambda: HEAD.apply(head, x(2, 4), x(2, 5, 4)),
        "Head.apply in training": lambda: HEAD.apply(head, x(2, 4), x(2, 5, 4), **noise()),
        "history.sample_mask": lambda: history.sample_mask(linked, key=jax.random.key(0)),
        "history.history_features": lambda: history.history_features(linked, keep, mu=3.5, tags=tags),
        "history.pooled_embeddings": lambda: history.pooled_embeddings(
            features, linked, params.item_embedding, params.user_embedding
        ),
        "gradient of history.pooled_embeddings": lambda: jax.grad(total)(params.item_embedding),
        "history.user_history": lambda: history.user_history(
            *user(), c=features.c, mu=3.5, item_embedding=params.item_embedding, tags=tags
        ),
        "hybrid.init_params": init,
        "hybrid.as_factors": lambda: hybrid.as_factors(TOWERS, params, content, linked),
        "hybrid.as_factors in training": lambda: hybrid.as_factors(
            TOWERS, params, content, linked, keep, known=known, key=jax.random.key(0)
        ),
        "hybrid.user_vector": lambda: hybrid.user_vector(TOWERS, params, x(4), *user(), c=features.c, tags=tags),
        "hybrid.weight_decay_mask": lambda: hybrid.weight_decay_mask(params),
        "baselines": lambda: [
            fit(ratings) for fit in (baselines.global_mean, baselines.damped_biases, baselines.popularity)
        ],
        "content_profile": lambda: baselines.content_profile(ratings, x(20, 3)),
        "normalize.add_means": lambda: normalize.add_means(factors, means),
        "Means.at": lambda: means.at([0, 1], [1, 2]),
        "serving": lambda: served(x(3, 1)),
        "serving.with_rows": lambda: serving.with_rows(served, 2, {"t": x(1)}),
    }


def compilations(call):
    """The number of programs that a call compiles (or reads from the cache)."""
    before = compiled
    jax.block_until_ready(call())
    return compiled - before


@pytest.mark.slow
def test_the_second_identical_call_compiles_nothing(calls):
    first = {name: compilations(call) for name, call in calls.items()}
    again = {name: compilations(call) for name, call in calls.items()}
    assert {name: n for name, n in again.items() if n} == {}
    assert sum(first.values()) > 10, "the counter counts"


def test_a_program_that_is_compiled_in_every_call_is_counted():
    wrong = lambda: jax.jit(lambda a: a + 1)(jnp.ones(3))
    compilations(wrong)
    assert compilations(wrong) == 1


@pytest.mark.slow
def test_every_public_function_is_in_the_table(calls):
    for module in (history, hybrid):
        for name in module.__all__:
            if callable(getattr(module, name)) and not isinstance(getattr(module, name), type):
                assert f"{module.__name__.split('.')[-1]}.{name}" in calls
