"""EASE and ridge in all forms against NumPy in float64, their derivatives, and what cannot be fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.evaluation import evaluate
from jaxrec.models.linear import histories, transposed
from jaxrec.solvers import linear
from jaxrec.solvers.linear import _dual, _inverse, _matrices, _spectrum, _weights

FORMS = ("primal", "dual", "low_rank")
FITS = {"ease": linear.ease, "ridge": linear.ridge}
# more users than items, and more items than users; the last of each has nothing
SIZES = [(31, 18), (17, 26)]


def random_case(n_users, n_items, *, weights=False, seed=0):
    """(train, X in float64)."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice((n_users - 1) * (n_items - 1), n_users * n_items // 5, replace=False)
    user, item = np.divmod(pairs, n_items - 1)
    weight = rng.integers(1, 4, len(user)).astype(np.float32) if weights else None
    x = np.zeros((n_users, n_items))
    x[user, item] = 1 if weight is None else weight
    return Ratings(user, item, np.ones(len(user)), n_users, n_items, weights=weight), x


def power(degree, exponent):
    """degree^exponent, and 0 where there is no degree; all ones for an exponent of 0."""
    degree = np.asarray(degree, np.float64)
    return np.where(degree > 0, np.where(degree > 0, degree, 1) ** exponent, 0) if exponent else np.ones(len(degree))


def weights_of(gram, l2, name):
    """The weights by the formulas."""
    p = np.linalg.inv(gram + l2 * np.eye(len(gram)))
    return np.eye(len(gram)) - p / np.diag(p) if name == "ease" else p @ gram


def scores_of(x, l2, name, user_exponent=0.0, item_exponent=0.0):
    before = power(x.sum(0), item_exponent)
    r = power(x.sum(1), user_exponent)[:, None] * x * before
    return x * before @ weights_of(r.T @ r, l2, name) * power(x.sum(0), -item_exponent)


def fit(name, train, form, **options):
    rank = min(train.n_users, train.n_items) if form == "low_rank" else None
    return FITS[name](train, form=form, rank=rank, **options)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FITS)
def test_scores_are_the_formulas(name, form, sizes):
    train, x = random_case(*sizes, weights=True)
    scorer = fit(name, train, form, l2=9.0)
    np.testing.assert_allclose(scorer(np.arange(sizes[0])), scores_of(x, 9.0, name), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FITS)
def test_degrees_weigh_both_sides_and_a_new_user_is_scored_as_the_same_user_of_train(name, form):
    train, x = random_case(31, 18)
    exponents = {"user_exponent": -0.5, "item_exponent": -0.3}
    scorer = fit(name, train, form, l2=0.5, **exponents)
    expected = scores_of(x, 0.5, name, **exponents)
    np.testing.assert_allclose(scorer(np.arange(31)), expected, atol=1e-5)
    of_user = train.user == 4
    found = scorer.scores(
        np.append(train.item[of_user], 3)[None], where=np.arange(of_user.sum() + 1)[None] < of_user.sum()
    )
    np.testing.assert_allclose(found[0], expected[4], atol=1e-5)


def test_a_lower_rank_is_that_of_the_truncated_matrix():
    train, x = random_case(31, 18)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    near = (u[:, :5] * s[:5]) @ vt[:5]
    for name in FITS:
        scorer = FITS[name](train, l2=2.0, rank=5, power_steps=20)
        w = weights_of(near.T @ near, 2.0, name)
        np.testing.assert_allclose(scorer(np.arange(31)), x @ w, atol=2e-5)


def test_ease_does_not_use_an_item_for_itself():
    train, _ = random_case(31, 18)
    w = linear.ease_weights(linear.gram(histories(train)), l2=1.0)
    np.testing.assert_array_equal(np.diag(w), 0)
    scores = linear.ease(train, l2=1.0, form="dual").scores(np.arange(18)[:, None])
    np.testing.assert_allclose(np.diag(scores), 0, atol=1e-6)


def test_the_gram_matrix_counts_shared_users(monkeypatch):
    monkeypatch.setattr("jaxrec.solvers.linear._matrices.COLUMNS", 7)  # several strips, the last shorter
    jax.clear_caches()
    train, x = random_case(31, 18, weights=True)
    np.testing.assert_allclose(linear.gram(histories(train)), x.T @ x)
    np.testing.assert_allclose(linear.gram(transposed(histories(train))), x @ x.T)
    for form in FORMS:
        np.testing.assert_allclose(
            fit("ease", train, form, l2=9.0)(np.arange(31)), scores_of(x, 9.0, "ease"), atol=1e-5
        )
    jax.clear_caches()


