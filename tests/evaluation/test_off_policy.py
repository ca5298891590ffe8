"""Off-policy estimates against slow loops, exact expectations over all logs, obp's figures, and logs of known truth."""

import itertools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from jaxrec.evaluation.off_policy import doubly_robust, ips, snips

N, ACTIONS = 12, 4


def draw(seed, n=N):
    """A log as the arguments of doubly_robust, float64."""
    rng = np.random.default_rng(seed)
    logging = rng.dirichlet(np.ones(ACTIONS), n) * 0.8 + 0.2 / ACTIONS
    action = np.array([rng.choice(ACTIONS, p=row) for row in logging])
    policy = rng.dirichlet(np.ones(ACTIONS), n)
    return rng.normal(1, 1, n), logging[np.arange(n), action], action, policy, rng.normal(1, 1, (n, ACTIONS))


def of_logged(reward, propensity, action, probabilities, predictions):
    """The arguments of ips and snips."""
    n, n_actions = probabilities.shape
    return reward, propensity, probabilities[np.arange(n), action % n_actions]  # masked actions are garbage


ESTIMATORS = {
    "ips": lambda *log, **options: ips(*of_logged(*log), **options),
    "snips": lambda *log, **options: snips(*of_logged(*log), **options),
    "doubly_robust": doubly_robust,
}


def by_loops(name, reward, propensity, action, probabilities, predictions, *, max_weight=np.inf, level=0.95):
    """The result, from the formulas, a row at a time."""
    terms, raw, clipped = [], [], []
    for t in range(len(reward)):
        raw.append(probabilities[t][action[t]] / propensity[t])
        clipped.append(min(raw[-1], max_weight))
        if name == "doubly_robust":
            expected = sum(probabilities[t][a] * predictions[t][a] for a in range(ACTIONS))
            terms.append(expected + clipped[-1] * (reward[t] - predictions[t][action[t]]))
        else:
            terms.append(clipped[-1] * reward[t])
    n = len(terms)
    if name == "snips":
        value = sum(terms) / sum(clipped)
        squares = sum((w * (r - value)) ** 2 for w, r in zip(clipped, reward, strict=True))
        error = squares**0.5 / sum(clipped)
    else:
        value = sum(terms) / n
        error = (sum((term - value) ** 2 for term in terms) / (n - 1) / n) ** 0.5
    half = stats.norm.ppf((1 + level) / 2) * error
    size = sum(clipped) ** 2 / sum(w * w for w in clipped)
    n_clipped = sum(c < r for c, r in zip(clipped, raw, strict=True))
    return value, error, value - half, value + half, size, sum(raw) / n, max(raw), n_clipped / n


@pytest.mark.parametrize("options", [{}, {"max_weight": 1.5}, {"level": 0.5, "max_weight": 0.7}])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_equal_loops(name, options, x64):
    for seed in range(20):
        log = draw(seed)
        np.testing.assert_allclose(ESTIMATORS[name](*log, **options), by_loops(name, *log, **options), rtol=1e-9)


def test_estimates_equal_those_of_obp():
    figures = json.loads((Path(__file__).parent / "obp_figures.json").read_text())
    log = [np.array(figures[name]) for name in ("reward", "propensity", "action", "probabilities", "predictions")]
    for name, estimator in ESTIMATORS.items():
        assert float(estimator(*log).value) == pytest.approx(figures["obp"][name], rel=1e-6), name
    direct = doubly_robust(*log, max_weight=1e-30).value  # the corrections have no weight
    assert float(direct) == pytest.approx(figures["obp"]["direct_method"], rel=1e-6)


# All logs of n rows drawn from two contexts, two actions and rewards 0 and 1: the expectation is exact.

CONTEXT = np.array([0.3, 0.7])
LOGGING = np.array([[0.4, 0.6], [0.9, 0.1]])  # P(action | context)
POLICY = np.array([[0.8, 0.2], [0.3, 0.7]])
REWARD = np.array([[0.2, 0.9], [0.5, 0.6]])  # P(reward = 1 | context, action)
TRUE_VALUE = sum(CONTEXT[x] * POLICY[x, a] * REWARD[x, a] for x in range(2) for a in range(2))


def all_logs(n):
    """(probability of each log, contexts [logs, n], actions, rewards)."""
    rows = list(itertools.product(range(2), range(2), range(2)))
    each = [CONTEXT[x] * LOGGING[x, a] * (REWARD[x, a] if r else 1 - REWARD[x, a]) for x, a, r in rows]
    logs = np.array(list(itertools.product(range(len(rows)), repeat=n)))
    columns = np.array(rows)[logs]
    return np.prod(np.array(each)[logs], axis=1), columns[..., 0], columns[..., 1], columns[..., 2].astype(float)


