"""Networks over packed sequences against slow NumPy loops over users, and what may not influence what."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings, data
from jaxrec.models._packed_events import rotate
from jaxrec.models.gru import Gru
from jaxrec.models.sequence import Transformer, visible

N_ITEMS, WINDOW, WIDTH = 7, 5, 8
SEQUENCES = [[0, 1, 2, 3, 4], [5], [6, 6], [], [2, 3, 1, 0, 6, 5, 4]]  # the last one is longer than the window
RATINGS = Ratings(
    [j for j, items in enumerate(SEQUENCES) for _ in items],
    [i for items in SEQUENCES for i in items],
    [1.0] * 15,
    len(SEQUENCES),
    N_ITEMS,
    time=np.cumsum(np.arange(15) % 4),
)
PACKED = data.sequences(RATINGS, length=WINDOW)
EVENTS = PACKED.item, PACKED.segment, PACKED.position, PACKED.gap
MODELS = {
    "learned": Transformer(N_ITEMS, WINDOW, width=WIDTH, heads=2),
    "rotary": Transformer(N_ITEMS, WINDOW, width=WIDTH, heads=2, rotary=True),
    "gaps": Transformer(N_ITEMS, WINDOW, width=WIDTH, heads=1, layers=1, time_gaps=True, activation=jax.nn.gelu),
    "gru": Gru(N_ITEMS, WINDOW, width=WIDTH),
    "gru of two layers with gaps": Gru(N_ITEMS, WINDOW, width=WIDTH, layers=2, time_gaps=True),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


@cache
def vectors_of(model):
    """The network as one program: eager, each of its operations is compiled for itself."""
    return jax.jit(model.apply)


@cache
def params_of(model, seed=0):
    """Parameters away from their small initial values, so that each of them matters."""
    params = jax.jit(model.init)(jax.random.key(seed), *EVENTS)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, scale):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale


def turned(x, position):
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def embedded(p, items, gaps, model):
    rows = [p["item"][i] for i in items]
    if getattr(model, "rotary", True) is False:
        rows = [row + p["position"][t] for t, row in enumerate(rows)]
    if model.time_gaps:
        gap = p["gap"]
        hidden = [silu(np.log1p(g) * gap["hidden"]["kernel"][0] + gap["hidden"]["bias"]) for g in gaps]
        rows = [row + h @ gap["out"]["kernel"] for row, h in zip(rows, hidden, strict=True)]
    return rows


def slow_transformer(p, items, gaps, model):
    """One user, event by event."""
    x, d = embedded(p, items, gaps, model), WIDTH // model.heads
    activation = gelu if model.activation is jax.nn.gelu else silu
    for number in range(model.layers):
        block = p[f"block_{number}"]
        qkv = [norm(row, block["norm_attention"]["scale"]) @ block["qkv"]["kernel"] for row in x]
        added = []
        for t in range(len(x)):
            heads = []
            for h in range(model.heads):
                part = lambda row, k, h=h: row[k * WIDTH + h * d : k * WIDTH + (h + 1) * d]
                turn = turned if model.rotary else (lambda v, _: v)
                score = np.array([turn(part(qkv[t], 0), t) @ turn(part(qkv[s], 1), s) for s in range(t + 1)])
                share = np.exp(score / np.sqrt(d))
                share /= share.sum()
                heads.append(sum(a * part(qkv[s], 2) for s, a in enumerate(share)))
            added.append(np.concatenate(heads) @ block["attended"]["kernel"])
        x = [row + more for row, more in zip(x, added, strict=True)]
        for t, row in enumerate(x):
            gate, linear = np.split(norm(row, block["norm_gated"]["scale"]) @ block["gate"]["kernel"], 2)
            x[t] = row + (activation(gate) * linear) @ block["gated"]["kernel"]
    return [norm(row, p["norm"]["scale"]) for row in x]


def slow_gru(p, items, gaps, model):
    x = embedded(p, items, gaps, model)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    for number in range(model.layers):
        h, out = np.zeros(WIDTH), []
        kernel, bias = p[f"state_{number}"], p[f"state_bias_{number}"]
        for row in x:
            x_r, x_z, x_n = np.split(row @ p[f"input_{number}"]["kernel"] + p[f"input_{number}"]["bias"], 3)
            h_r, h_z, h_n = np.split(h @ kernel, 3)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            h = (1 - z) * np.tanh(x_n + r * (h_n + bias)) + z * h
            out.append(h)
        x = out if number == 0 else [a + b for a, b in zip(x, out, strict=True)]
    return [norm(row, p["norm"]["scale"]) for row in x]


@each_model
def test_packed_rows_equal_a_loop_over_users(model):
    params = params_of(model)
    got = np.asarray(vectors_of(model)(params, *EVENTS))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    slow = slow_gru if isinstance(model, Gru) else slow_transformer
    gap = np.asarray(PACKED.gap)
    assert PACKED.dropped.tolist() == [0, 0, 0, 0, 2]
    assert len(got) < 4  # several users share a row
    for j, items in enumerate(SEQUENCES):
        n = int(PACKED.count[j])
        row, end = int(PACKED.row[j]), int(PACKED.last[j]) + 1
        expected = slow(p, items[len(items) - n :], gap[row, end - n : end], model)
        np.testing.assert_allclose(got[row, end - n : end], np.reshape(expected, (n, WIDTH)), rtol=2e-4, atol=2e-5)


@each_model
def test_only_earlier_events_of_the_own_segment_count(model):
    """Changes each event in turn: the vectors that change are of the same segment, and not before it."""
    params = params_of(model)
    apply = jax.jit(lambda item: model.apply(params, item, *EVENTS[1:]))
    before = apply(PACKED.item)
    row_of, segment = np.indices(PACKED.item.shape)[0], np.asarray(PACKED.segment)
    for row, t in np.ndindex(*PACKED.item.shape):
        after = apply(PACKED.item.at[row, t].set((PACKED.item[row, t] + 1) % N_ITEMS))
        changed = np.asarray(jnp.any(before != after, axis=-1)) & (segment > 0)
        may = (row_of == row) & (segment == segment[row, t]) & (np.arange(WINDOW)[None, :] >= t) & (segment > 0)
        assert not (changed & ~may).any()
        assert changed[row, t] == (segment[row, t] > 0)


@each_model
def test_padding_may_hold_anything(model):
    params = params_of(model)
    where = PACKED.where
    expected = vectors_of(model)(params, *EVENTS)
    garbage = [jnp.where(where, PACKED.item, -5), PACKED.segment, jnp.where(where, PACKED.position, 99)]
    gap = jnp.where(where, PACKED.gap, jnp.nan)
    got = vectors_of(model)(params, *garbage, gap)
    np.testing.assert_array_equal(got[where], expected[where])
    assert bool(jnp.all(jnp.isfinite(got)))
    total = lambda params: jnp.where(where[..., None], model.apply(params, *garbage, gap), 0).sum()
    gradient = jax.jit(jax.grad(total))(params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["learned", "gru"])
def test_bfloat16_products_keep_parameters_and_vectors_in_float32(name):
    model = MODELS[name]
    half = model.clone(dtype=jnp.bfloat16)
    params = params_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), *EVENTS))} == {
        jnp.dtype("float32")
    }
    got, expected = vectors_of(half)(params, *EVENTS), vectors_of(model)(params, *EVENTS)
    assert got.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(got - expected))) < 0.5


@pytest.mark.parametrize("name", ["learned", "gru"])
def test_dropout_is_random_in_training_only(name):
    model, params = MODELS[name].clone(dropout=0.5), params_of(MODELS[name])
    run = jax.jit(lambda seed: model.apply(params, *EVENTS, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert not bool(jnp.allclose(run(0), run(1)))
    np.testing.assert_array_equal(vectors_of(model)(params, *EVENTS), vectors_of(MODELS[name])(params, *EVENTS))


def test_rotary_products_depend_on_the_difference_of_positions():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 6))
    at = lambda x, t: rotate(x, jnp.array([[t]]))[0, 0, 0]
    np.testing.assert_allclose(at(q, 3) @ at(k, 1), at(q, 13) @ at(k, 11), rtol=1e-4)
    assert abs(float(at(q, 3) @ at(k, 1) - at(q, 4) @ at(k, 1))) > 1e-3


def test_every_event_sees_itself():
    assert bool(jnp.all(jnp.diagonal(visible(PACKED.segment), axis1=1, axis2=2)))


@each_model
@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": jnp.full_like(PACKED.item, N_ITEMS)}, "item"),
        ({"position": jnp.full_like(PACKED.position, WINDOW)}, "position"),
        ({"item": PACKED.item[:, :2]}, "same shape|shape"),
    ],
)
def test_bad_events_are_refused(model, change, message):
    params = params_of(model)
    events = dict(zip(("item", "segment", "position", "gap"), EVENTS, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        model.apply(params, *events.values())


@pytest.mark.parametrize("gap", [None, -PACKED.gap - 1, jnp.full_like(PACKED.gap, jnp.nan)])
def test_a_model_with_gaps_needs_finite_ones(gap):
    with pytest.raises(ValueError, match="gap: expected"):
        MODELS["gaps"].apply(params_of(MODELS["gaps"]), *EVENTS[:3], gap)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"width": 0}, {"n_items": 0}, {"layers": -1}, {"width": 6, "heads": 2, "rotary": True}]
)
def test_bad_sizes_are_refused(wrong):
    sizes = {"n_items": N_ITEMS, "window": WINDOW, "width": WIDTH} | wrong
    with pytest.raises(ValueError, match="expected"):
        Transformer(**sizes).init(jax.random.key(0), *EVENTS[:3])
