"""The hybrid model as Factors: its formula, unknown ids, training steps, refused inputs, and what it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import data, losses, metrics, models, training
from jaxrec.models import baselines, history, hybrid
from jaxrec.models.two_tower import TwoTower

TOWERS = TwoTower(layers=(16, 8), dropout=0.2)


@pytest.fixture(scope="module")
def example():
    """Synthetic ratings, features without information, and initial parameters."""
    ratings = data.synthetic.low_rank(60, 40, 900, rng=0).ratings
    rng = np.random.default_rng(0)
    table = lambda n, d: jnp.asarray(rng.normal(size=(n, d)), jnp.float32)
    content = hybrid.Content(table(60, 5), table(40, 3), tags=(table(40, 4) > 0).astype(jnp.float32))
    linked = data.linked(ratings)
    params = hybrid.init_params(TOWERS, content, linked, key=jax.random.key(0), rank=2, width=3, mu=3.5)
    noise = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params.ids)
    return ratings, content, linked, dataclasses.replace(params, ids=noise)


def test_the_model_equals_its_formula(example):
    _, content, linked, params = example
    factors = hybrid.as_factors(TOWERS, params, content, linked)
    features = history.history_features(linked, mu=params.ids.mu, tags=content.tags)
    pooled = history.pooled_embeddings(features, linked, params.item_embedding, params.user_embedding)
    z = lambda f: (f - f.mean(axis=0, keepdims=True)) / jnp.maximum(f.std(axis=0, keepdims=True), 1e-9)
    v_user, v_item = TOWERS.apply(
        params.towers,
        jnp.concatenate(
            [content.users, (features.user - params.user_moments[:1]) / params.user_moments[1:], pooled.users], 1
        ),
        jnp.concatenate(
            [content.items, (features.item - params.item_moments[:1]) / params.item_moments[1:], pooled.items], 1
        ),
    )
    ids = params.ids
    expected = (
        params.scale * v_user @ v_item.T
        + ids.w @ ids.x.T
        + (ids.b + params.history_bias_weights[0] * features.b)[:, None]
    )
    expected += (ids.c + params.history_bias_weights[1] * features.c)[None, :] + ids.mu
    np.testing.assert_allclose(models.predict_all(factors), expected, atol=1e-4)
    # the moments are those of the full history, with the mu of init_params
    first = history.history_features(linked, mu=3.5, tags=content.tags)
    np.testing.assert_allclose(
        (first.item - params.item_moments[:1]) / params.item_moments[1:], z(first.item), atol=1e-4
    )


def test_users_and_items_with_unknown_ids_are_predicted_from_features_only(example):
    _, content, linked, params = example
    known = jnp.arange(60) != 7, jnp.arange(40) != 3
    factors = hybrid.as_factors(TOWERS, params, content, linked, known=known)
    all_known = hybrid.as_factors(TOWERS, params, content, linked)
    assert factors.w[7, 8:].tolist() == [0, 0]
    assert factors.x[3, 8:].tolist() == [0, 0]
    others = np.arange(60) != 7
    np.testing.assert_array_equal(factors.w[others], all_known.w[others])
    np.testing.assert_allclose(factors.b[7], all_known.b[7] - params.ids.b[7], atol=1e-6)
    np.testing.assert_allclose(factors.c[3], all_known.c[3] - params.ids.c[3], atol=1e-6)


def test_the_key_of_a_training_step_determines_the_dropped_ids_and_units(example):
    _, content, linked, params = example
    at = lambda seed, id_dropout=0.5: hybrid.as_factors(
        TOWERS, params, content, linked, key=jax.random.key(seed), id_dropout=id_dropout
    )
    dropped = np.asarray((at(0).w[:, 8:] == 0).all(axis=1))
    assert 10 < dropped.sum() < 50
    assert not np.allclose(at(0).x[:, :8], at(1).x[:, :8])
    assert not np.asarray(at(0, id_dropout=0.0).w[:, 8:] == 0).any()


def test_ratings_that_are_not_kept_do_not_change_predictions(example):
    _, content, linked, params = example
    keep = history.sample_mask(linked, key=jax.random.key(0))
    changed = dataclasses.replace(linked, value=jnp.where(keep, linked.value, 6 - linked.value))
    one, two = (models.predict_all(hybrid.as_factors(TOWERS, params, content, r, keep)) for r in (linked, changed))
    np.testing.assert_array_equal(one, two)


def test_user_vector_equals_the_row_of_a_user_with_an_unknown_id(example):
    _, content, linked, params = example
    no_users = jnp.zeros(60, bool), jnp.ones(40, bool)
    users, items = models.as_vectors(hybrid.as_factors(TOWERS, params, content, linked, known=no_users))
    c = history.history_features(linked, mu=params.ids.mu, tags=content.tags).c
    for user in (0, 17):
        rated = np.asarray(linked.user) == user
        pad = lambda column, rated=rated: jnp.asarray(np.r_[np.asarray(column)[rated], np.asarray(column)[:4]])
        where = jnp.arange(rated.sum() + 4) < rated.sum()
        vector = hybrid.user_vector(
            TOWERS, params, content.users[user], pad(linked.item), pad(linked.value), where, c=c, tags=content.tags
        )
        np.testing.assert_allclose(vector, users[user], atol=1e-4)
        np.testing.assert_allclose(items @ vector, items @ users[user], atol=1e-3)


def test_weight_decay_applies_to_the_networks_kernels_only(example):
    *_, params = example
    mask = hybrid.weight_decay_mask(params)
    assert mask.towers["params"]["user"]["Dense_0"] == {"kernel": True, "bias": False}
    assert not any(jax.tree.leaves(dataclasses.replace(mask, towers=None)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": jnp.ones((59, 5))}, r"content.users: expected 60 rows, one for each in the ratings, got 59"),
        ({"items": jnp.ones(40)}, r"content.items: expected \[rows, features\]"),
        ({"items": jnp.ones((40, 3)).at[7, 1].set(jnp.nan)}, "content.items: expected finite features, .* in row 7"),
        ({"tags": jnp.ones((39, 4))}, "content.tags: expected 40 rows"),
    ],
)
def test_content_that_does_not_fit_the_ratings_is_refused(example, change, message):
    _, content, linked, _ = example
    with pytest.raises(ValueError, match=message):
        hybrid.init_params(TOWERS, dataclasses.replace(content, **change), linked, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": {"users": jnp.ones((59, 5))}}, "content.users: expected 60 rows"),
        ({"content": {"items": np.full((40, 3), np.nan)}}, "content.items: expected finite features"),
        ({"content": {"items": np.full((40, 3), 1e39)}}, "content.items: expected finite features"),
        ({"ids": {"w": jnp.ones((61, 2))}}, r"params.ids.w: expected shape \(60, 2\)"),
        ({"ids": {"b": jnp.ones(59)}}, r"params.ids.b: expected shape \(60,\)"),
        ({"ids": {"x": jnp.ones((40, 3))}}, r"params.ids.x: expected shape \(40, 2\)"),
        ({"ids": {"c": jnp.ones(41)}}, r"params.ids.c: expected shape \(40,\)"),
        ({"ids": {"mu": jnp.ones(40)}}, r"mu: expected shape \[\]"),
        ({"params": {"item_embedding": jnp.ones((41, 6))}}, r"item_embedding: expected shape \[40, 2 e\]"),
        ({"params": {"user_embedding": jnp.ones((59, 6))}}, r"user_embedding: expected shape \[60, 2 e\]"),
        ({"content": {"tags": None}}, "expected the 6 history features .* got 2. Pass the same tags"),
        ({"options": {"known": (np.ones(59, bool), np.ones(40, bool))}}, r"known\[0\]: expected a mask of bools"),
        ({"options": {"known": (np.ones(60, bool), np.arange(40))}}, r"known\[1\]: expected a mask of bools"),
        ({"options": {"keep": np.ones(7, bool)}}, "keep: expected a mask of bools"),
        (
            {"options": {"id_dropout": 1.5, "key": jax.random.key(0)}},
            r"id_dropout: expected a probability in \[0, 1\], got 1.5",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_arguments_that_do_not_fit_the_model_are_refused(example, change, message):
    _, content, linked, params = example
    content = dataclasses.replace(content, **change.get("content", {}))
    ids = dataclasses.replace(params.ids, **change.get("ids", {}))
    params = dataclasses.replace(params, ids=ids, **change.get("params", {}))
    with pytest.raises(ValueError, match=message):
        hybrid.as_factors(TOWERS, params, content, linked, **change.get("options", {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones(4)}, "features: expected 5, as in training, got 4"),
        ({"features": np.ones((1, 5))}, "features: expected one user's"),
        ({"features": np.array([1, np.nan, 0, 0, 0])}, "features: expected finite numbers, got nan at position 1"),
        ({"features": np.full(5, 1e39)}, "features: expected finite numbers, got inf"),
        ({"item": np.array([40, 0])}, "item: expected ids"),
        ({"item": np.array([2**40, 0])}, "item: expected ids"),
        ({"value": np.array([np.nan, 1])}, "value: expected finite numbers, got nan at position 0"),
        ({"c": np.ones(39)}, "item_embedding: expected shape"),
        ({"tags": None}, "Pass the same tags as to init_params"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_a_request_that_does_not_fit_is_refused(example, change, message):
    _, content, _, params = example
    given = {
        "features": content.users[0],
        "item": np.array([3, 2**40]),
        "value": np.array([4.0, np.nan]),
        "where": np.array([True, False]),
        "c": np.zeros(40),
        "tags": content.tags,
    }
    assert np.isfinite(hybrid.user_vector(TOWERS, params, **given)).all(), "masked ids and values may be arbitrary"
    with pytest.raises(ValueError, match=message):
        hybrid.user_vector(TOWERS, params, **{**given, **change})


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float16])
def test_content_of_narrow_types_is_computed_in_float32(example, dtype):
    _, content, linked, _ = example
    narrow = jax.tree.map(lambda table: np.asarray(table > 0).astype(dtype), content)
    wide = jax.tree.map(lambda table: jnp.asarray(table, jnp.float32), narrow)
    one, other = (
        hybrid.as_factors(
            TOWERS,
            hybrid.init_params(TOWERS, given, linked, key=jax.random.key(1), rank=2, width=3, mu=3.5),
            given,
            linked,
        )
        for given in (narrow, wide)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_the_callers_mask_is_not_modified(example):
    _, content, linked, params = example
    known = np.ones(60, bool), np.ones(40, bool)
    hybrid.as_factors(TOWERS, params, content, linked, known=known, key=jax.random.key(0), id_dropout=0.5)
    assert known[0].all()
    assert known[1].all()


def test_history_features_that_differ_only_by_rounding_are_not_scaled_up():
    """Every item has the same rating from all users: without damping the users' biases are rounding errors only."""
    rng = np.random.default_rng(0)
    n_users, n_items = 50, 37
    user, item = (ids.ravel() for ids in np.indices((n_users, n_items)))
    value = (rng.integers(1, 50, n_items) / 10)[item]
    linked = data.linked(data.Ratings(user, item, value, n_users, n_items))
    content = hybrid.Content(jnp.ones((n_users, 1)), jnp.ones((n_items, 1)))
    params = hybrid.init_params(TOWERS, content, linked, key=jax.random.key(0), mu=float(value.mean()))
    features = history.history_features(linked, mu=float(value.mean()), damping=(0.0, 0.0))
    moments = hybrid._moments(features.user, jnp.max(linked.value))
    assert 0 < float(jnp.abs(features.b).max()) < 1e-5, "only rounding errors"
    assert moments[1].tolist() == [1, 1]
    assert float(params.item_moments[1, 0]) == pytest.approx(float(jnp.std(features.c)), rel=0.1), (
        "features that vary are standardized"
    )