def over_all_logs(name, *, logging=LOGGING, model=None, n=3):
    """(E of the value, its variance, E of the squared standard error)."""
    model = np.array([[0.3, 0.3], [0.9, 0.2]]) if model is None else model
    probability, x, a, r = all_logs(n)
    result = jax.vmap(ESTIMATORS_OF_ARRAYS[name])(r, logging[x, a], a, POLICY[x], model[x])
    mean = np.sum(probability * np.asarray(result.value))
    variance = np.sum(probability * (np.asarray(result.value) - mean) ** 2)
    return mean, variance, np.sum(probability * np.asarray(result.standard_error) ** 2)


ESTIMATORS_OF_ARRAYS = {
    "ips": lambda r, p, a, pi, q: ips(r, p, jnp.take_along_axis(pi, a[:, None], axis=1)[:, 0]),
    "doubly_robust": doubly_robust,
}


@pytest.mark.parametrize("name", ESTIMATORS_OF_ARRAYS)
def test_the_exact_expectation_over_all_logs_is_the_true_value_and_that_of_the_squared_error_its_variance(name, x64):
    mean, variance, squared_error = over_all_logs(name)
    assert mean == pytest.approx(TRUE_VALUE, rel=1e-12)
    assert squared_error == pytest.approx(variance, rel=1e-12)


def test_doubly_robust_is_unbiased_if_either_the_propensities_or_the_model_are_right(x64):
    wrong = np.array([[0.7, 0.3], [0.5, 0.5]])
    assert over_all_logs("doubly_robust", logging=wrong, model=REWARD)[0] == pytest.approx(TRUE_VALUE, rel=1e-12)
    assert abs(over_all_logs("doubly_robust", logging=wrong)[0] - TRUE_VALUE) > 0.01
    assert abs(over_all_logs("ips", logging=wrong)[0] - TRUE_VALUE) > 0.01
    assert over_all_logs("doubly_robust", model=REWARD)[1] < over_all_logs("ips")[1]  # a good model lowers the variance


def test_doubly_robust_is_ips_without_a_model_and_the_model_without_weights():
    reward, propensity, action, policy, model = draw(0)
    got = doubly_robust(reward, propensity, action, policy, np.zeros_like(model))
    expected = ips(*of_logged(reward, propensity, action, policy, model))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, expected)
    elsewhere = np.eye(ACTIONS)[(action + 1) % ACTIONS]  # never takes the logged action
    got = doubly_robust(reward, propensity, action, elsewhere, model)
    direct = np.sum(elsewhere * model, axis=1)
    np.testing.assert_allclose(got.value, direct.mean(), rtol=1e-6)
    assert (float(got.effective_sample_size), float(got.mean_weight)) == (0, 0)


def test_snips_moves_with_the_rewards_and_stays_between_them():
    reward, propensity, probability = of_logged(*draw(3))
    moved = snips(reward + 10, propensity, probability)
    np.testing.assert_allclose(moved.value, snips(reward, propensity, probability).value + 10, rtol=1e-6)
    assert reward.min() <= float(moved.value) - 10 <= reward.max()


def test_the_policys_own_log_gives_the_mean_and_its_standard_error():
    reward, propensity, *_ = draw(4)
    result = ips(reward, propensity, propensity)
    np.testing.assert_allclose(result.value, reward.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.standard_error, stats.sem(reward), rtol=1e-6)
    np.testing.assert_allclose(result.effective_sample_size, N, rtol=1e-6)
    np.testing.assert_allclose(snips(reward, propensity, propensity).value, reward.mean(), rtol=1e-6)


# Logs of a known truth: bias and coverage


CONTEXTS, REPLICATIONS, ROWS = 6, 600, 1500


def simulate(key, truth, logging, policy, model):
    """The three estimates from one log of ROWS rows."""
    key_x, key_a, key_r = jax.random.split(key, 3)
    x = jax.random.randint(key_x, (ROWS,), 0, CONTEXTS)
    a = jax.random.categorical(key_a, jnp.log(logging[x]))
    r = jax.random.bernoulli(key_r, truth[x, a]).astype(jnp.float32)
    propensity, probability = logging[x, a], policy[x, a]
    return {
        "ips": ips(r, propensity, probability),
        "snips": snips(r, propensity, probability),
        "doubly_robust": doubly_robust(r, propensity, a, policy[x], model[x]),
    }


