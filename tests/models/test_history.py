"""Features from rating histories: equal to loops, equal for one user and for all, and free of held-out ratings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import data
from jaxrec.models import history
from jaxrec.types import Linked, Ratings

U, I, MU, DAMPING = 8, 6, 3.5, (4.0, 3.0)  # noqa: E741


@pytest.fixture(scope="module")
def ratings():
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((U, I)) < 0.6)
    order = rng.permutation(len(user))
    return Ratings(user[order], item[order], rng.integers(1, 6, len(user)), n_users=U, n_items=I)


@pytest.fixture(scope="module")
def tags():
    return np.random.default_rng(1).integers(0, 2, (I, 3)).astype(np.float32)


def by_loops(ratings, keep, tags):
    """The features of the module's table, computed rating by rating."""
    kept = [(int(j), int(i), float(y)) for j, i, y, k in zip(*ratings, keep, strict=True) if k]
    c = [sum(y - MU for j, i, y in kept if i == n) / (sum(i == n for _, i, _ in kept) + DAMPING[1]) for n in range(I)]
    residuals_of = lambda n: [(i, y - MU - c[i]) for j, i, y in kept if j == n]
    b = [sum(e for _, e in residuals_of(n)) / (len(residuals_of(n)) + DAMPING[0]) for n in range(U)]
    user = []
    for n in range(U):
        residuals = [(i, e - b[n]) for i, e in residuals_of(n)]
        means = [
            sum(e * tags[i, t] for i, e in residuals) / (sum(tags[i, t] for i, _ in residuals) + DAMPING[0])
            for t in range(3)
        ]
        user.append([b[n], np.log1p(len(residuals)), *means])
    item = [[c[n], np.log1p(sum(i == n for _, i, _ in kept))] for n in range(I)]
    return np.array(user), np.array(item), kept, np.array(b), np.array(c)


def columns(linked):
    return [np.asarray(a) for a in (linked.user, linked.item, linked.value)]


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_the_features_equal_those_of_loops(ratings, tags, share):
    linked = data.linked(ratings)
    keep = np.random.default_rng(2).random(len(ratings)) < share
    got = history.history_features(linked, jnp.asarray(keep), mu=MU, tags=jnp.asarray(tags))
    user, item, kept, b, c = by_loops(columns(linked), keep, tags)
    np.testing.assert_allclose(got.user, user, atol=1e-5)
    np.testing.assert_allclose(got.item, item, atol=1e-5)
    if share == 1:
        np.testing.assert_array_equal(history.history_features(linked, mu=MU, tags=jnp.asarray(tags)).user, got.user)

    rng = np.random.default_rng(3)
    watched, raters = rng.normal(size=(I, 4)).astype(np.float32), rng.normal(size=(U, 4)).astype(np.float32)
    user_sums, item_sums = history.pooled_embeddings(got, linked, jnp.asarray(watched), jnp.asarray(raters))
    for n in range(U):
        rows = [np.r_[watched[i, :2], (y - MU - c[i] - b[n]) * watched[i, 2:]] for j, i, y in kept if j == n]
        expected = history.GAIN * np.sum(rows, axis=0) / np.sqrt(1 + len(rows)) if rows else np.zeros(4)
        np.testing.assert_allclose(user_sums[n], expected, atol=1e-4)
    for n in range(I):
        rows = [np.r_[raters[j, :2], (y - MU - c[n] - b[j]) * raters[j, 2:]] for j, i, y in kept if i == n]
        expected = history.GAIN * np.sum(rows, axis=0) / np.sqrt(1 + len(rows)) if rows else np.zeros(4)
        np.testing.assert_allclose(item_sums[n], expected, atol=1e-4)


def test_one_users_padded_list_gives_the_users_row_of_all_features(ratings, tags):
    linked = data.linked(ratings)
    all_features = history.history_features(linked, mu=MU, tags=jnp.asarray(tags))
    watched = jnp.asarray(np.random.default_rng(3).normal(size=(I, 4)), jnp.float32)
    embeddings, _ = history.pooled_embeddings(all_features, linked, watched, jnp.zeros((U, 4)))
    user, item, value = columns(linked)
    for n in range(U):
        # the padding would change the result if it were used
        pad = lambda column, n=n: jnp.asarray(np.r_[column[user == n], column[:3]])
        where = jnp.arange(len(pad(item))) < (user == n).sum()
        features, embedding = history.user_history(
            pad(item), pad(value), where, c=all_features.c, mu=MU, item_embedding=watched, tags=jnp.asarray(tags)
        )
        np.testing.assert_allclose(features, all_features.user[n], atol=1e-5)
        np.testing.assert_allclose(embedding, embeddings[n], atol=1e-4)
    features_of_nothing, embedding = history.user_history(
        pad(item), pad(value), where & False, c=all_features.c, mu=MU, item_embedding=watched
    )
    assert features_of_nothing.tolist() == [0, 0]
    assert embedding.tolist() == [0] * 4