@pytest.mark.slow
def test_the_towers_learn_more_than_biases():
    """Two kinds of users like items by their tags: the towers learn this, and apply it to users not in the training."""
    rng = np.random.default_rng(0)
    n_users, n_items = 120, 60
    kind, tag = rng.integers(0, 2, n_users), rng.integers(0, 2, n_items)
    user, item = np.nonzero(rng.random((n_users, n_items)) < 0.4)
    value = np.where(kind[user] == tag[item], 4.0, 2.0) + 0.3 * rng.normal(size=len(user))
    part = lambda rows: data.Ratings(user[rows], item[rows], value[rows], n_users=n_users, n_items=n_items)
    train, test = part(user < 100), part(user >= 100)
    hot = lambda column: jnp.asarray(np.eye(2)[column], jnp.float32)
    content, linked = hybrid.Content(hot(kind), hot(tag)), data.linked(train)

    def cost(params, batch, *, key):
        content, ratings = batch
        keep = history.sample_mask(ratings, key=key)
        factors = hybrid.as_factors(TOWERS, params, content, ratings, keep, key=key)
        held_out = dataclasses.replace(ratings, where=ratings.where & ~keep)
        return losses.closed_form.cost(factors, held_out, l2=0.0) / len(ratings.value)

    init = hybrid.init_params(
        TOWERS, content, linked, key=jax.random.key(0), rank=0, width=2, mu=float(train.value.mean())
    )
    batches = jax.tree.map(lambda leaf: leaf[None], (content, linked))
    params, _ = training.descend(cost, init, batches, optimizer=optax.adam(0.01), key=jax.random.key(0), steps=150)
    known = jnp.arange(n_users) < 100, jnp.ones(n_items, bool)
    error = lambda factors: float(
        metrics.rmse(models.predict(factors, jnp.asarray(test.user), jnp.asarray(test.item)), jnp.asarray(test.value))
    )
    assert error(hybrid.as_factors(TOWERS, params, content, linked, known=known)) < 0.45
    assert error(baselines.damped_biases(train)) > 0.9
