"""Any scorer, every order of ties, every set of candidates: equal to lists made one user at a time."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, metrics, models
from jaxrec.evaluation import evaluate

N_USERS, N_ITEMS = 13, 9
NAMES = ("precision", "recall", "hit_rate", "ndcg", "average_precision", "reciprocal_rank")


def random_case(seed, n_levels=3):
    """Scores of few levels, so that many tie, and pairs: 0 unseen, 1 in train, 2 in test."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, n_levels, (N_USERS, N_ITEMS)).astype(np.float32)
    kind = np.array([rng.permutation([0] * 5 + [1] * 2 + [2] * 2) for _ in range(N_USERS)])
    kind[3][kind[3] == 2] = 0  # user 3 has no relevant item, and user 4 only one
    kind[4, np.argmax(kind[4] == 2)] = 0
    pairs = lambda which: Ratings(*np.nonzero(kind == which), rng.integers(1, 6, (kind == which).sum()), *kind.shape)
    return scores, pairs(1), pairs(2)


def table_scorer(table, users):
    return table[users]


def metrics_of_list(is_relevant, k, n_relevant):
    """The six metrics of one ranked list, given which positions hold a relevant item."""
    hit = np.zeros(k)
    hit[: len(is_relevant[:k])] = is_relevant[:k]
    position, ideal = np.arange(1, k + 1), min(k, n_relevant)
    return np.array(
        [
            hit.sum() / k,
            hit.sum() / n_relevant,
            hit.max(),
            (hit / np.log2(position + 1)).sum() / (1 / np.log2(position + 1))[:ideal].sum(),
            (hit * np.cumsum(hit) / position).sum() / ideal,
            (hit / position).max(),
        ]
    )


def by_lists(scores, relevant_ids, candidates, k, ties):
    """The metrics of one user, from one sorted list, or from the mean over all orders of tied items."""
    items = [i for i in candidates if scores[i] > -math.inf]
    relevant = set(relevant_ids)
    n_relevant = len(relevant)
    if ties == "lowest_id":
        order = sorted(items, key=lambda i: (-scores[i], i))
        return metrics_of_list(np.array([i in relevant for i in order], float), k, n_relevant)
    if ties == "worst":
        order = sorted(items, key=lambda i: (-scores[i], i in relevant, i))
        return metrics_of_list(np.array([i in relevant for i in order], float), k, n_relevant)
    orders = []  # of each group of tied items: every choice of the places of its relevant ones, all equally likely
    for level in sorted({scores[i] for i in items}, reverse=True):
        group = [i in relevant for i in items if scores[i] == level]
        places = itertools.combinations(range(len(group)), sum(group))
        orders.append([tuple(place in chosen for place in range(len(group))) for chosen in places])
    lists = [sum(parts, ()) for parts in itertools.product(*orders)]
    return np.mean([metrics_of_list(np.array(each, float), k, n_relevant) for each in lists], axis=0)


def ids_of(ratings, user):
    return ratings.item[ratings.user == user].tolist()


@pytest.mark.parametrize("ties", ["lowest_id", "worst", "expected"])
@pytest.mark.parametrize("candidates", ["catalog", "allowed", "negatives", "seen items too", "no train"])
@pytest.mark.parametrize("seed", range(2))
def test_a_function_of_users_is_ranked_as_lists_are(ties, candidates, seed):
    scores, train, test = random_case(seed)
    scores[0, :3] = -np.inf  # left out by the scorer
    rng = np.random.default_rng(seed)
    options, allowed = {}, np.ones((N_USERS, N_ITEMS), bool)
    if candidates == "allowed":
        options["allowed"] = rng.random(N_ITEMS) < 0.6
        allowed[:, ~options["allowed"]] = False
    elif candidates == "negatives":
        options["negatives"] = rng.integers(0, N_ITEMS, (N_USERS, 4))
        allowed[:] = False
        np.put_along_axis(allowed, options["negatives"], True, axis=1)
        allowed[test.user, test.item] = True
    elif candidates == "seen items too":
        options["mask_seen"] = False
    train = None if candidates == "no train" else train
    if train is not None and candidates != "seen items too":
        allowed[train.user, train.item] = False
    found = evaluate(table_scorer, train, test, k=(1, 3, 12), ties=ties, state=jnp.asarray(scores), **options)
    for user in range(N_USERS):
        relevant = ids_of(test, user)
        for k in (1, 3, 12):
            got = np.array([found.per_user[f"{name}@{k}"][user] for name in NAMES])
            if not relevant:
                assert np.isnan(got).all()
                continue
            expected = by_lists(scores[user], relevant, np.flatnonzero(allowed[user]), k, ties)
            np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=f"user {user}, k {k}")