def test_held_out_ratings_do_not_change_any_feature(ratings, tags):
    """Changing the values of the held-out ratings changes no feature of any user or item."""
    linked = data.linked(ratings)
    keep = history.sample_mask(linked, key=jax.random.key(0), held_out_fraction=0.5)
    assert 0 < int(keep.sum()) < len(ratings)
    changed = jax.tree.map(lambda a: a, linked)
    changed = type(linked)(**{**vars(changed), "value": jnp.where(keep, linked.value, 6 - linked.value)})
    all_features = [history.history_features(one, keep, mu=MU, tags=jnp.asarray(tags)) for one in (linked, changed)]
    for a, b in zip(jax.tree.leaves(all_features[0]), jax.tree.leaves(all_features[1]), strict=True):
        np.testing.assert_array_equal(a, b)


MANY = Ratings(np.repeat(np.arange(500), 40), np.tile(np.arange(40), 500), np.ones(20000), 500, 40)


def test_sample_mask_holds_out_the_requested_fraction_and_depends_on_the_key():
    linked = data.linked(MANY)
    keep = history.sample_mask(linked, key=jax.random.key(0), held_out_fraction=0.3, cold_probability=0.0)
    assert abs(float(keep.mean()) - 0.7) < 0.02
    per_user = np.asarray(keep).reshape(500, 40).mean(axis=1)
    assert per_user.min() < 0.5 < 0.95 < per_user.max()  # some users lose most of their ratings, some none
    assert bool(
        (keep != history.sample_mask(linked, key=jax.random.key(1), held_out_fraction=0.3, cold_probability=0.0)).any()
    )


def test_sample_mask_makes_some_users_and_items_cold():
    keep = history.sample_mask(
        data.linked(MANY), key=jax.random.key(0), held_out_fraction=0.001, cold_probability=0.2, max_cold_ratings=3.0
    )
    table = np.asarray(keep).reshape(500, 40)
    user_share, item_share = table.mean(axis=1), table.mean(axis=0)
    new_users, new_items = user_share < 0.4, item_share < 0.4
    assert 0.1 < new_users.mean() < 0.3
    assert 2 <= new_items.sum() <= 15
    n_kept = table[new_users][:, ~new_items].sum(axis=1)
    assert n_kept.max() <= 12
    assert (n_kept == 0).any()
    assert table[~new_users][:, ~new_items].mean() > 0.98


@pytest.mark.parametrize(
    "wrong",
    [{"held_out_fraction": 0.0}, {"held_out_fraction": 0.6}, {"cold_probability": 1.0}, {"max_cold_ratings": 0.0}],
)
def test_sample_mask_refuses_fractions_and_counts_out_of_range(wrong):
    with pytest.raises(ValueError, match="expected held_out_fraction in"):
        history.sample_mask(data.linked(MANY), key=jax.random.key(0), **wrong)


# Types, shapes and ids of a caller's arguments


NARROW = pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.float16, jnp.bfloat16])


@NARROW
def test_values_of_narrow_types_are_summed_in_float32(ratings, tags, dtype):
    """Differences such as 2 - 3.5 of uint8 and sums of float16 are computed in float32."""
    linked, tags = data.linked(ratings), jnp.asarray(tags)
    narrow = dataclasses.replace(linked, value=jnp.asarray(np.asarray(linked.value).astype(dtype)))
    tables = [np.arange(4 * n).reshape(n, 4) % 7 for n in (I, U)]
    expected = history.history_features(linked, mu=MU, tags=tags)
    got = history.history_features(narrow, mu=MU, tags=np.asarray(tags).astype(dtype))
    embeddings = history.pooled_embeddings(expected, linked, *(table.astype(np.float32) for table in tables))
    narrow_embeddings = history.pooled_embeddings(got, narrow, *(table.astype(dtype) for table in tables))
    for one, other in zip(
        jax.tree.leaves((expected, embeddings)), jax.tree.leaves((got, narrow_embeddings)), strict=True
    ):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    of_user = np.asarray(linked.user) == 2
    item, value = np.asarray(linked.item)[of_user], np.asarray(linked.value)[of_user]
    one_user = {"where": np.ones(len(item), bool), "c": expected.c, "mu": MU}
    features, embedding = history.user_history(
        item,
        value.astype(dtype),
        item_embedding=tables[0].astype(dtype),
        tags=np.asarray(tags).astype(dtype),
        **one_user,
    )
    np.testing.assert_allclose(features, expected.user[2], atol=1e-5)
    np.testing.assert_allclose(embedding, embeddings[0][2], rtol=1e-5, atol=1e-4)


def test_more_ratings_of_an_item_than_float32_can_count_are_counted_exactly():
    n = 2**24 + 3
    zeros, ones = jnp.zeros(n, jnp.int32), jnp.ones(n, bool)
    start = jnp.array([0, n])
    many = Linked(zeros, zeros, jnp.ones(n), ones, start, jnp.arange(n), start, zeros)
    counts = jax.jit(lambda ratings: history.history_features(ratings, mu=0.5))(many)
    assert float(counts.item_count[0]) == float(counts.user_count[0]) == np.float32(n)