@pytest.mark.parametrize("name", FITS)
def test_weights_vmap_over_l2_and_differentiate(name):
    with jax.enable_x64():
        _, x = random_case(31, 18)
        gram = jnp.asarray(x.T @ x)
        function = {"ease": linear.ease_weights, "ridge": linear.ridge_weights}[name]
        strengths = jnp.array([0.5, 2.0, 30.0])
        found = jax.vmap(lambda l2: function(gram, l2=l2))(strengths)
        for l2, weights in zip(strengths.tolist(), found, strict=True):
            np.testing.assert_allclose(weights, weights_of(x.T @ x, l2, name), atol=1e-9)

        def objective(l2, gram):
            return jnp.sum(jnp.sin(3 * function(gram, l2=l2)))

        by_l2, by_gram = jax.grad(objective, argnums=(0, 1))(2.0, gram)
        step = 1e-5
        np.testing.assert_allclose(
            by_l2, (objective(2 + step, gram) - objective(2 - step, gram)) / (2 * step), rtol=1e-6
        )
        change = np.random.default_rng(1).normal(size=gram.shape)
        change = jnp.asarray(change + change.T)
        numeric = (objective(2.0, gram + step * change) - objective(2.0, gram - step * change)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(by_gram * change), numeric, rtol=1e-5)


# Strips that end with a block, or within it; a last strip that is smaller; fewer strips than parts, and more.
@pytest.mark.parametrize(
    ("n", "block", "small", "rows", "parts"),
    [
        (0, 4, 4, 4, 8),
        (1, 256, 32, 256, 8),
        (12, 4, 2, 6, 2),
        (12, 4, 3, 4, 8),
        (13, 4, 1, 5, 1),
        (14, 5, 2, 3, 3),
        (9, 9, 4, 2, 2),
        (23, 6, 4, 2, 4),
        (24, 3, 3, 4, 5),
    ],
)
def test_the_inverse_in_blocks_is_that_of_numpy(n, block, small, rows, parts, monkeypatch):
    sizes = {"BLOCK": block, "SMALL_BLOCK": small, "STRIP_ROWS": rows, "PARTS": parts}
    for name, size in sizes.items():
        monkeypatch.setattr(_inverse, name, size)
    factor = np.random.default_rng(n).normal(size=(2 * n, n)) * np.geomspace(1, 50, n)
    matrix = factor.T @ factor
    found = jax.jit(lambda a: _inverse.inverse(a))(jnp.asarray(matrix, jnp.float32))
    scale = np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))  # columns of size 1 and 50
    np.testing.assert_allclose(found.matrix * scale, np.linalg.inv(matrix) * scale, atol=2e-5)
    pivots = np.diag(np.linalg.cholesky(matrix)) ** 2
    np.testing.assert_allclose(found.pivot_ratio, np.min(pivots / np.diag(matrix), initial=1), rtol=1e-4)


def test_one_penalty_per_item():
    _, x = random_case(31, 18)
    l2 = np.random.default_rng(2).uniform(1, 9, 18)
    p = np.linalg.inv(x.T @ x + np.diag(l2))
    gram = (x.T @ x).astype(np.float32)
    found = linear.ease_weights(gram, l2=l2.astype(np.float32))
    np.testing.assert_allclose(found, np.eye(18) - p / np.diag(p), atol=1e-5)
    np.testing.assert_allclose(linear.ridge_weights(gram, l2=l2.astype(np.float32)), p @ x.T @ x, atol=1e-5)


def item_by_item(x, l2, zero_diagonal):
    """W, each column by its own regression on the other items (or on all), with one penalty per predictor."""
    n = x.shape[1]
    w = np.zeros((n, n))
    for k in range(n):
        others = np.array([i for i in range(n) if i != k or not zero_diagonal])
        a = x[:, others]
        w[others, k] = np.linalg.solve(a.T @ a + np.diag(l2[others]), a.T @ x[:, k])
    return w


