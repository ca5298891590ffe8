"""The formulas as slow NumPy loops: no jax, no broadcasting, nothing shared with the library.

i is an item and j a user; y, where and weights are [n_items, n_users]. Masked entries are never read.
"""

import math

import numpy as np


def squared_error(prediction, target):
    return (prediction - target) ** 2


def half_squared_error(prediction, target):
    return (prediction - target) ** 2 / 2


def absolute_error(prediction, target):
    return prediction - target if prediction > target else target - prediction


def logistic(prediction, target):
    """-y log g(z) - (1 - y) log(1 - g(z)), as the lecture notes print it: accurate for moderate logits only."""
    g = 1 / (1 + math.exp(-prediction))
    return -target * math.log(g) - (1 - target) * math.log(1 - g)


def total(loss, prediction, target, where=None, weights=None):
    """(sum, count) of a pointwise loss."""
    loss_sum, count = 0.0, 0.0
    for k in np.ndindex(np.shape(prediction)):
        if where is None or where[k]:
            weight = 1.0 if weights is None else weights[k]
            loss_sum += weight * loss(prediction[k], target[k])
            count += weight
    return loss_sum, count


def half_squared_norm(row):
    return sum(element**2 for element in row) / 2


def user_cost(w, b, x, y, where, *, l2, loss=half_squared_error, weights=None, offset=0.0, l2_bias=0.0):
    """The cost of one user: w [d], b a number, x [n_items, d], y and where [n_items], offset a number or [n_items]."""
    out = l2 * half_squared_norm(w) + l2_bias * b**2 / 2
    for i in range(len(x)):
        if where[i]:
            prediction = sum(w[k] * x[i][k] for k in range(len(w))) + b + _at(offset, i)
            out += (1.0 if weights is None else weights[i]) * loss(prediction, y[i])
    return out


def item_cost(x, w, b, y, where, *, l2, loss=half_squared_error, weights=None, c=None, offset=0.0, l2_bias=0.0):
    """The cost of one item: x [d], w [n_users, d], b, y and where [n_users], c a number or None."""
    out = l2 * half_squared_norm(x) + (0.0 if c is None else l2_bias * c**2 / 2)
    for j in range(len(w)):
        if where[j]:
            prediction = sum(w[j][k] * x[k] for k in range(len(x))) + b[j] + (0.0 if c is None else c) + offset
            out += (1.0 if weights is None else weights[j]) * loss(prediction, y[j])
    return out


def cost(w, b, x, c, mu, y, where, *, l2, loss=half_squared_error, weights=None, l2_bias=0.0):
    """The joint cost J: w [n_users, d], b [n_users], x [n_items, d], c [n_items] or None, mu also a number."""
    (l2_users, l2_items), (bias_users, bias_items) = _pair(l2), _pair(l2_bias)
    out = 0.0
    for j in range(len(w)):
        out += _at(l2_users, j) * half_squared_norm(w[j]) + _at(bias_users, j) * b[j] ** 2 / 2
    for i in range(len(x)):
        out += _at(l2_items, i) * half_squared_norm(x[i])
        out += 0.0 if c is None else _at(bias_items, i) * c[i] ** 2 / 2
    for i in range(len(x)):
        for j in range(len(w)):
            if where[i][j]:
                prediction = sum(w[j][k] * x[i][k] for k in range(len(x[i]))) + b[j]
                prediction += (0.0 if c is None else c[i]) + (0.0 if mu is None else _at(mu, i))
                out += (1.0 if weights is None else weights[i][j]) * loss(prediction, y[i][j])
    return out


def central_differences(function, at, step=1e-5):
    """The gradient of a scalar function at an array or number: (f(a + h) - f(a - h)) / 2h for each entry."""
    at = np.array(at, np.float64)
    out = np.zeros(at.shape)
    for k in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[k] += step
        down[k] -= step
        out[k] = (function(up) - function(down)) / (2 * step)
    return out


def assert_same_top_k(found, expected):
    """Checks (scores, int32 ids) of a search, exactly."""
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[1].dtype == np.int32


def _at(per_row, row):
    return per_row[row] if np.ndim(per_row) else per_row


def _pair(strength):
    return strength if isinstance(strength, tuple) else (strength, strength)
