"""Evaluation of users, scores and arguments that have nothing to give, under every option: as lists are, or refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.evaluation import evaluate
from tests.evaluation.test_scorers import NAMES, by_lists

N_ITEMS, LENGTHS = 6, (2, 9)  # 9: above the catalog
TRAIN = {0: (0, 1), 2: (0, 1, 2, 3, 4), 3: tuple(range(N_ITEMS))}
TEST = {0: (2, 5), 2: (5,), 3: (4,)}
# user 0 is as others are; 1 has nothing relevant; 2 has seen all but the relevant item; 3 has seen everything
ALL_USERS, ONE_USER = 4, 1

NEGATIVES = np.array([[1, 3, 4], [0, 1, 2], [0, 5, 5], [3, 2, 1]])
ALLOWED = np.array([True, False, True, True, False, True])
OPTIONS = {
    "masked": {},
    "worst": {"ties": "worst"},
    "expected": {"ties": "expected"},
    "seen ranked": {"mask_seen": False},
    "seen ranked, expected": {"mask_seen": False, "ties": "expected"},
    "no train": {"train": None},
    "allowed": {"allowed": ALLOWED},
    "allowed, worst": {"allowed": ALLOWED, "ties": "worst"},
    "negatives": {"negatives": NEGATIVES},
    "negatives, expected": {"negatives": NEGATIVES, "ties": "expected"},
}
SCORES = {
    "of few levels": np.array([[1, 2, 1, 2, 1, 2]] * ALL_USERS, np.float32),
    "constant": np.ones((ALL_USERS, N_ITEMS), np.float32),
    "-infinity for some": np.array([[-np.inf, 2, 1, -np.inf, 3, 1]] * ALL_USERS, np.float32),
    "-infinity for all": np.full((ALL_USERS, N_ITEMS), -np.inf, np.float32),
}


def looked_up(table, users):
    """One function for all cases: what is compiled depends on the options alone."""
    return table[users]


def pairs(items_of, n_users, **ids):
    user = [j for j, items in items_of.items() if j < n_users for _ in items]
    item = [i for j, items in items_of.items() if j < n_users for i in items]
    return Ratings(user, item, np.ones(len(user)), n_users, N_ITEMS, **ids)


def run(name, table, n_users=ALL_USERS, scorer=looked_up, **more):
    options = {"train": pairs(TRAIN, n_users), "k": LENGTHS, "overlap": "drop"} | OPTIONS[name] | more
    if options.get("negatives") is not None:
        options["negatives"] = options["negatives"][:n_users]
    state = None if table is None else jnp.asarray(table[:n_users])
    return evaluate(scorer, options.pop("train"), pairs(TEST, n_users), state=state, **options)


def expected_of(name, table, user, k):
    """The metrics of one user by lists; NaN without anything relevant that can be found."""
    options = OPTIONS[name]
    seen = set() if "train" in options or not options.get("mask_seen", True) else set(TRAIN.get(user, ()))
    relevant = [i for i in TEST.get(user, ()) if i not in seen]
    candidates = set(range(N_ITEMS))
    if "allowed" in options:
        candidates = set(np.flatnonzero(ALLOWED))
    if "negatives" in options:
        candidates = set(NEGATIVES[user]) | set(relevant)
    if not relevant:
        return np.full(len(NAMES), np.nan)
    return by_lists(table[user], relevant, sorted(candidates - seen), k, options.get("ties", "lowest_id"))


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("name", OPTIONS)
def test_users_and_scores_with_nothing_to_give_have_the_metrics_of_their_lists(name, scores):
    table = SCORES[scores]
    found = run(name, table)
    for k in LENGTHS:
        for user in range(ALL_USERS):
            got = [found.per_user[f"{metric}@{k}"][user] for metric in NAMES]
            np.testing.assert_allclose(got, expected_of(name, table, user, k), atol=1e-6, err_msg=f"{user} {k}")
    is_masked = "train" not in OPTIONS[name] and OPTIONS[name].get("mask_seen", True)
    # the same users for all scorers, or models could not be compared
    assert found.left_out == {"without relevant items": 1, "with all of them in train": int(is_masked)}
    assert found.n_users == 3 - is_masked


@pytest.mark.parametrize("name", OPTIONS)
def test_one_user_is_evaluated_without_a_standard_error(name):
    table = SCORES["of few levels"]
    found = run(name, table, ONE_USER)
    np.testing.assert_allclose(
        [found.per_user[f"{metric}@9"][0] for metric in NAMES], expected_of(name, table, 0, 9), atol=1e-6
    )
    assert found.n_users == 1
    assert all(np.isnan(error) for error in found.standard_error.values())
    assert set(found.to_dict()["standard_error"].values()) == {None}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", OPTIONS)
def test_scores_that_are_nan_or_infinite_are_refused_wherever_they_are(name, bad):
    """Also those of items that are not ranked: a model that gives them has diverged."""
    for user, item in ((0, 0), (0, 3), (2, 5)):
        table = SCORES["of few levels"].copy()
        table[user, item] = bad
        with pytest.raises(ValueError, match=rf"got NaN or \+infinity for user {user}\. Has training diverged\?"):
            run(name, table)


@pytest.mark.parametrize("name", OPTIONS)
def test_scorers_of_the_wrong_width_and_other_raw_ids_are_refused(name):
    for width in (N_ITEMS - 1, N_ITEMS + 1):
        with pytest.raises(
            ValueError, match=rf"expected scores \[n, {N_ITEMS}\].*got an array of shape \(2, {width}\)"
        ):
            run(name, np.ones((ALL_USERS, width), np.float32))
    with pytest.raises(ValueError, match="got an array of shape"):
        run(name, None, scorer=lambda users: jnp.zeros(N_ITEMS))
    if OPTIONS[name].get("train", "") is None:
        return
    train = pairs(TRAIN, ALL_USERS, user_ids=["a", "b", "c", "d"], item_ids=np.arange(N_ITEMS))
    test = pairs(TEST, ALL_USERS, user_ids=["a", "b", "d", "c"], item_ids=np.arange(N_ITEMS))
    with pytest.raises(ValueError, match="expected the same user ids, got 'c' in train and 'd' in test"):
        evaluate(looked_up, train, test, state=jnp.asarray(SCORES["constant"]), k=2, **OPTIONS[name])


@pytest.mark.parametrize("scores", SCORES)
def test_pairs_in_both_parts_are_an_error_whatever_their_scores(scores):
    for name in OPTIONS:
        if "train" not in OPTIONS[name] and OPTIONS[name].get("mask_seen", True):
            with pytest.raises(ValueError, match="test: 1 pairs are in `train` too, such as user 3 and item 4"):
                run(name, SCORES[scores], overlap="error")


@pytest.mark.parametrize("name", OPTIONS)
def test_nobody_with_anything_relevant_gives_nan_and_null(name):
    nothing = Ratings([], [], [], ALL_USERS, N_ITEMS)
    options = {"train": pairs(TRAIN, ALL_USERS)} | OPTIONS[name]
    found = evaluate(looked_up, options.pop("train"), nothing, k=2, state=jnp.ones((ALL_USERS, N_ITEMS)), **options)
    assert found.n_users == 0
    assert found.left_out["without relevant items"] == ALL_USERS
    assert all(np.isnan(mean) for mean in found.mean.values())
    assert set(found.to_dict()["mean"].values()) == {None}