@pytest.mark.parametrize("exponents", [{}, {"user_exponent": -0.5, "item_exponent": -0.3}])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FITS)
def test_one_penalty_per_item_in_every_form(name, form, exponents):
    train, x = random_case(31, 18, weights=True)
    l2 = np.random.default_rng(2).uniform(2, 90, 18)
    before = power(x.sum(0), exponents.get("item_exponent", 0.0))
    r = power(x.sum(1), exponents.get("user_exponent", 0.0))[:, None] * x * before
    after = power(x.sum(0), -exponents.get("item_exponent", 0.0))
    expected = x * before @ item_by_item(r, l2, name == "ease") * after
    scorer = fit(name, train, form, l2=l2, **exponents)
    np.testing.assert_allclose(scorer(np.arange(31)), expected, atol=2e-5)
    length = np.bincount(train.user, minlength=31)
    items, where, weights = np.zeros((31, 18), int), np.arange(18)[None] < length[:, None], np.zeros((31, 18))
    for j in range(31):
        items[j, : length[j]], weights[j, : length[j]] = train.item[train.user == j], train.weights[train.user == j]
    np.testing.assert_allclose(scorer.scores(items, where=where, weights=weights), expected, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FITS)
def test_equal_penalties_per_item_are_one_penalty(name, form):
    train, _ = random_case(31, 18)
    one, each = fit(name, train, form, l2=3.0), fit(name, train, form, l2=np.full(18, 3.0))
    np.testing.assert_allclose(each(np.arange(31)), one(np.arange(31)), atol=1e-5)


def test_dropout_is_a_penalty_of_p_over_1_minus_p_times_the_count():
    """EDLAE: the expected error of each item, from the other items of a history, each dropped with probability p."""
    train, x = random_case(6, 5)
    p, l2, n = 0.3, 0.7, x.shape[1]
    kept = np.array(np.meshgrid(*[[0, 1]] * n)).reshape(n, -1).T  # all masks, with their probabilities
    probability = np.prod(np.where(kept, 1 - p, p), axis=1)
    expected = np.zeros((n, n))
    for k in range(n):
        others = np.array([i for i in range(n) if i != k])
        a, b = np.diag(np.full(n - 1, l2)), np.zeros(n - 1)
        for mask, share in zip(kept, probability, strict=True):
            seen = x[:, others] * mask[others] / (1 - p)  # kept ones are scaled up, as dropout does
            a, b = a + share * seen.T @ seen, b + share * seen.T @ x[:, k]
        expected[others, k] = np.linalg.solve(a, b)
    scorer = linear.ease(train, l2=l2 + p / (1 - p) * (x**2).sum(0), form="primal")
    np.testing.assert_allclose(scorer(np.arange(6)), x @ expected, atol=1e-5)


def test_sparse_weights_of_penalties_per_item_keep_all_where_asked():
    train, x = random_case(31, 18)
    l2 = np.linspace(1.0, 40.0, 18)
    scorer = linear.sparsify(linear.ease(train, l2=l2, form="primal"), keep=18)
    np.testing.assert_allclose(scorer(np.arange(31)), x @ item_by_item(x, l2, True), atol=2e-5)


