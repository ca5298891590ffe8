"""The checks of arguments return valid values unchanged, and name what is wrong in their errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import check, losses, models, solvers, storage
from tests.test_api import FUNCTIONS, parameters


@pytest.mark.parametrize("values", [[0, 2], np.array([[0], [2]], np.int64), np.array([2], np.uint8), jnp.array([1, 2])])
def test_ids_in_range_are_returned_as_int32(values):
    ids = check.row_ids("item", values, size=3)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, np.asarray(values))


@pytest.mark.parametrize("wrong", [3, -1, 2**31, 2**32, 2**40 + 1, -(2**40), np.uint64(2**63), 2**70])
def test_ids_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^item: expected (ids in \[0, 3\), got .* at position 1|integer ids)"):
        check.row_ids("item", np.array([0, wrong]), size=3)


@pytest.mark.parametrize("values", [[0.0], ["a"], [True], [None]])
def test_values_other_than_integers_are_refused_as_ids(values):
    with pytest.raises(ValueError, match="item: expected integer ids"):
        check.row_ids("item", values, size=3)


def test_masked_ids_may_be_arbitrary():
    ids = check.row_ids("item", np.array([[2**40, 1], [-1, 0]]), size=2, where=np.array([[False, True], [False, True]]))
    assert ids.tolist() == [[0, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"got -1 at position \(1, 0\)"):
        check.row_ids("item", np.array([[0, 1], [-1, 0]]), size=2, where=np.array([[False, True], [True, True]]))


def test_a_single_id_and_a_single_number_are_named_in_the_error():
    with pytest.raises(ValueError, match=r"item: expected ids in \[0, 2\), got 2\. Ids"):
        check.row_ids("item", 2, size=2)
    with pytest.raises(ValueError, match=r"mu: expected finite numbers, got nan \("):
        check.all_finite("mu", np.nan)


def test_traced_ids_are_not_checked():
    assert jax.jit(lambda ids: check.row_ids("item", ids, size=2))(jnp.array([7])).tolist() == [7]


def test_an_empty_list_of_ids_is_valid():
    assert check.row_ids("item", [], size=2).dtype == jnp.int32


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2, 3], [3, 4]),
        (np.array([2**40 + 5, 7]), np.array([5, 7])),
        (np.array([2**32, 0], np.uint64), np.array([-1, 0])),
        (np.array([2**63 + 1, 2**63], np.uint64), np.array([2**53 + 1, 2**53])),
        (np.array([2**31 + 5], np.uint32), np.array([-(2**31) + 5], np.int32)),
    ],
)
def test_comparable_ids_are_equal_where_the_ids_are_equal(a, b):
    x, y = check.comparable_ids(a=a, b=b)
    assert x.dtype == y.dtype == jnp.int32
    expected = np.array([[int(i) == int(j) for j in b] for i in a])
    np.testing.assert_array_equal(np.asarray(x)[:, None] == np.asarray(y)[None], expected)


@pytest.mark.parametrize("wrong", [np.array([0.5]), np.array(["a"]), np.array([2**80])])
def test_comparable_ids_must_be_integers(wrong):
    with pytest.raises(ValueError, match="b: expected integer ids"):
        check.comparable_ids(a=np.array([1]), b=wrong)


@pytest.mark.parametrize("values", [2**31, -(2**31) - 1, [1, 2**40], np.array([1e39]), np.array([2**32], np.uint64)])
def test_numbers_that_do_not_fit_32_bits_are_refused(values):
    with pytest.raises(ValueError, match="x: expected numbers that fit"):
        check.as_array("x", values)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(check.as_array("x", values), values)


@pytest.mark.parametrize("values", [[1, 2], [1.5, np.inf], [True], np.float16([3]), jnp.bfloat16([2])])
def test_numbers_that_fit_32_bits_are_returned_unchanged(values):
    np.testing.assert_array_equal(check.as_array("x", values), np.asarray(values))


@pytest.mark.parametrize("values", [["a"], [None], [1 + 2j]])
def test_values_other_than_numbers_are_refused(values):
    with pytest.raises(ValueError, match="x: expected numbers, got"):
        check.as_array("x", values)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_a_single_number_that_is_not_finite_is_refused_and_located(wrong, dtype):
    table = np.ones((2, 3)).astype(dtype)
    check.all_finite("x", table)
    table[1, 2] = wrong
    for values in (table, jnp.asarray(table)):
        with pytest.raises(ValueError, match=r"x: expected finite numbers, got .* at position \(1, 2\) \(1 in all\)"):
            check.all_finite("x", values)
    check.all_finite("x", None)
    check.all_finite("x", np.array([2**60]))
    jax.jit(lambda x: check.all_finite("x", x))(jnp.array([np.nan]))  # not checked when traced


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.uint32, np.float16, jnp.bfloat16, np.float32])
def test_narrow_types_become_float32(dtype):
    a, none, b = check.as_floats(a=np.ones(2, dtype), b=None, c=jnp.ones(2, jnp.bfloat16))
    assert a.dtype == b.dtype == jnp.float32
    assert none is None


def test_integers_beyond_32_bits_become_floats():
    assert check.as_floats(a=np.array([2**40]), b=[2**33])[0].tolist() == [2.0**40]
    assert check.as_floats(a=[1.0], b=np.array([1e300]))[1].tolist() == [np.inf], "it may be masked"


def test_float64_is_kept(x64):
    assert {a.dtype for a in check.as_floats(a=np.ones(2, np.uint8), b=np.ones(2))} == {jnp.dtype("float64")}


@pytest.mark.parametrize("wrong", [-1, np.nan, np.inf, (1.0, -2.0), (np.array([1.0, np.nan]), 1.0)])
def test_negative_or_infinite_penalties_are_refused(wrong):
    with pytest.raises(ValueError, match="l2: expected finite numbers >= 0, got"):
        check.strength("l2", wrong, zero=True)
    with pytest.raises(ValueError, match="l2: expected finite numbers > 0, got 0"):
        check.strength("l2", 0)
    check.strength("l2", (0, np.array([1.0, 0.0])), zero=True)
    jax.jit(lambda l2: check.strength("l2", l2))(-1.0)  # not checked when traced


@pytest.mark.parametrize(
    "wrong", [np.array([0, 2]), np.array([1, 0, 1]), np.array([True, False]), np.ones((3, 1), bool)]
)
def test_masks_must_be_bools_of_the_expected_shape(wrong):
    assert check.mask("keep", [True, False, True], (3,)).tolist() == [True, False, True]
    for values in (wrong, jnp.asarray(wrong)):
        with pytest.raises(ValueError, match=r"keep: expected a mask of bools of shape \(3,\), got"):
            check.mask("keep", values, (3,))


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """Pretends that JAX's arrays are on an accelerator, from which NumPy would have to copy them."""
    monkeypatch.setattr(check, "_on_device", lambda values: isinstance(values, jax.Array))


