"""Losses for implicit feedback: the laws of the pointwise losses, each tested for every loss in CASES.

A case has arrays with one row per entry, arrays that all entries share, and the loss of one entry as a slow loop.
"""

import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import losses
from jaxrec.losses import softmax
from tests import reference

N, M, D, C, E = 6, 8, 3, 4, 3
BIAS = np.random.default_rng(9).normal(size=M)
TEMPERATURE = 0.7


class Case(NamedTuple):
    call: object  # call(rows, shared, where=, weights=) -> Total
    oracle: object  # oracle(one row, shared) -> (its loss, its count)
    rows: tuple  # names of the float arrays of an entry, which have gradients
    shared: tuple = ()


def draw(seed=0):
    """Rows (leading axis N) and shared arrays of all cases."""
    rng = np.random.default_rng(seed)
    rows = {
        "positive": rng.normal(size=N),
        "negative": rng.normal(size=(N, C)),
        "negative_where": rng.random((N, C)) < 0.7,
        "v_user": rng.normal(size=(N, D)),
        "own": rng.normal(size=(N, D)),
        "item": rng.integers(0, M, N),
        "items": rng.integers(0, M, (N, E)),
        "items_where": np.arange(E) < rng.integers(1, E + 1, N)[:, None],
        "ids": rng.integers(0, M, (N, C)),
        "v_negative": rng.normal(size=(N, C, D)),
        "log_q": np.log(rng.random((N, C))),
    }
    rows["ids"][1, 2] = rows["item"][1]  # accidental hits
    rows["negative_where"][2] = False  # an entry without negatives
    shared = {
        "v_item": rng.normal(size=(M, D)),
        "v_shared": rng.normal(size=(C, D)),
        "shared_ids": rng.integers(0, M, C),
    }
    shared["shared_ids"][0] = rows["item"][0]
    shared["shared_log_q"] = np.log(rng.random(C))
    return rows, shared


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


def pairs_of(row):
    return [(row["positive"], n) for n, valid in zip(row["negative"], row["negative_where"], strict=True) if valid]


def bpr(row, _):
    pairs = pairs_of(row)
    return sum(-log_sigmoid(p - n) for p, n in pairs), len(pairs)


def hinge(row, _):
    pairs = pairs_of(row)
    return sum(max(0, 0.5 - p + n) for p, n in pairs), len(pairs)