def arrays_of(jaxpr):
    """The shapes of all arrays of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from arrays_of(inner)


@pytest.mark.parametrize("name", FITS)
def test_the_dual_and_the_low_rank_form_hold_nothing_items_by_items(name):
    n_items = 997
    train, _ = random_case(5, n_items)
    x = histories(train)
    by_item = transposed(x)

    def whole_fit(x, by_item, l2):
        a = _weights._penalized_inverse(_matrices._gram(by_item, x), l2).matrix
        return a, _dual.dual_diagonal(x, a, l2)

    traced = [
        jax.make_jaxpr(whole_fit)(x, by_item, jnp.float32(1)),
        jax.make_jaxpr(lambda *args: _spectrum._spectrum(*args, size=3, power_steps=2))(x, by_item, jax.random.key(0)),
    ]
    of_three_users, of_a_new_user = lambda s: s(jnp.arange(3)), lambda s: s.scores(jnp.array([[0, 4]]))
    scorers = [FITS[name](train, l2=1.0, form="dual"), FITS[name](train, l2=1.0, rank=2)]
    for scorer in scorers:
        traced += [jax.make_jaxpr(call)(scorer) for call in (of_three_users, of_a_new_user)]
        assert max(leaf.size for leaf in jax.tree.leaves(scorer)) < 5 * n_items + 1
    shapes = {shape for program in traced for shape in arrays_of(program.jaxpr)}
    assert (n_items, 3) in shapes  # the walk sees the scores
    assert not [shape for shape in shapes if shape.count(n_items) > 1]


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("form", FORMS)
def test_evaluate_takes_it(name, form):
    train, x = random_case(31, 18)
    scorer = fit(name, train, form, l2=3.0)
    test = Ratings(np.arange(31), np.full(31, 17), np.ones(31), 31, 18)
    table = jnp.asarray(scores_of(x, 3.0, name).astype(np.float32))
    expected = evaluate(lambda table, users: table[users], train, test, k=9, state=table)
    assert evaluate(scorer, train, test, k=9, batch_size=8).mean == pytest.approx(expected.mean, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_columns_of_ones_and_nothing_at_all(form):
    everyone = Ratings([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], np.ones(6), 4, 3)  # items 0 and 1 are the same
    x = np.array([[1.0, 1, 0]] * 3 + [[0, 0, 0]])
    np.testing.assert_allclose(fit("ease", everyone, form, l2=1.0)(np.arange(4)), scores_of(x, 1.0, "ease"), atol=1e-6)
    empty = Ratings([], [], [], 4, 3)
    scorer = fit("ease", empty, form, l2=1.0, item_exponent=-0.5)
    np.testing.assert_array_equal(scorer(np.arange(4)), np.zeros((4, 3)))
    np.testing.assert_array_equal(scorer.scores(np.array([[1, 2]])), np.zeros((1, 3)))


def test_sparse_weights_are_the_largest():
    train, x = random_case(31, 18)
    dense = linear.ease(train, l2=3.0, form="primal", item_exponent=-0.4)
    f = np.asarray(dense.operator.operator.weight)
    before, after = power(x.sum(0), -0.4), power(x.sum(0), 0.4)
    by_size = np.sort(np.abs(f), axis=1)
    for options, kept in (
        ({"keep": 4}, np.abs(f) >= by_size[:, -4:-3]),
        ({"threshold": 0.05}, np.abs(f) >= 0.05),
        ({"keep": 4, "threshold": 0.05}, (np.abs(f) >= by_size[:, -4:-3]) & (np.abs(f) >= 0.05)),
        ({"keep": 99}, np.ones(f.shape, bool)),
        ({"threshold": 9.0}, np.zeros(f.shape, bool)),
    ):
        scorer = linear.sparsify(dense, **options)
        kept &= f != 0
        assert len(scorer.operator.operator.item) == kept.sum()
        expected = after * (x * before @ np.where(kept, f, 0).T)
        np.testing.assert_allclose(scorer(np.arange(31)), expected, atol=1e-5)


TRAIN, WIDE = random_case(31, 18)[0], random_case(17, 26)[0]
LARGE = Ratings([0, 1], [0, 99_999], [1.0, 1.0], 200_000, 100_000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.ease(TRAIN, l2=0.0), "l2: expected finite numbers > 0, got 0, .* singular"),
        (lambda: linear.ease(TRAIN, l2=-1.0), "l2: expected finite numbers > 0, got -1"),
        (lambda: linear.ease(TRAIN, l2=np.nan), "l2: expected finite numbers > 0, got nan"),
        (
            lambda: linear.ease(TRAIN, l2=np.ones(17)),
            r"l2: expected one number or one per item, \(18,\), got shape \(17",
        ),
        (
            lambda: linear.ease(TRAIN, l2=np.ones((18, 1))),
            r"l2: expected one number or one per item.*got shape \(18, 1",
        ),
        (lambda: linear.ridge(TRAIN, l2=np.ones(31)), r"one per item, \(18,\), got shape \(31,\).*vmap"),
        (lambda: linear.ease(TRAIN, l2=np.arange(18.0)), "l2: expected finite numbers > 0, got 0"),
        (lambda: linear.ease(TRAIN, l2=np.append(np.ones(17), np.nan)), "l2: expected finite numbers > 0, got nan"),
        (lambda: linear.ease(WIDE, l2=np.full(26, 1e-6), form="primal"), "l2: 1e-06 is too small for float32"),
        (lambda: linear.ease(TRAIN, l2=np.full(18, 1e-6), form="dual"), "l2: 1e-06 is too small for float32"),
        (lambda: linear.ease(WIDE, l2=1e-6, form="primal"), "l2: 1e-06 is too small for float32.*singular.*Raise l2"),
        (lambda: linear.ease(TRAIN, l2=1e-6, form="dual"), "l2: 1e-06 is too small for float32.*singular.*Raise l2"),
        (lambda: linear.ease(TRAIN, l2=1.0, form="cholesky"), "form: expected one of 'primal', 'dual', 'low_rank'"),
        (lambda: linear.ease(TRAIN, l2=1.0, form="low_rank"), "rank: expected a whole number with form='low_rank'"),
        (lambda: linear.ease(TRAIN, l2=1.0, form="dual", rank=3), "rank: expected None with form='dual'"),
        (lambda: linear.ease(TRAIN, l2=1.0, rank=19), "rank: expected at most 18"),
        (lambda: linear.ease(TRAIN, l2=1.0, rank=0), "rank: expected a whole number >= 1"),
        (lambda: linear.ease(TRAIN, l2=1.0, rank=3, key=3), r"key: expected one random key, such as jax.random.key\(3"),
        (lambda: linear.ease(TRAIN, l2=1.0, item_exponent=np.inf), "item_exponent: expected finite numbers"),
        (lambda: linear.ease(TRAIN, l2=1.0, form="dual", devices=jax.devices()), "devices: expected None"),
        (lambda: linear.ease(TRAIN, l2=1.0, devices=[]), "devices: expected distinct devices"),
        (lambda: jax.jit(lambda l2: linear.ease(TRAIN, l2=l2))(1.0), "l2: expected concrete numbers.*ease_weights"),
        (
            lambda: linear.ease(LARGE, l2=1.0, form="primal", max_bytes=16 * 10**9),
            r"form='primal': 200000 users and 100000 items take 40.8 GB \(40819200000 bytes\).*rank=512 takes 2.46 GB",
        ),
        (
            lambda: linear.ridge(Ratings([0], [0], [1.0], 10, 100_000), l2=1.0, form="primal", max_bytes=10**9),
            "40.8 GB .*form='dual' takes",
        ),
        (lambda: linear.ease_weights(np.ones((3, 4)), l2=1.0), "gram: expected a square matrix"),
        (lambda: linear.ridge_weights(np.eye(3), l2=np.ones(2)), "l2: expected one number or one per item"),
        (
            lambda: linear.sparsify(linear.ease(TRAIN, l2=1.0, form="dual"), keep=3),
            "scorer: expected one of dense weights",
        ),
        (lambda: linear.sparsify(linear.ease(TRAIN, l2=1.0)), "keep, threshold: expected at least one"),
        (lambda: linear.sparsify(linear.ease(TRAIN, l2=1.0), keep=0), "keep: expected a whole number >= 1"),
        (lambda: linear.sparsify(linear.ease(TRAIN, l2=1.0), threshold=np.nan), "threshold: expected a finite number"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nan_weights_are_refused():
    weights = np.array([1.0, np.nan], np.float32)
    with pytest.raises(ValueError, match="weights"):
        linear.ease(Ratings([0, 1], [0, 1], [1.0, 1.0], 2, 2, weights=weights), l2=1.0)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("block", [256, 5])
def test_columns_over_three_devices_give_the_same(name, block, monkeypatch):
    monkeypatch.setattr("jaxrec.solvers.linear._inverse.BLOCK", block)  # 5: blocks that two devices share
    jax.clear_caches()
    n_users, n_items = 20, 25  # 25 columns are padded to 27
    train, _ = random_case(n_users, n_items)
    options = {"l2": 2.0 if block == 256 else np.linspace(1.0, 5.0, n_items), "item_exponent": -0.4}
    one = FITS[name](train, form="primal", **options)
    three = FITS[name](train, devices=jax.devices(), **options)
    weight = three.operator.operator.weight
    assert {shard.data.shape for shard in weight.addressable_shards} == {(n_items, 9)}
    assert len({shard.device for shard in weight.addressable_shards}) == 3
    np.testing.assert_allclose(three(np.arange(n_users)), one(np.arange(n_users)), atol=1e-5)
    if block == 256:
        test = Ratings(np.arange(n_users), np.full(n_users, n_items - 1), np.ones(n_users), n_users, n_items)
        found, expected = (evaluate(each, train, test, k=9, metrics=["recall"]).mean for each in (three, one))
        assert found == pytest.approx(expected)
    jax.clear_caches()