def test_bias_and_coverage_are_within_monte_carlo_error():
    rng = np.random.default_rng(0)
    truth, noise = rng.uniform(0.05, 0.6, (2, CONTEXTS, ACTIONS))
    logging = rng.dirichlet(np.ones(ACTIONS), CONTEXTS) * 0.6 + 0.4 / ACTIONS
    policy = rng.dirichlet(np.ones(ACTIONS), CONTEXTS)
    model = 0.8 * truth + 0.2 * noise
    true_value = np.mean(np.sum(policy * truth, axis=1))
    tables = [jnp.asarray(table, jnp.float32) for table in (truth, logging, policy, model)]
    keys = jax.random.split(jax.random.key(0), REPLICATIONS)
    results = jax.jit(jax.vmap(lambda key: simulate(key, *tables)))(keys)
    for name, result in results.items():
        value, error = np.asarray(result.value, np.float64), np.asarray(result.standard_error, np.float64)
        assert abs(value.mean() - true_value) < 4 * stats.sem(value), name
        assert np.sqrt(np.mean(error**2)) == pytest.approx(value.std(), rel=4 / np.sqrt(2 * REPLICATIONS)), name
        covered = np.mean((np.asarray(result.low) <= true_value) & (true_value <= np.asarray(result.high)))
        assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / REPLICATIONS), name
        mean_weight = np.asarray(result.mean_weight, np.float64)
        assert abs(mean_weight.mean() - 1) < 4 * stats.sem(mean_weight)
    width = {name: float(np.mean(result.standard_error)) for name, result in results.items()}
    assert width["doubly_robust"] < width["snips"] < width["ips"]


# Intervals that allow for skewness


def terms_by_loops(name, reward, propensity, action, probabilities, predictions):
    """The n terms whose mean is V, or of snips, to first order, V plus their mean."""
    weights = [probabilities[t][action[t]] / propensity[t] for t in range(len(reward))]
    if name == "snips":
        value = sum(w * r for w, r in zip(weights, reward, strict=True)) / sum(weights)
        terms = [w * (r - value) for w, r in zip(weights, reward, strict=True)]
    elif name == "ips":
        terms = [w * r for w, r in zip(weights, reward, strict=True)]
    else:
        model = [sum(row * q) for row, q in zip(probabilities, predictions, strict=True)]
        logged = [predictions[t][action[t]] for t in range(len(reward))]
        terms = [m + w * (r - q) for m, w, r, q in zip(model, weights, reward, logged, strict=True)]
    return terms


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_interval_is_halls_transformation_undone(name, x64):
    """Its ends are where h(T), as the source prints it, takes the normal quantiles; nothing else changes."""
    for seed in range(20):
        log = draw(seed)
        got, normal = ESTIMATORS[name](*log, correct_skewness=True, level=0.9), ESTIMATORS[name](*log, level=0.9)
        assert got._replace(low=0, high=0) == normal._replace(low=0, high=0)
        a = stats.skew(terms_by_loops(name, *log)) / np.sqrt(N)
        h = lambda T, a=a: T + a * T**2 / 3 + a**2 * T**3 / 27 + a / 6
        studentized = [(got.value - end) / got.standard_error for end in (got.low, got.high)]
        np.testing.assert_allclose(h(np.array(studentized)), stats.norm.ppf([0.95, 0.05]), rtol=1e-8)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_without_skewness_the_interval_is_normal_and_without_variance_a_point(name):
    reward, half = np.array([0.0, 1.0] * 6), np.full(12, 0.5)
    log = reward, half, np.zeros(12, int), np.stack([half, half], axis=1), np.zeros((12, 2))
    got, normal = ESTIMATORS[name](*log, correct_skewness=True), ESTIMATORS[name](*log)
    np.testing.assert_allclose((got.low, got.high), (normal.low, normal.high), rtol=1e-6)
    same = ESTIMATORS[name](np.ones(12), *log[1:], correct_skewness=True)
    assert float(same.low) == float(same.high) == 1


