"""Errors without a user against refits without that user."""

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.solvers import linear


def random_case(n_users, n_items, seed=0):
    """(train, X); user 0 and item 0 have nothing, and user 1 has all the others, one of them twice as heavy."""
    rng = np.random.default_rng(seed)
    x = (rng.random((n_users, n_items)) < 0.2) * 1.0
    x[1] = 1
    x[1, 3] = 2
    x[0], x[:, 0] = 0, 0
    user, item = np.nonzero(x)
    weights = x[user, item].astype(np.float32)
    return Ratings(user, item, np.ones(len(user)), n_users, n_items, weights=weights), x


def refitted_errors(x, l2, zero_diagonal):
    errors = []
    for user, row in enumerate(x):
        others = np.delete(x, user, axis=0)
        p = np.linalg.inv(others.T @ others + l2 * np.eye(x.shape[1]))
        weights = np.eye(x.shape[1]) - (p / np.diag(p) if zero_diagonal else l2 * p)
        errors.append(np.sum((row - row @ weights) ** 2))
    return np.array(errors)


@pytest.mark.parametrize("sizes", [(24, 13), (11, 20)])
@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("zero_diagonal", [True, False])
def test_the_errors_are_those_of_refits(zero_diagonal, form, sizes):
    train, x = random_case(*sizes)
    strengths = np.array([[0.7, 3.0, 40.0]])
    found = linear.leave_one_user_out(train, l2=strengths, zero_diagonal=zero_diagonal, form=form)
    assert found.shape == (1, 3, sizes[0])
    for l2, errors in zip(strengths[0], found[0], strict=True):
        np.testing.assert_allclose(errors, refitted_errors(x, l2, zero_diagonal), rtol=3e-4, atol=1e-6)


def test_one_penalty_gives_one_error_per_user():
    train, x = random_case(24, 13)
    np.testing.assert_allclose(linear.leave_one_user_out(train, l2=2.0), refitted_errors(x, 2.0, True), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": np.array([1.0, 0.0])}, "l2: expected finite numbers > 0, got 0"),
        ({"l2": np.array([1.0, np.nan])}, "l2: expected finite numbers > 0, got nan"),
        ({"l2": 1.0, "form": "low_rank"}, "form: expected one of 'primal', 'dual', got 'low_rank'"),
        ({"l2": 1.0, "form": "primal", "max_bytes": 100_000}, "form='primal': .* more than the .* form='dual' takes"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(options, message):
    train, _ = random_case(10, 20)
    with pytest.raises(ValueError, match=message):
        linear.leave_one_user_out(train, **options)