def test_arrays_on_an_accelerator_are_checked_there(on_an_accelerator, monkeypatch):
    ids, numbers = jnp.array([[0, 2], [1, 3]]), jnp.array([1.0, -2.0])
    with monkeypatch.context() as patch:
        patch.setattr(check, "np", None)  # NumPy is not used
        assert check.row_ids("user", ids, size=4) is ids
        check.all_finite("w", numbers)
        check.all_finite("ids", ids)
    with pytest.raises(ValueError, match=r"user: expected ids in \[0, 3\), got 3 at position \(1, 1\)"):
        check.row_ids("user", ids, size=3)
    with pytest.raises(ValueError, match=r"user: expected ids in \[0, 4\), got -1 at position 0"):
        check.row_ids("user", jnp.array([-1]), size=4)
    masked = check.row_ids("user", jnp.array([-1, 2]), size=4, where=jnp.array([False, True]))
    assert masked.tolist() == [0, 2]
    with pytest.raises(ValueError, match="w: expected finite numbers, got nan at position 1"):
        check.all_finite("w", jnp.array([1.0, jnp.nan]))
    with pytest.raises(ValueError, match="expected integer ids"):
        check.row_ids("user", numbers, size=4)
    assert check.row_ids("user", jnp.zeros((0,), jnp.int32), size=4).shape == (0,)


def with_argument(name):
    """The names of the public functions that have an argument of this name."""
    return [function_name for function_name, function in FUNCTIONS.items() if name in parameters(function)]


def call(function, **arguments):
    """Calls a function with these arguments, and None for its other required ones: these are to be checked later."""
    required = [p.name for p in parameters(function).values() if p.default is p.empty]
    return function(**{**dict.fromkeys(required), **arguments})