@pytest.fixture(scope="module")
def one_user(ratings, tags):
    c = jnp.linspace(-1, 1, I)
    return {
        "item": np.array([1, 4, 2]),
        "value": np.array([5.0, 3.0, 2.0], np.float32),
        "where": np.array([True, True, False]),
        "c": c,
        "item_embedding": jnp.ones((I, 4)),
        "tags": jnp.asarray(tags),
    }


@pytest.mark.parametrize(
    ("item", "value"),
    [(2**40, 9.0), (-1, np.nan), (I, np.inf), (2**31 - 1, 1e30)],
    ids=["beyond int32", "-1", "the number of items", "the largest int32"],
)
@pytest.mark.parametrize("jit", [False, True])
def test_masked_ids_and_values_may_be_arbitrary(one_user, item, value, jit):
    if jit and item > 2**31:
        pytest.skip("the id does not fit int32, so it cannot be traced")
    call = lambda item, value, where, **tables: history.user_history(item, value, where, mu=MU, **tables)
    call = jax.jit(call) if jit else call
    expected = call(**one_user)
    got = call(**{**one_user, "item": np.array([1, 4, item]), "value": np.float32([5, 3, value])})
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": np.array([1, I, 0])}, rf"item: expected ids in \[0, {I}\), got {I} at position 1"),
        ({"item": np.array([1, 2**40 + 2, 0])}, r"item: expected ids in .*, got 1099511627778"),
        ({"item": np.array([1, -1, 0])}, "item: expected ids in .*, got -1"),
        ({"item": np.array([1.0, 2.0, 3.0])}, "item: expected integer ids"),
        ({"value": np.float32([5, np.nan, 2])}, "value: expected finite numbers, got nan at position 1"),
        ({"value": np.float32([5])}, "expected arrays of one shape"),
        ({"where": np.array([1, 1, 0])}, "where: expected a mask of bools"),
        ({"item_embedding": np.ones((I - 1, 4))}, rf"item_embedding: expected shape \[{I}, 2 e\], got \[{I - 1}, 4\]"),
        (
            {"item_embedding": np.ones((I, 3))},
            "item_embedding: expected rows of an even width .two halves., got width 3",
        ),
        ({"tags": np.ones((I + 1, 3))}, rf"tags: expected shape \[{I}, g\]"),
        ({"c": np.ones(I + 2)}, "item_embedding: expected shape"),
        ({"mu": np.ones(I)}, r"mu: expected shape \[\], got"),
        ({"mu": np.nan}, "mu: expected finite numbers"),
        ({"damping": (-1.0, 3.0)}, "damping: expected finite numbers >= 0, got -1"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_one_users_lists_and_tables_that_do_not_fit_are_refused(one_user, change, message):
    with pytest.raises(ValueError, match=message):
        history.user_history(**{"mu": MU, **one_user, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": np.ones(3, bool)}, "keep: expected a mask of bools of shape"),
        ({"keep": np.arange(3)}, "keep: expected a mask of bools"),
        ({"tags": np.ones((I + 1, 2))}, rf"tags: expected shape \[{I}, g\], got \[{I + 1}, 2\]"),
        ({"tags": np.ones(I)}, "tags: expected shape"),
        ({"mu": np.ones(I)}, r"mu: expected shape \[\]"),
        ({"mu": np.inf}, "mu: expected finite numbers"),
        ({"damping": (4.0, np.nan)}, "damping: expected finite numbers >= 0, got nan"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_masks_and_tags_that_do_not_fit_the_ratings_are_refused(ratings, change, message):
    with pytest.raises(ValueError, match=message):
        history.history_features(data.linked(ratings), **{"mu": MU, **change})


@pytest.mark.usefixtures("as_users_run")
def test_embeddings_of_other_users_or_items_are_refused(ratings):
    linked = data.linked(ratings)
    all_features = history.history_features(linked, mu=MU)
    fits = jnp.ones((I, 4)), jnp.ones((U, 4))
    for name, tables in {
        "item_embedding": (jnp.ones((I + 1, 4)), fits[1]),
        "user_embedding": (fits[0], jnp.ones((U - 1, 4))),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            history.pooled_embeddings(all_features, linked, *tables)
    with pytest.raises(ValueError, match="history.kept: expected shape"):
        history.pooled_embeddings(all_features, data.linked(ratings.take(slice(0, 5))), *fits)


def test_without_damping_the_mean_of_no_ratings_is_zero():
    linked = data.linked(Ratings([0], [1], [5.0], n_users=3, n_items=2))
    all_features = history.history_features(
        linked, mu=3.0, tags=jnp.array([[1.0, 0.0], [1.0, 0.0]]), damping=(0.0, 0.0)
    )
    assert all_features.c.tolist() == [0, 2]
    assert np.isfinite(all_features.user).all()
    features, _ = history.user_history(
        jnp.array([0]),
        jnp.array([5.0]),
        jnp.array([False]),
        c=all_features.c,
        mu=3.0,
        item_embedding=jnp.ones((2, 2)),
        damping=(0, 0),
    )
    assert features.tolist() == [0, 0]