@pytest.mark.slow
def test_intervals_that_allow_for_skewness_cover_where_normal_ones_do_not():
    """30 clicks in 1,500 rows, whose weights are squares of normal numbers: of mean 1, up to 10 and more."""

    def simulate(key, correct):
        key_w, key_r = jax.random.split(key)
        w = jax.random.normal(key_w, (ROWS,)) ** 2
        r = jax.random.bernoulli(key_r, 0.02, (ROWS,)).astype(jnp.float32)
        return ips(r, jnp.full(ROWS, 0.02), 0.02 * w, correct_skewness=correct)

    keys, covered, missed_high = jax.random.split(jax.random.key(0), 1500), {}, {}
    for correct in (False, True):
        found = jax.jit(jax.vmap(partial(simulate, correct=correct)))(keys)
        covered[correct] = float(np.mean((found.low <= 0.02) & (found.high >= 0.02)))
        missed_high[correct] = float(np.mean(found.high < 0.02))
    margin = 4 * np.sqrt(0.95 * 0.05 / 1500)
    assert covered[False] < 0.93
    assert abs(covered[True] - 0.95) < margin
    assert missed_high[True] < 0.5 * missed_high[False]


# Masks, gradients, transformations, types


def with_masked_rows(log, garbage):
    """(the log with rows of garbage between its own, the mask)."""
    reward, propensity, action, policy, model = log
    where = np.arange(2 * N) % 2 == 0
    spread = lambda column, fill: np.where(where.reshape(-1, *[1] * (column.ndim - 1)), np.repeat(column, 2, 0), fill)
    masked = [spread(column, garbage) for column in (reward, propensity)]
    return [*masked, spread(action, -7), spread(policy, garbage), spread(model, garbage)], where


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -3.0])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_mask_equals_deletion_in_values_and_gradients(name, garbage):
    log = draw(5)
    masked, where = with_masked_rows(log, garbage)
    for options in ({"max_weight": 2.0}, {"max_weight": 2.0, "correct_skewness": True}):
        got, expected = ESTIMATORS[name](*masked, where=where, **options), ESTIMATORS[name](*log, **options)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=4e-6), got, expected)

    def lower_bound(policy, log, where):
        arrays = [jnp.asarray(column, policy.dtype if column.dtype.kind == "f" else jnp.int32) for column in log]
        reward, propensity, action, _, model = arrays
        if name == "doubly_robust":
            return doubly_robust(reward, propensity, action, policy, model, where=where).low
        probability = jnp.take_along_axis(policy, action[:, None], axis=1)[:, 0]
        return {"ips": ips, "snips": snips}[name](reward, propensity, probability, where=where).low

    gradient = lambda log, where: jax.grad(lower_bound)(jnp.asarray(log[3], jnp.float32), log, where)
    np.testing.assert_allclose(gradient(masked, where)[where], gradient(log, None), rtol=1e-4, atol=1e-6)
    assert (np.asarray(gradient(masked, where))[~where] == 0).all()


@pytest.mark.parametrize("field", ["value", "standard_error", "low", "effective_sample_size"])
@pytest.mark.parametrize("name", ["ips", "snips"])
def test_gradients_in_the_policy_equal_finite_differences(name, field, x64):
    reward, propensity, probability = of_logged(*draw(6))
    options = {"correct_skewness": field == "low"}
    estimator = partial({"ips": ips, "snips": snips}[name], **options)
    function = lambda probability: getattr(estimator(reward, propensity, probability), field)
    check_grads(jax.jit(function), (probability * 0.9 + 0.05,), order=1, modes=("rev",), rtol=1e-5)


def test_the_gradient_of_a_log_without_variance_is_finite():
    ones = jnp.ones(3)
    low = lambda p: ips(ones, ones / 2, p).low
    assert np.isfinite(np.asarray(jax.grad(low)(ones / 2))).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_jit_and_vmap_equal_single_calls_and_a_second_call_compiles_nothing(name, compilations):
    logs = [draw(seed) for seed in (7, 8)]
    expected = [ESTIMATORS[name](*log, max_weight=1.5) for log in logs]
    before = compilations()
    ESTIMATORS[name](*logs[0], max_weight=1.5)
    assert compilations() == before
    arrays = [jnp.asarray(np.stack(columns)) for columns in zip(*logs, strict=True)]
    function = ESTIMATORS[name] if name == "doubly_robust" else {"ips": ips, "snips": snips}[name]
    if name != "doubly_robust":
        arrays = [jnp.asarray(np.stack(columns)) for columns in zip(*(of_logged(*log) for log in logs), strict=True)]
    clips = jnp.array([1.5, 1.5])
    got = jax.jit(jax.vmap(lambda clip, *log: function(*log, max_weight=clip)))(clips, *arrays)
    for k in range(2):
        jax.tree.map(
            lambda got, expected, k=k: np.testing.assert_allclose(got[k], expected, rtol=2e-6), got, expected[k]
        )


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, jnp.bfloat16])
@pytest.mark.usefixtures("as_users_run")
def test_narrow_types_give_the_results_of_float32(dtype):
    reward, action = np.array([1, 0, 1, 1, 0] * 70), np.array([0, 1, 1, 0, 2] * 70)
    policy, model, propensity = np.eye(3)[[0, 1, 2, 0, 0] * 70], np.eye(3)[action], np.ones(350)
    cast = lambda to: [
        array if array is action else array.astype(to) for array in (reward, propensity, action, policy, model)
    ]
    for estimator in ESTIMATORS.values():
        got, expected = estimator(*cast(dtype)), estimator(*cast(np.float32))
        assert {leaf.dtype for leaf in got} == {jnp.dtype(jnp.float32)}
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, expected)