@pytest.mark.parametrize("name", with_argument("key"))
def test_a_seed_in_place_of_a_key_is_refused_with_the_call_that_makes_the_key(as_users_run, name):
    for seed in (0, np.int64(7)):
        message = (
            rf"^key: expected one random key, such as jax\.random\.key\({seed}\), got {type(seed).__name__} {seed}\.$"
        )
        with pytest.raises(ValueError, match=message):
            call(FUNCTIONS[name], key=seed)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (True, "bool"),
        ("0", "str"),
        (jnp.array(0), r"int32 of shape \(\)"),
        (jax.random.split(jax.random.key(0)), r"key<fry> of shape \(2,\)"),
    ],
)
def test_other_values_in_place_of_one_key_are_refused(wrong, got):
    with pytest.raises(ValueError, match=rf"key: expected one random key, such as jax\.random\.key\(0\), got {got}\."):
        check.random_key(wrong)


def test_new_and_old_keys_pass_also_under_vmap():
    check.random_key(jax.random.key(0))
    check.random_key(jax.random.PRNGKey(0))
    check.random_key(np.asarray(jax.random.PRNGKey(0)))
    check.random_key(None, optional=True)
    with pytest.raises(ValueError, match="got NoneType"):
        check.random_key(None)
    keys = jax.random.split(jax.random.key(0), 3)
    assert jax.vmap(lambda key: check.random_key(key) or jnp.ones(()))(keys).shape == (3,)


@pytest.mark.parametrize("name", with_argument("loss"))
def test_a_loss_of_optax_is_refused_with_the_call_that_converts_it(as_users_run, name):
    with pytest.raises(ValueError, match=r"^loss: expected a pointwise loss.* losses\.from_elementwise\(optax\.huber_"):
        call(FUNCTIONS[name], loss=optax.huber_loss)


def test_pointwise_losses_pass_whether_named_converted_or_partial():
    for loss in (losses.logistic, losses.from_elementwise(optax.huber_loss), partial(losses.squared_error)):
        check.pointwise_loss(loss)
    check.pointwise_loss(lambda prediction, target, **masks: losses.squared_error(prediction, target, **masks))
    with pytest.raises(ValueError, match=r"losses\.from_elementwise\(<lambda>\)"):
        check.pointwise_loss(lambda prediction, target: (prediction - target) ** 2)
    with pytest.raises(ValueError, match=r"loss: expected a function .*, got str"):
        check.pointwise_loss("huber")


MODEL = storage.Model(models.init(3, 4, 2, key=jax.random.key(0)))
RESULT = solvers.ALSResult(MODEL.factors, None)


LINEAR = r"a LinearScorer, .*, got {}\."
TAKE_OTHER_SCORERS = {  # function: what its error says that it expects, and got
    "jaxrec.models.linear.check_linear": LINEAR,
    "jaxrec.models.linear.for_users": LINEAR,
    "jaxrec.solvers.linear.sparsify": LINEAR,
    "jaxrec.scorer_storage.save": r"one of LinearScorer, .*, got {}\. Factors: storage\.save\.",
}


@pytest.mark.parametrize("values", [MODEL, RESULT, MODEL.factors, lambda users: users])
@pytest.mark.parametrize("name", TAKE_OTHER_SCORERS)
def test_another_scorer_is_refused_where_one_of_a_class_is_expected(as_users_run, name, values):
    message = rf"^scorer: expected {TAKE_OTHER_SCORERS[name].format(type(values).__name__)}$"
    with pytest.raises(ValueError, match=message):
        call(FUNCTIONS[name], scorer=values)


@pytest.mark.parametrize("values", [MODEL, RESULT], ids=["a saved model", "the result of a solver"])
@pytest.mark.parametrize(
    "name", sorted({*with_argument("factors"), *with_argument("scorer")} - set(TAKE_OTHER_SCORERS))
)
def test_what_contains_factors_is_refused_where_factors_are_expected(as_users_run, name, values):
    argument = "scorer" if "scorer" in parameters(FUNCTIONS[name]) else "factors"
    message = rf"^{argument}: expected Factors.*, got {type(values).__name__}\. Pass its factors: model\.factors\.$"
    with pytest.raises(ValueError, match=message):
        call(FUNCTIONS[name], **{argument: values})
