"""recommend and related return raw ids and titles, never items that were seen, and check their arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import Factors, Ratings, recommend, related
from jaxrec.models import as_vectors, init, predict_all
from jaxrec.models.baselines import popularity
from jaxrec.solvers.neighbors import item_knn, rp3beta, user_knn

# A user's score of item i is c(i) plus the user's b; ann has seen 20 and 50, bob all but 40, and eve none.
ITEMS = [50, 20, 40, 10]  # raw ids, not sorted: contiguous 0, 1, 2, 3
TITLES = np.array(["Fifty", "Twenty", "Forty", "Ten"])
RATINGS = Ratings.from_columns(
    ["ann", "ann", "bob", "bob", "bob"],
    [20, 50, 10, 20, 50],
    [5, 0, 1, 2, 3],
    user_ids=["bob", "eve", "ann"],
    item_ids=ITEMS,
)
FACTORS = Factors(
    w=jnp.zeros((3, 1)),
    b=jnp.array([0.5, 0.0, 0.25]),
    x=jnp.array([[0.0], [1.0], [3.0], [-1.5]]),
    c=jnp.array([4.0, 3.0, 1.0, 2.0]),
)


def rows(table):
    """The rows of a table: [(item, title, score or distance)]."""
    return list(zip(table.item.tolist(), table.title.tolist(), table[-1].tolist(), strict=True))


def test_recommend_returns_raw_ids_and_titles():
    assert rows(recommend(FACTORS, RATINGS, "eve", k=3, titles=TITLES)) == [
        (50, "Fifty", 4.0),
        (20, "Twenty", 3.0),
        (10, "Ten", 2.0),
    ]
    assert rows(recommend(FACTORS, RATINGS, "ann", k=2, titles=TITLES)) == [(10, "Ten", 2.25), (40, "Forty", 1.25)]


@pytest.mark.parametrize("users", [["ann", "eve"], ["eve", "ann", "eve"], None])
@pytest.mark.parametrize("batch_size", [1, 2, 1024])
def test_several_users_get_what_each_gets_alone(users, batch_size):
    table = recommend(FACTORS, RATINGS, users, k=2, titles=TITLES, batch_size=batch_size)
    requested = ["bob", "eve", "ann"] if users is None else users
    alone = [recommend(FACTORS, RATINGS, user, k=2, titles=TITLES) for user in requested]
    assert rows(table) == [row for one in alone for row in rows(one)]
    assert table.user.tolist() == [user for user, one in zip(requested, alone, strict=True) for _ in one.item]
    assert table.rank.tolist() == [rank for one in alone for rank in range(1, len(one.item) + 1)]


@pytest.mark.parametrize("to", ["to_polars", "to_pandas"])
def test_the_tables_convert_to_data_frames(to):
    frame = getattr(recommend(FACTORS, RATINGS, ["eve", "ann"], k=1, titles=TITLES), to)()
    assert list(frame.columns) == ["user", "rank", "item", "title", "score"]
    assert frame["user"].to_list() == ["eve", "ann"]
    assert (frame["item"].to_list(), frame["title"].to_list()) == ([50, 10], ["Fifty", "Ten"])
    near = getattr(related(FACTORS, RATINGS, 50, k=1), to)()
    if to == "to_polars":
        assert near.write_csv() == "item,title,distance\n20,,1.0\n", (
            "a table without titles can be written to a file too"
        )
    assert (near["item"].to_list(), near["title"].to_list(), near["distance"].to_list()) == ([20], [None], [1.0])


def test_only_allowed_items_are_recommended():
    allowed = np.array([False, True, True, False])
    assert rows(recommend(FACTORS, RATINGS, ["eve", "ann"], k=4, allowed=allowed)) == [
        (20, None, 3.0),
        (40, None, 1.0),
        (40, None, 1.25),
    ]
    with pytest.raises(ValueError, match="allowed"):
        recommend(FACTORS, RATINGS, "eve", k=1, allowed=allowed[:3])


def test_recommend_and_related_accept_vectors_of_any_model():
    vectors = np.array([[1.0], [2.0], [-1.0]]), np.array([[3.0], [1.0], [2.0], [4.0]])
    assert recommend(vectors, RATINGS, "eve", k=2).item.tolist() == [10, 50]
    assert recommend(vectors, RATINGS, "ann", k=2).score.tolist() == [-2.0, -4.0]
    assert related(vectors[1], RATINGS, 50, k=2).item.tolist() == [40, 10]


class Table:
    """A scorer of a registered pytree that is called, and does not say how many users it has."""

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, users):
        return self.scores[users]


jax.tree_util.register_pytree_node(Table, lambda table: ((table.scores,), None), lambda _, parts: Table(*parts))


def as_table(factors):
    return predict_all(factors)


FORMS = {
    "function": lambda factors: (lambda users: as_table(factors)[users], None),
    "function and state": lambda factors: (lambda table, users: table[users], as_table(factors)),
    "pytree": lambda factors: (Table(as_table(factors)), None),
    "vectors": lambda factors: (tuple(as_vectors(factors)), None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_every_form_of_a_scorer_recommends_the_same(form, batch_size):
    scorer, state = FORMS[form](FACTORS)
    for options in ({}, {"exclude_seen": False}, {"allowed": np.array([True, False, True, True])}):
        for users in (None, ["ann", "eve", "ann"], "bob", []):
            expected = recommend(FACTORS, RATINGS, users, k=3, titles=TITLES, **options)
            found = recommend(scorer, RATINGS, users, k=3, titles=TITLES, state=state, batch_size=batch_size, **options)
            for name in ("user", "rank", "item", "title"):
                assert getattr(found, name).tolist() == getattr(expected, name).tolist()
            np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)


def test_equal_scores_go_to_the_lowest_position():
    found = recommend(lambda users: jnp.zeros((len(users), 4)), RATINGS, ["eve", "ann"], k=3)
    assert found.item.tolist() == [50, 20, 40, 40, 10]
    zeros = recommend(lambda users: jnp.tile(jnp.array([0.0, -0.0, 0.0, -0.0]), (len(users), 1)), RATINGS, "eve", k=4)
    assert zeros.item.tolist() == ITEMS


def test_a_score_of_minus_infinity_is_never_recommended():
    scores = jnp.array([[1.0, -jnp.inf, 2.0, -jnp.inf]] * 3)
    found = recommend(lambda table, users: table[users], RATINGS, ["eve", "ann"], k=4, state=scores)
    assert rows(found) == [(40, None, 2.0), (50, None, 1.0), (40, None, 2.0)]
    assert found.user.tolist() == ["eve", "eve", "ann"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_nan_or_infinite_are_refused(bad):
    scores = np.zeros((3, 4), np.float32)
    scores[2, 0] = bad  # ann has seen the item, and the scorer is wrong all the same
    with pytest.raises(ValueError, match=r"scorer: expected scores that are numbers or -inf, .* for user 'ann'"):
        recommend(lambda table, users: table[users], RATINGS, k=1, state=jnp.asarray(scores))
    assert recommend(lambda table, users: table[users], RATINGS, "eve", k=1, state=jnp.asarray(scores)).item == [50]


def test_scores_of_narrow_types_and_integers_are_ranked_in_float32():
    for dtype in (jnp.bfloat16, jnp.int32):
        scores = jnp.array([[1, 4, 2, 3]] * 3, dtype)
        found = recommend(lambda table, users: table[users], RATINGS, "eve", k=2, state=scores)
        assert (found.item.tolist(), found.score.dtype) == ([20, 10], np.float32)


@pytest.mark.parametrize("solver", [item_knn, user_knn, rp3beta])
def test_neighbors_recommend_what_their_scores_say(solver):
    data = jaxrec.data.synthetic.low_rank(15, 12, 80, rng=0)
    scorer = solver(data.ratings, k=5)
    scores = np.array(scorer(np.arange(15)))
    found = recommend(scorer, data.ratings, k=4, titles=data.titles, batch_size=4)
    for j in range(15):
        seen = data.ratings.item[data.ratings.user == j]
        scores[j, seen] = -np.inf
        expected = np.argsort(-scores[j], kind="stable")[: min(4, 12 - len(seen))] + 1
        assert found.item[found.user == j + 1].tolist() == expected.tolist()


def test_a_second_pytree_of_the_same_shapes_compiles_nothing(compilations):
    first, second = (Table(jnp.asarray(np.random.default_rng(seed).random((3, 4), np.float32))) for seed in (0, 1))
    recommend(first, RATINGS, k=2)
    before = compilations()
    recommend(second, RATINGS, k=2)
    recommend(second, RATINGS, ["eve", "ann", "bob"], k=2)
    assert compilations() == before


@pytest.mark.parametrize(
    ("scorer", "options", "message"),
    [
        (lambda users: jnp.zeros((2, 5)), {}, r"scorer: expected scores \[n, 4\], one per item of train"),
        (lambda users: [0.0], {}, r"scorer: expected scores \[n, 4\]"),
        (FACTORS, {"state": jnp.zeros(3)}, "state: expected None"),
        ("popular", {}, "scorer: expected Factors or a pair"),
        (lambda users: jnp.zeros((2, 4)), {"batch_size": 0}, "batch_size: expected at least 1"),
        (lambda users: jnp.zeros((2, 4)), {"k": 5}, "k: expected between 1 and the catalog's 4 items"),
        (lambda users: jnp.zeros((2, 4)), {"allowed": np.ones(3, bool)}, "allowed"),
        (lambda users: jnp.zeros((2, 4)), {"titles": TITLES[:3]}, "titles: expected one per item"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_scorers_are_named(scorer, options, message):
    with pytest.raises(ValueError, match=message):
        recommend(scorer, RATINGS, **{"k": 1, **options})


def test_a_scorer_of_other_users_is_refused():
    other = item_knn(Ratings([0, 1], [0, 1], [1, 1], 2, 4), k=1)
    with pytest.raises(ValueError, match=r"expected tables of \(3, 4\) users and items, as train has, got \(2, 4\)"):
        recommend(other, RATINGS, k=1)


def test_without_titles_the_column_is_none():
    assert rows(recommend(FACTORS, RATINGS, "eve", k=1)) == [(50, None, 4.0)]
    assert rows(related(FACTORS, RATINGS, 50, k=1)) == [(20, None, 1.0)]


def test_titles_may_be_a_list():
    assert recommend(FACTORS, RATINGS, "eve", k=1, titles=TITLES.tolist()).title.tolist() == ["Fifty"]


def test_a_user_who_has_seen_nearly_everything_gets_a_shorter_list():
    assert rows(recommend(FACTORS, RATINGS, "bob", k=4)) == [(40, None, 1.5)]


def test_a_user_who_has_seen_everything_gets_an_empty_list():
    everything = Ratings.from_columns(["bob"] * 4, ITEMS, user_ids=["bob", "eve", "ann"], item_ids=ITEMS)
    assert rows(recommend(FACTORS, everything, "bob", k=2)) == []
    assert rows(recommend(FACTORS, everything, [], k=2)) == []


def test_seen_items_can_be_recommended_on_request():
    best = recommend(FACTORS, RATINGS, "bob", k=4, exclude_seen=False)
    assert best.item.tolist() == [50, 20, 10, 40]
    assert best.score.tolist() == [4.5, 3.5, 2.5, 1.5]


@pytest.mark.parametrize("seed", range(2))
def test_unseen_items_are_recommended_in_the_order_of_their_scores(seed):
    data = jaxrec.data.synthetic.low_rank(15, 12, 80, rng=seed)
    ratings = data.ratings
    factors = init(15, 12, 3, key=jax.random.key(seed), scale=1.0, mu=3.5)
    scores = np.asarray(predict_all(factors))
    for user in (1, 15):  # raw ids count from 1
        seen = set(ratings.item_ids[ratings.item[ratings.user == user - 1]].tolist())
        best = recommend(factors, ratings, user, k=12, titles=data.titles)
        assert set(best.item.tolist()) == set(range(1, 13)) - seen
        expected = sorted(set(range(1, 13)) - seen, key=lambda item: -scores[user - 1, item - 1])
        assert best.item.tolist() == expected
        assert best.title.tolist() == [f"Film {item}" for item in expected]
        np.testing.assert_allclose(best.score, scores[user - 1, np.array(expected) - 1], rtol=1e-5)


def test_related_returns_raw_ids_and_titles():
    # features: Fifty 0, Twenty 1, Forty 3, Ten -1.5
    assert rows(related(FACTORS, RATINGS, 20, k=3, titles=TITLES)) == [
        (50, "Fifty", 1.0),
        (40, "Forty", 4.0),
        (10, "Ten", 6.25),
    ]


def test_without_features_related_lists_items_in_order_of_their_ids():
    assert related(popularity(RATINGS), RATINGS, 20, k=3).item.tolist() == [50, 40, 10]


def test_ratings_without_raw_ids_use_contiguous_ids():
    ratings = Ratings([0, 0, 1], [2, 0, 1], [1, 2, 3], 3, 4)
    assert recommend(FACTORS, ratings, 0, k=4).item.tolist() == [1, 3]
    assert recommend(FACTORS, ratings, 2, k=4).item.tolist() == [0, 1, 3, 2]
    assert related(FACTORS, ratings, 0, k=3).item.tolist() == [1, 3, 2]
    with pytest.raises(ValueError, match=r"^users: 3 is not among the 3 known ids"):
        recommend(FACTORS, ratings, 3, k=1)
    with pytest.raises(ValueError, match=r"^item: -1 is not among the 4 known ids"):
        related(FACTORS, ratings, -1, k=1)


@pytest.mark.parametrize(
    "raw",
    [["a", "b", "c", "d"], np.array(["a", "b", "c", "d"], object)],
    ids=["a list of strings", "an array of objects"],
)
def test_item_ids_may_be_strings(raw):
    ratings = Ratings([0], [1], [5.0], 3, 4, item_ids=raw)
    best = recommend(FACTORS, ratings, 0, k=3)
    assert best.item.tolist() == ["a", "d", "c"]
    assert related(FACTORS, ratings, "d", k=2).item.tolist() == ["a", "b"]


@pytest.mark.parametrize("user", ["nobody", "", "an", None, 0, 2])
def test_an_unknown_user_is_refused(user):
    with pytest.raises(ValueError, match=r"^users: .* is not among the 3 known ids, such as .*bob.* and .*ann"):
        recommend(FACTORS, RATINGS, ["ann", user])


@pytest.mark.parametrize("item", [0, 99, "50", None])
def test_an_unknown_item_is_refused(item):
    with pytest.raises(ValueError, match=r"^item: .* is not among the 4 known ids, such as .*50.* and .*10"):
        related(FACTORS, RATINGS, item, k=1)


@pytest.mark.parametrize(("n_users", "n_items"), [(2, 4), (3, 5), (4, 3)])
def test_factors_of_other_table_sizes_are_refused(n_users, n_items):
    factors = init(n_users, n_items, 2, key=jax.random.key(0))
    message = rf"^factors: expected tables of \(3, 4\) users and items, as train has, got \({n_users}, {n_items}\)"
    with pytest.raises(ValueError, match=message):
        recommend(factors, RATINGS, "ann", k=1)
    with pytest.raises(ValueError, match=message):
        related(factors, RATINGS, 10, k=1)


def test_titles_of_another_length_are_refused():
    for call in (
        lambda: recommend(FACTORS, RATINGS, "ann", titles=TITLES[:3], k=1),
        lambda: related(FACTORS, RATINGS, 10, titles=TITLES[:3], k=1),
    ):
        with pytest.raises(ValueError, match=r"^titles: expected one per item \(4\), got 3"):
            call()


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_of_the_catalogs_size_is_refused(k):
    with pytest.raises(ValueError, match=rf"^k: expected between 1 and the catalog's 4 items, got {k}"):
        recommend(FACTORS, RATINGS, "ann", k=k)
    with pytest.raises(ValueError, match=rf"^k: expected between 1 and 3, the other items of the catalog, got {k}"):
        related(FACTORS, RATINGS, 10, k=k)


def test_a_model_that_diverged_is_refused():
    with pytest.raises(ValueError, match="scorer: expected finite predictions"):
        recommend(dataclasses.replace(FACTORS, mu=jnp.array(jnp.nan)), RATINGS, "ann", k=2)