@pytest.mark.parametrize("ties", ["lowest_id", "worst", "expected"])
def test_all_scores_equal(ties):
    """The expected precision is the share of relevant items; the worst is 0, as others fill the list."""
    _, _, test = random_case(0)
    found = evaluate(lambda users: jnp.zeros((len(users), N_ITEMS)), None, test, k=3, ties=ties)
    for user in range(N_USERS):
        relevant = ids_of(test, user)
        if relevant:
            expected = by_lists(np.zeros(N_ITEMS), relevant, range(N_ITEMS), 3, ties)
            np.testing.assert_allclose([found[name][user] for name in NAMES], expected, atol=1e-6)
    if ties == "expected":
        n_relevant = np.bincount(test.user, minlength=N_USERS)
        np.testing.assert_allclose(found["precision"][n_relevant > 0], n_relevant[n_relevant > 0] / N_ITEMS, rtol=1e-6)


def test_every_form_of_one_scorer_gives_the_same_result():
    """Factors, their vectors, a function of (state, users), and a function of users."""
    _, train, test = random_case(1)
    factors = models.init(N_USERS, N_ITEMS, 2, key=jax.random.key(0), scale=1.0, mu=3.0)
    vectors = models.as_vectors(factors)
    product = lambda state, users: jnp.matmul(state[0][users], state[1].T, precision="highest")
    scorers = [(factors, None), (tuple(vectors), None), (product, tuple(vectors))]
    scorers.append((lambda users: product(tuple(vectors), users), None))
    found = [evaluate(scorer, train, test, k=(2, 4), state=state) for scorer, state in scorers]
    for other in found[1:]:
        assert other.protocol == found[0].protocol
        for name in found[0]:
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-6)


def test_blocks_of_users_give_what_all_users_give():
    scores, train, test = random_case(2)
    widths = []

    def scorer(table, users):
        widths.append(users.shape[0])
        return table[users]

    whole = evaluate(scorer, train, test, k=3, state=jnp.asarray(scores))
    assert max(widths) > 2
    widths.clear()
    blocks = evaluate(scorer, train, test, k=3, state=jnp.asarray(scores), batch_size=2)
    assert max(widths) == 2
    for name in whole:
        np.testing.assert_array_equal(whole[name], blocks[name])


def test_a_function_is_compiled_once(compilations):
    scores, train, test = random_case(3)
    scorer = lambda users: jnp.asarray(scores)[users]
    evaluate(scorer, train, test, k=3)
    before = compilations()
    evaluate(scorer, train, test, k=3)
    assert compilations() == before


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int8, jnp.bool_])
def test_narrow_scores_are_ranked_in_float32(dtype):
    scores, train, test = random_case(4, n_levels=2)
    found = evaluate(table_scorer, train, test, k=3, state=jnp.asarray(scores).astype(dtype))
    expected = evaluate(table_scorer, train, test, k=3, state=jnp.asarray(scores))
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_ratings_from_a_level_on_are_relevant():
    scores, train, test = random_case(5)
    found = evaluate(table_scorer, train, test, k=3, relevant_from=4, state=jnp.asarray(scores))
    liked = test.take(test.value >= 4)
    expected = evaluate(table_scorer, train, liked, k=3, state=jnp.asarray(scores))
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.protocol["relevant"] == "ratings from 4"


def test_the_protocol_names_what_was_ranked():
    scores, train, test = random_case(6)
    state = jnp.asarray(scores)
    of = lambda train=train, **options: evaluate(table_scorer, train, test, k=3, state=state, **options).protocol
    assert of() == {
        "candidates": "the whole catalog",
        "seen": "masked",
        "ties": "lowest_id",
        "relevant": "every test pair",
    }
    assert of(mask_seen=False)["seen"] == "ranked"
    assert of(train=None)["seen"] == "none"
    assert of(ties="worst")["ties"] == "worst"
    assert of(allowed=np.arange(N_ITEMS) < 5)["candidates"] == "5 allowed items of 9"
    sampled = of(negatives=np.zeros((N_USERS, 4), int))["candidates"]
    assert sampled == "sampled, the relevant items and 4 negatives of each user"


def bad(value):
    def scorer(users):
        return jnp.zeros((len(users), N_ITEMS)).at[:, 2].set(jnp.where(users == 7, value, 0.0))

    return scorer


@pytest.mark.parametrize(
    ("scorer", "options", "message"),
    [
        (bad(np.nan), {}, r"scorer: expected scores that are numbers or -inf, got NaN or \+infinity for user 7"),
        (bad(np.inf), {}, r"got NaN or \+infinity for user 7"),
        (lambda users: jnp.zeros((len(users), 5)), {}, r"expected scores \[n, 9\], .* got an array of shape \(2, 5\)"),
        (lambda users: jnp.zeros(N_ITEMS), {}, r"expected scores \[n, 9\], .* got an array of shape \(9,\)"),
        (lambda users: (jnp.zeros((len(users), N_ITEMS)),), {}, r"expected scores \[n, 9\], .* got tuple"),
        ((np.ones((N_USERS, 2)), np.ones((N_ITEMS, 2))), {"state": 1}, "state: expected None, because the scorer"),
        (bad(0), {"ties": "best"}, "ties: expected one of 'lowest_id', 'worst', 'expected', got 'best'"),
        (bad(0), {"metrics": ["ndgc"]}, "metrics: expected one of 'precision', .*, got 'ndgc'"),
        (bad(0), {"metrics": {"x": 3}}, "metrics: expected names of metrics, or name -> function, got 3"),
        (bad(0), {"metrics": []}, "metrics: expected at least one, got none"),
        (bad(0), {"metrics": ["auc_at_k"], "ties": "expected"}, "auc_at_k has no expected value"),
        (bad(0), {"metrics": {"own": lambda ids, relevant, where: 0.0}, "ties": "expected"}, "own has no expected"),
        (bad(0), {"negatives": np.zeros((N_USERS, 0), int)}, r"negatives: expected ids \[13, c\] with c >= 1"),
        (bad(0), {"negatives": np.zeros((4, 2), int)}, r"negatives: expected ids \[13, c\] with c >= 1"),
        (bad(0), {"negatives": np.full((N_USERS, 2), 9)}, r"negatives: expected ids in \[0, 9\), got 9"),
        (
            bad(0),
            {"negatives": np.zeros((N_USERS, 2), int), "allowed": np.ones(N_ITEMS, bool)},
            "expected one of the two",
        ),
        (bad(0), {"k": 0}, "expected k and batch_size >= 1"),
    ],
)
def test_bad_scorers_and_options_are_refused(scorer, options, message):
    _, train, test = random_case(7)
    assert 7 in test.user
    with pytest.raises(ValueError, match=message):
        evaluate(scorer, train, test, **{"k": 3, **options})