# Errors


def replaced(position, values):
    log = list(draw(9))
    log[position] = values(np.array(log[position], dtype=np.float64 if position != 2 else np.int64))
    return log


def put(value, index=(4,)):
    def values(array):
        array[index] = value
        return array

    return values


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (replaced(0, put(np.nan)), r"reward: expected finite numbers, got nan at position 4"),
        (replaced(1, put(0.0)), r"propensity: expected probabilities in \(0, 1\], got 0 at position 4 \(1 in all\)"),
        (replaced(1, put(-0.5)), r"propensity: expected probabilities in \(0, 1\], got -0.5"),
        (replaced(1, put(1.5)), r"propensity: expected probabilities in \(0, 1\], got 1.5"),
        (replaced(1, put(np.nan)), r"propensity: expected probabilities in \(0, 1\], got nan"),
        (replaced(0, lambda array: array[:, None]), "expected arrays of one shape"),
        (replaced(0, lambda array: array[:-1]), "expected arrays of one shape"),
    ],
)
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("as_users_run")
def test_bad_logs_are_refused(name, log, message):
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name](*log)


@pytest.mark.usefixtures("as_users_run")
def test_bad_policies_models_and_actions_are_refused():
    for log, message in [
        (replaced(3, put(1.2, (4, 1))), r"probabilities: expected probabilities in \[0, 1\], got 1.2.* \(4, 1\)"),
        (replaced(3, put(np.nan, (4, 1))), r"probabilities: expected probabilities in \[0, 1\], got nan"),
        (
            replaced(3, lambda array: array / 2),
            r"probabilities: expected rows that sum to 1.*got 0.5 in row 0",
        ),
        (replaced(4, put(np.inf, (4, 1))), r"predictions: expected finite numbers, got inf"),
        (replaced(4, lambda array: array[:, :-1]), "one shape"),
        (replaced(2, put(ACTIONS)), r"action: expected ids in \[0, 4\), got 4"),
        (replaced(2, put(-1)), r"action: expected ids in \[0, 4\), got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            doubly_robust(*log)
    reward, propensity, action, policy, model = draw(9)
    with pytest.raises(ValueError, match=r"expected reward \[n\], and probabilities and predictions \[n, actions\]"):
        doubly_robust(reward, propensity, action, policy[:-1], model[:-1])
    for function in (ips, snips):
        with pytest.raises(ValueError, match=r"probability: expected probabilities in \[0, 1\], got 1.01"):
            function(reward, propensity, np.full(N, 1.01))
    with pytest.raises(ValueError, match="takes some of the logged actions"):
        snips(reward, propensity, np.zeros(N))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.usefixtures("as_users_run")
def test_bad_options_are_refused(name):
    log = draw(9)
    for wrong in (0, -1.0, np.nan, [1.0, 2.0]):
        with pytest.raises(ValueError, match="max_weight: expected a number > 0"):
            ESTIMATORS[name](*log, max_weight=wrong)
    for wrong in (0, 1, 95, np.nan):
        with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
            ESTIMATORS[name](*log, level=wrong)
    with pytest.raises(ValueError, match="where: expected a mask of bools"):
        ESTIMATORS[name](*log, where=np.arange(N))
    with pytest.raises(ValueError, match=r"at least two rows.*got 1 \(of 12"):
        ESTIMATORS[name](*log, where=np.arange(N) == 3)
    with pytest.raises(ValueError, match="at least two rows"):
        ESTIMATORS[name](*(column[:0] for column in log))


def test_a_probability_that_rounding_left_above_1_is_taken():
    ones = np.ones(2, np.float32)
    assert float(ips(ones, ones * np.float32(1 + 2e-7), ones).value) == pytest.approx(1)