def warp(row, _):
    for trial, (p, n) in enumerate(pairs_of(row), start=1):
        if 0.5 - p + n > 0:
            return sum(1 / r for r in range(1, (100 - 1) // trial + 1)) * (0.5 - p + n), 1
    return 0, 1


def cross_entropy(beta):
    def oracle(row, _):
        return -beta * log_sigmoid(row["positive"]) - sum(log_sigmoid(-n) for _, n in pairs_of(row)), 1

    return oracle


def softmax_of(scores, k):
    return -math.log(math.exp(scores[k]) / sum(math.exp(s) for s in scores))


def catalogue(row, shared):
    scores = [row["v_user"] @ v / TEMPERATURE + b for v, b in zip(shared["v_item"], BIAS, strict=True)]
    return softmax_of(scores, row["item"]), 1


def catalogue_of_lists(row, shared):
    scores = [row["v_user"] @ v for v in shared["v_item"]]
    items = row["items"][row["items_where"]]
    return sum(softmax_of(scores, i) for i in items), len(items)


def sampled(row, ids, vectors, log_q, valid):
    scores = [row["v_user"] @ row["own"] / TEMPERATURE]
    for i, v, q, counts in zip(ids, vectors, log_q, valid, strict=True):
        if counts and i != row["item"]:
            scores.append(row["v_user"] @ v / TEMPERATURE - q - math.log(C))
    return softmax_of(scores, 0), 1


PAIR = ("positive", "negative")
BETA = 4 / 99 * (0.6 * (1 - 99 / 4) + 99 / 4)
pairwise = lambda loss, **options: (
    lambda rows, _, **masks: loss(
        rows["positive"], rows["negative"], negative_where=rows["negative_where"], **options, **masks
    )
)


def call_lists(rows, shared, *, where=None, weights=None):
    valid = rows["items_where"] if where is None else rows["items_where"] & where[:, None]
    weights = None if weights is None else jnp.broadcast_to(weights[:, None], valid.shape)
    return losses.catalogue_softmax(rows["v_user"], shared["v_item"], rows["items"], where=valid, weights=weights)


CASES = {
    "bpr": Case(pairwise(losses.bpr), bpr, PAIR),
    "hinge": Case(pairwise(losses.hinge, margin=0.5), hinge, PAIR),
    "warp": Case(pairwise(losses.warp, margin=0.5, n_items=100), warp, PAIR),
    "bce": Case(pairwise(losses.bce), cross_entropy(1), PAIR),
    "gbce": Case(pairwise(losses.gbce, n_items=100, t=0.6), cross_entropy(BETA), PAIR),
    "catalogue": Case(
        lambda rows, shared, **masks: losses.catalogue_softmax(
            rows["v_user"], shared["v_item"], rows["item"], bias=jnp.asarray(BIAS, rows["v_user"].dtype),
            temperature=TEMPERATURE, **masks,
        ),
        catalogue,
        ("v_user",),
        ("v_item",),
    ),
    "catalogue of lists": Case(call_lists, catalogue_of_lists, ("v_user",), ("v_item",)),
    "sampled, shared": Case(
        lambda rows, shared, **masks: softmax.sampled(
            rows["v_user"], rows["own"], shared["v_shared"], rows["item"], shared["shared_ids"],
            log_q=shared["shared_log_q"], temperature=TEMPERATURE, negative_where=rows["negative_where"], **masks,
        ),
        lambda row, shared: sampled(
            row, shared["shared_ids"], shared["v_shared"], shared["shared_log_q"], row["negative_where"]
        ),
        ("v_user", "own"),
        ("v_shared",),
    ),
    "sampled, own": Case(
        lambda rows, _, **masks: softmax.sampled(
            rows["v_user"], rows["own"], rows["v_negative"], rows["item"], rows["ids"], log_q=rows["log_q"],
            temperature=TEMPERATURE, negative_where=rows["negative_where"], **masks,
        ),
        lambda row, _: sampled(row, row["ids"], row["v_negative"], row["log_q"], row["negative_where"]),
        ("v_user", "own", "v_negative"),
    ),
}  # fmt: skip
EAGER = {name: case.call for name, case in CASES.items()}
# one program for a law, where eager calls compile every operation for itself
CASES = {name: case._replace(call=jax.jit(case.call)) for name, case in CASES.items()}
every_loss = pytest.mark.parametrize("name", CASES)
MASK, WEIGHTS = np.array([1, 0, 1, 1, 0, 1], bool), np.array([2.0, 1.0, 3.0, 0.0, 1.0, 1.0])


def used(name, seed=0):
    """The arrays of a case in NumPy: the floats first, so that strict promotion does not meet what is not used."""
    rows, shared = draw(seed)
    return rows, shared


def on_device(tree, dtype=None):
    convert = lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else None)
    return jax.tree.map(convert, tree)


def expected_total(name, rows, shared, where=None, weights=None):
    total = count = 0.0
    for n in range(len(rows["positive"])):
        if where is None or where[n]:
            weight = 1 if weights is None else weights[n]
            loss, size = CASES[name].oracle({key: array[n] for key, array in rows.items()}, shared)
            total, count = total + weight * loss, count + weight * size
    return total, count


def total_of(name, rows, shared, where=None, weights=None):
    masks = {key: None if a is None else jnp.asarray(a) for key, a in {"where": where, "weights": weights}.items()}
    return CASES[name].call(on_device(rows), on_device(shared), **masks)


def assert_same(got, expected, rtol=1e-9):
    expected = (
        (expected.sum, expected.count) if hasattr(expected, "count") and not isinstance(expected, tuple) else expected
    )
    np.testing.assert_allclose((got.sum, got.count), expected, rtol=rtol, atol=1e-12)


take = lambda rows, index: {key: array[index] for key, array in rows.items()}


@every_loss
@pytest.mark.parametrize("where", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["no weights", "weights"])
def test_sum_and_count_equal_the_loop(x64, name, where, weights):
    rows, shared = draw()
    got = total_of(name, rows, shared, where, weights)
    assert_same(got, expected_total(name, rows, shared, where, weights))
    assert got.sum.shape == got.count.shape == ()


@every_loss
def test_masks_delete_weights_repeat_totals_add_and_the_order_does_not_matter(x64, name):
    rows, shared = draw()
    masked = total_of(name, rows, shared, MASK, WEIGHTS)
    assert_same(total_of(name, take(rows, MASK), shared, None, WEIGHTS[MASK]), masked)
    assert_same(
        total_of(name, take(rows, np.repeat(np.arange(N), WEIGHTS.astype(int))), shared),
        total_of(name, rows, shared, None, WEIGHTS),
    )
    parts = [total_of(name, take(rows, part), shared, MASK[part]) for part in (slice(2), slice(2, None))]
    assert_same(parts[0] + parts[1], total_of(name, rows, shared, MASK))
    order = np.random.default_rng(1).permutation(N)
    assert_same(total_of(name, take(rows, order), shared, MASK[order], WEIGHTS[order]), masked)
    assert abs(float(masked.sum - total_of(name, rows, shared).sum)) > 1e-3  # an ignored mask would be noticed


@every_loss
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e300])
def test_masked_garbage_changes_neither_value_nor_gradient(x64, name, garbage):
    case = CASES[name]
    rows, shared = on_device(draw())

    def value_and_gradients(rows, weights):
        floats = {key: rows[key] for key in case.rows}, {key: shared[key] for key in case.shared}, weights
        loss = lambda r, s, w: case.call(rows | r, shared | s, where=jnp.asarray(MASK), weights=w).sum
        return jax.value_and_grad(loss, (0, 1, 2))(*floats)

    column = lambda mask, array: mask.reshape(-1, *[1] * (array.ndim - 1))
    spoil = lambda array: jnp.where(column(jnp.asarray(MASK), array), array, garbage)
    spoiled = rows | {key: spoil(rows[key]) for key in case.rows}
    for key, mask in (("negative", "negative_where"), ("v_negative", "negative_where"), ("log_q", "negative_where")):
        valid = rows[mask] if rows[key].ndim == 2 else rows[mask][..., None]
        spoiled[key] = jnp.where(valid, spoiled[key], garbage)
    clean, dirty = (
        value_and_gradients(rows, jnp.asarray(WEIGHTS)),
        value_and_gradients(spoiled, spoil(jnp.asarray(WEIGHTS))),
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for gradient in [*dirty[1][0].values(), dirty[1][2]]:
        assert (gradient[~MASK] == 0).all()


@every_loss
def test_masked_entries_alone_and_no_entries_are_zero_with_a_zero_gradient(name):
    case = CASES[name]
    rows, shared = on_device(draw(), jnp.float32)
    loss = lambda r: case.call(rows | r, shared, where=jnp.zeros(N, bool))
    nan = {key: jnp.full_like(rows[key], jnp.nan) for key in case.rows}
    assert (float(loss(nan).sum), float(loss(nan).count)) == (0, 0)
    for gradient in jax.grad(lambda r: loss(r).sum)(nan).values():
        assert (gradient == 0).all()
    nothing = case.call(take(rows, slice(0)), shared)
    assert (float(nothing.sum), float(nothing.count)) == (0, 0)


@every_loss
def test_vmap_equals_a_loop_and_jit_equals_eager_with_one_trace(name):
    traces = []
    batch = [on_device(draw(seed), jnp.float32) for seed in (0, 1)]

    @jax.jit
    def total(rows, shared):
        traces.append(name)
        return EAGER[name](rows, shared, where=jnp.asarray(MASK))

    stacked = jax.vmap(total)(*jax.tree.map(lambda *pair: jnp.stack(pair), *batch))
    traces.clear()
    for k, (rows, shared) in enumerate(batch):
        got, eager = total(rows, shared), EAGER[name](rows, shared, where=jnp.asarray(MASK))
        assert_same(got, (eager.sum, eager.count), rtol=1e-5)
        np.testing.assert_allclose((stacked.sum[k], stacked.count[k]), (eager.sum, eager.count), rtol=1e-5)
        assert eager.sum.dtype == eager.count.dtype == jnp.float32
    assert len(traces) <= 1


@every_loss
def test_gradients_equal_finite_differences_of_the_loop(x64, name):
    case = CASES[name]
    rows, shared = draw()
    loss = lambda r, s, w: case.call(on_device(rows) | r, on_device(shared) | s, where=jnp.asarray(MASK), weights=w).sum
    floats = {key: rows[key] for key in case.rows}, {key: shared[key] for key in case.shared}
    got = jax.grad(loss, (0, 1, 2))(*on_device(floats), jnp.asarray(WEIGHTS))
    oracle = lambda r, s, w: expected_total(name, rows | r, shared | s, MASK, w)[0]
    for key in case.rows:
        expected = reference.central_differences(lambda a, key=key: oracle({key: a}, {}, WEIGHTS), rows[key])
        np.testing.assert_allclose(got[0][key], expected, rtol=1e-6, atol=1e-7)
    for key in case.shared:
        expected = reference.central_differences(lambda a, key=key: oracle({}, {key: a}, WEIGHTS), shared[key])
        np.testing.assert_allclose(got[1][key], expected, rtol=1e-6, atol=1e-7)
    expected = reference.central_differences(lambda a: oracle({}, {}, a), WEIGHTS)
    np.testing.assert_allclose(got[2], expected, rtol=1e-6, atol=1e-7)


@cache
def value_and_gradients(loss, **options):
    """As one program for all scores."""
    function = lambda positive, negative: getattr(losses, loss)(positive, negative, **options).sum
    return jax.jit(jax.value_and_grad(function, (0, 1)))


@pytest.mark.parametrize("loss", ["bpr", "hinge", "warp", "bce", "gbce"])
@pytest.mark.parametrize("p", [-np.inf, -1e4, 0.0, 1e4, np.inf])
@pytest.mark.parametrize("n", [-np.inf, -1e4, 0.0, 1e4, np.inf])
def test_extreme_scores_cost_nothing_if_right_and_are_never_nan(loss, p, n):
    options = {"n_items": 3} if loss in ("warp", "gbce") else {}
    value, gradients = value_and_gradients(loss, **options)(jnp.array([p]), jnp.array([[n]]))
    assert not np.isnan(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    if p > n and (loss in ("bpr", "hinge", "warp") or p > 0 > n):
        assert float(value) == 0
    if p == -np.inf and n == np.inf:
        assert float(value) == np.inf
    if p == n and loss == "bpr":
        assert float(value) == pytest.approx(math.log(2))


def test_warp_by_hand():
    """Of 10 items, the second trial violates: rank floor(9 / 2) = 4, weight 1 + 1/2 + 1/3 + 1/4."""
    positive, negative = jnp.array([2.0]), jnp.array([[0.0, 1.5, 9.0]])
    value, gradient = jax.value_and_grad(lambda n: losses.warp(positive, n, n_items=10).sum)(negative)
    weight = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert float(value) == pytest.approx(weight * (1 - 2 + 1.5), rel=1e-6)
    np.testing.assert_allclose(gradient, [[0, weight, 0]], rtol=1e-6)
    masked = losses.warp(positive, negative, n_items=10, negative_where=jnp.array([[False, True, True]]))
    assert float(masked.sum) == pytest.approx(sum(1 / r for r in range(1, 10)) / 2, rel=1e-6)  # the first trial now
    alone = losses.warp(jnp.array([0.0]), jnp.array([[0.0]]), n_items=10**6)
    assert float(alone.sum) == pytest.approx(math.log(999_999) + 0.5772157, rel=1e-6)


def test_gbce_is_bce_at_t_0_and_calibrates_at_t_1():
    """At t = 1 the best score of an item chosen with probability q among uniform negatives has g(score) = q."""
    positive, negative = jnp.array([0.3]), jnp.array([[0.1, -2.0]])
    assert float(losses.gbce(positive, negative, n_items=50, t=0.0).sum) == pytest.approx(
        float(losses.bce(positive, negative).sum), rel=1e-6
    )
    # one of n - 1 other items is drawn: expected loss -q log^beta g(s) - (1 - q)/(n - 1) log(1 - g(s)) at one item
    q, n = 0.2, 5
    beta_times_alpha = lambda s: q * losses.gbce(s[None], jnp.array([[-jnp.inf]]), n_items=n, t=1.0).sum
    negative_part = lambda s: (1 - q) / (n - 1) * losses.gbce(jnp.array([jnp.inf]), s[None, None], n_items=n).sum
    score = jnp.log(q / (1 - q))
    assert float(jax.grad(lambda s: beta_times_alpha(s) + negative_part(s))(score)) == pytest.approx(0, abs=1e-6)


def test_sampled_softmax_of_every_item_once_is_the_catalogue_softmax(x64):
    rows, shared = on_device(draw())
    every = jnp.arange(M)
    expected = losses.catalogue_softmax(rows["v_user"], shared["v_item"], rows["item"], temperature=0.3)
    got = softmax.sampled(
        rows["v_user"], shared["v_item"][rows["item"]], shared["v_item"], rows["item"], every,
        log_q=jnp.full(M, -np.log(M)), temperature=0.3,
    )  # fmt: skip
    assert_same(got, (expected.sum, expected.count))


def test_the_correction_makes_the_sum_over_negatives_unbiased(x64):
    """The expected exp(loss) exp(own score) over all draws of one negative is the catalog's sum of exp(score)."""
    rng = np.random.default_rng(0)
    v, u, q = jnp.asarray(rng.normal(size=(M, D))), jnp.asarray(rng.normal(size=D)), rng.dirichlet(np.ones(M))
    own, expected = v[2] @ u, 0.0
    for i in range(M):
        loss = softmax.sampled(
            u[None], v[2:3], v[i : i + 1], jnp.array([2]), jnp.array([i]), log_q=jnp.log(jnp.asarray(q[i : i + 1]))
        ).sum
        expected += q[i] * float(jnp.exp(loss + own))
    assert expected == pytest.approx(float(jnp.sum(jnp.exp(v @ u))), rel=1e-10)


def test_sampled_softmax_leaves_out_what_cannot_be_drawn_and_refuses_what_is_no_probability():
    u, log_q = jnp.ones((2, D)), jnp.array([0.0, -jnp.inf])
    for vectors, ids, q in (
        (u, jnp.array([5, 6]), log_q),
        (jnp.ones((2, 2, D)), jnp.array([[5, 6]] * 2), jnp.stack([log_q] * 2)),
    ):
        value, gradient = jax.value_and_grad(
            lambda n, ids=ids, q=q: softmax.sampled(u, u, n, jnp.array([1, 2]), ids, log_q=q).sum
        )(vectors)
        assert float(value) == pytest.approx(2 * math.log(1.5), rel=1e-5)  # the other one's weight is 1/c = 1/2
        assert np.isfinite(gradient).all()
        with pytest.raises(ValueError, match="log_q: expected logarithms"):
            softmax.sampled(u, u, vectors, jnp.array([1, 2]), ids, log_q=jnp.full_like(q, jnp.nan))
    none = softmax.sampled(u, u, jnp.ones((0, D)), jnp.array([1, 2]), jnp.zeros(0, int))
    assert (float(none.sum), float(none.count)) == (0, 2)


def test_an_infinite_bias_decides_the_catalogue_softmax():
    v_user, v_item, item = jnp.ones((3, 1)), jnp.zeros((4, 1)), jnp.array([0, 1, 2])

    def loss(bias):
        one = lambda b: losses.catalogue_softmax(v_user[:1], v_item, item[:1], bias=b).sum
        value, gradient = jax.value_and_grad(one)(jnp.array(bias))
        assert np.isfinite(gradient).all()
        return float(value)

    assert loss([0.0, 0.0, 0.0, -np.inf]) == pytest.approx(math.log(3), rel=1e-6)
    assert loss([-np.inf, 0.0, 0.0, 0.0]) == np.inf
    assert loss([np.inf, 0.0, np.inf, 0.0]) == pytest.approx(math.log(2), rel=1e-6)
    assert loss([0.0, 0.0, np.inf, 0.0]) == np.inf
    assert loss([-np.inf] * 4) == pytest.approx(math.log(4), rel=1e-6)
    weights = jnp.array([0.0, 1.0, 1.0])
    total = losses.catalogue_softmax(v_user, v_item, item, bias=jnp.array([-jnp.inf, 0, 0, 0]), weights=weights)
    assert float(total.sum) == pytest.approx(2 * math.log(3), rel=1e-6)


def test_large_scores_lose_no_digits_of_value_and_gradient():
    """At 100,000 a float32 has a step of 1/128; the differences of scores, and what they decide, are exact."""
    v_user, v_item = jnp.array([[1e5, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    own, other = v_item[:1], v_item[1:]
    calls = {
        "catalogue": lambda v: losses.catalogue_softmax(v, v_item, jnp.array([0])).sum,
        "sampled": lambda v: softmax.sampled(v, own, other, jnp.array([0]), jnp.array([1, 2])).sum,
    }
    for call in calls.values():
        value, gradient = jax.value_and_grad(call)(v_user)
        assert float(value) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-6)
        assert float(gradient[0, 1]) == pytest.approx(2 * math.exp(2) / (1 + math.exp(2)), rel=1e-6)


def test_every_input_of_the_catalogue_softmax_has_the_gradient_of_the_dense_form(x64):
    rows, shared = on_device(draw())
    args = rows["v_user"], shared["v_item"], jnp.asarray(BIAS), jnp.asarray(0.4), jnp.asarray(WEIGHTS)

    def dense(u, v, bias, temperature, weights):
        log_p = jax.nn.log_softmax(u @ v.T / temperature + bias[None, :], axis=1)
        return -jnp.sum(weights * log_p[jnp.arange(N), rows["item"]])

    def streamed(u, v, bias, temperature, weights):
        return losses.catalogue_softmax(u, v, rows["item"], bias=bias, temperature=temperature, weights=weights).sum

    got, expected = (jax.grad(f, range(5))(*args) for f in (streamed, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, expected)


WRONG = {
    "catalogue, other widths": lambda u, v, i: losses.catalogue_softmax(u[:, :2], v, i),
    "catalogue, one item for all": lambda u, v, i: losses.catalogue_softmax(u, v, i[:1]),
    "catalogue, lists of lists": lambda u, v, i: losses.catalogue_softmax(u, v, i[:, None, None]),
    "catalogue, where": lambda u, v, i: losses.catalogue_softmax(u, v, i, where=jnp.ones((N, 1), bool)),
    "catalogue, bias": lambda u, v, i: losses.catalogue_softmax(u, v, i, bias=jnp.zeros(1)),
    "catalogue, no items": lambda u, v, i: losses.catalogue_softmax(u, v[:0], i),
    "catalogue, temperature": lambda u, v, i: losses.catalogue_softmax(u, v, i, temperature=0.0),
    "sampled, negatives": lambda u, v, i: softmax.sampled(u, u, v, i, i[:1]),
    "sampled, own negatives": lambda u, v, i: softmax.sampled(u, u, v[None], i, i[None]),
    "sampled, log_q": lambda u, v, i: softmax.sampled(u, u, v, i, jnp.arange(M), log_q=jnp.zeros(1)),
    "sampled, negative_where": lambda u, v, i: softmax.sampled(
        u, u, v, i, jnp.arange(M), negative_where=jnp.ones((N, 1), bool)
    ),
    "bpr, one negative": lambda u, v, i: losses.bpr(u[:, 0], u[:, 1]),
    "bpr, shared negatives": lambda u, v, i: losses.bpr(u[:, 0], u[0]),
    "bce, where": lambda u, v, i: losses.bce(u[:, 0], u, where=jnp.ones((N, 1), bool)),
    "bce, negative_where": lambda u, v, i: losses.bce(u[:, 0], u, negative_where=jnp.ones((N, 1), bool)),
    "warp, n_items": lambda u, v, i: losses.warp(u[:, 0], u, n_items=1),
    "gbce, t": lambda u, v, i: losses.gbce(u[:, 0], u, n_items=9, t=1.5),
    "gbce, no negatives": lambda u, v, i: losses.gbce(u[:, 0], u[:, :0], n_items=9),
    "hinge, margin": lambda u, v, i: losses.hinge(u[:, 0], u, margin=-1.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_do_not_fit_are_refused(as_users_run, name):
    with pytest.raises(ValueError, match="expected"):
        WRONG[name](jnp.ones((N, D)), jnp.ones((M, D)), jnp.zeros(N, int))