def test_left_out_users_are_counted_by_their_reasons():
    """User 0 has no test items, and user 1's are all in train; user 2 has a result."""
    train, test = Ratings([1, 2], [0, 1], [1, 1], 3, 3), Ratings([1, 2], [0, 2], [1, 1], 3, 3)
    found = evaluate(lambda users: jnp.ones((len(users), 3)), train, test, k=1, overlap="drop")
    assert found.n_users == 1
    assert found.left_out == {"without relevant items": 1, "with all of them in train": 1}
    assert np.isnan(found["recall"]).tolist() == [True, True, False]


def test_one_user_and_a_list_longer_than_the_catalog():
    test = Ratings([0], [1], [5.0], 1, 2)
    found = evaluate(lambda users: jnp.array([[1.0, 2.0]])[users], None, test, k=50)
    assert found.mean["recall@50"] == found.mean["ndcg@50"] == found.mean["reciprocal_rank@50"] == 1
    assert found.mean["precision@50"] == pytest.approx(1 / 50)
    assert math.isnan(found.standard_error["recall@50"])
    assert found.to_dict()["standard_error"]["recall@50"] is None


def test_a_user_who_has_seen_everything_has_metrics_of_zero():
    train, test = Ratings([0, 0], [0, 1], [1, 1], 1, 3), Ratings([0], [2], [1], 1, 3)
    scorer = lambda users: jnp.array([[1.0, 2.0, -jnp.inf]])[users]  # and the test item is left out by the scorer
    found = evaluate(scorer, train, test, k=2)
    assert found.n_users == 1
    assert set(found.mean.values()) == {0.0}


# The result


def test_the_result_is_a_record_a_table_a_frame_and_json():
    scores, train, test = random_case(8)
    test = Ratings(test.user, test.item, test.value, N_USERS, N_ITEMS, user_ids=[f"u{j}" for j in range(N_USERS)])
    train = Ratings(train.user, train.item, train.value, N_USERS, N_ITEMS, user_ids=test.user_ids)
    found = evaluate(table_scorer, train, test, k=(1, 3), metrics=["ndcg", "recall"], state=jnp.asarray(scores))
    assert list(found) == ["ndcg@1", "recall@1", "ndcg@3", "recall@3"]
    values = found.per_user["ndcg@3"]
    values = values[~np.isnan(values)].astype(np.float64)
    assert found.mean["ndcg@3"] == pytest.approx(values.mean())
    assert found.standard_error["ndcg@3"] == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))
    assert found.n_users == len(values)
    assert f"ndcg@3    {values.mean():.4f}" in repr(found)
    frame = found.to_polars()
    assert frame.columns == ["user", *found]
    assert frame["user"].to_list() == test.user_ids.tolist()
    assert frame["ndcg@3"].null_count() == N_USERS - found.n_users
    np.testing.assert_array_equal(found.to_pandas()["ndcg@3"], found["ndcg@3"])
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["mean"] == found.mean
    assert again["n_users"] == found.n_users
    with pytest.raises(KeyError, match="expected one of ndcg@1, recall@1, ndcg@3, recall@3, got 'ndcg'"):
        found["ndcg"]


def test_without_any_relevant_item_means_are_nan_and_null_in_json():
    none = Ratings(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 2, 3)
    found = evaluate(lambda users: jnp.ones((len(users), 3)), None, none, k=2)
    assert found.n_users == 0
    assert all(math.isnan(mean) for mean in found.mean.values())
    assert set(found.to_dict()["mean"].values()) == {None}
    assert "0 users, and 2 without relevant items" in repr(found)


def test_metrics_may_be_renamed_and_mixed():
    scores, train, test = random_case(9)
    chosen = {"mine": metrics.ndcg, "by name": "recall"}
    found = evaluate(table_scorer, train, test, k=3, metrics=chosen, state=jnp.asarray(scores))
    assert list(found) == ["mine@3", "by name@3"]
