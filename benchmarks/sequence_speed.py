"""Tokens a second in training and users a second in scoring: a sequence transformer against plain PyTorch's.

    python -m benchmarks.sequence_speed --peer-python /path/to/python-with-torch

Both train the same shape with the same loss in float32 on two threads: one block of width 64 with a gated layer,
dropout 0, Adam, the softmax over 512 items that a batch shares; and score users by their last event's vector against
all items. Ours packs the users' sequences into rows of one length; PyTorch has one user per padded row, as its public
implementations have. A token is an event that is not padding.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

N_USERS, N_ITEMS, WINDOW, WIDTH, HIDDEN, NEGATIVES = 4_000, 12_000, 50, 64, 176, 512
ROWS, EPOCHS, SEED, LEARNING_RATE = 32, 3, 0, 1e-3


def lengths_and_items() -> tuple[Any, Any]:
    """Sequences with lengths as Amazon Beauty has them: most of a few events, few of many."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    length = np.minimum(3 + rng.geometric(1 / 5, N_USERS), WINDOW)
    return length, rng.integers(0, N_ITEMS, length.sum())


def ours() -> dict[str, float]:
    """Seconds of jaxrec, compilation apart."""
    from functools import partial

    import jax
    import numpy as np
    import optax

    from jaxrec import Ratings, data, training
    from jaxrec.models import sequence, sequence_scorer
    from jaxrec.training import negatives, next_item

    length, items = lengths_and_items()
    ratings = Ratings(np.repeat(np.arange(N_USERS), length), items, np.ones(len(items)), N_USERS, N_ITEMS)
    packed = data.sequences(ratings, length=WINDOW, order="position")
    rows = next_item.packed_rows(packed)
    model = sequence.Transformer(N_ITEMS, WINDOW, width=WIDTH, layers=1, heads=1, hidden=HIDDEN, dropout=0.0)
    params = model.init(jax.random.key(0), rows.item[:1], rows.segment[:1], rows.position[:1])
    cost = next_item.sampled_softmax_cost(model, partial(negatives.uniform, (NEGATIVES,), N_ITEMS))
    optimizer, marks = optax.adam(LEARNING_RATE), [time.perf_counter()]
    mark = lambda step, state, history: marks.append(time.perf_counter())
    options: dict[str, Any] = {"optimizer": optimizer, "batch_size": ROWS, "key": jax.random.key(1), "progress": False}
    fitted = training.fit_epochs(cost, params, rows, epochs=EPOCHS + 1, callback=mark, **options)
    epochs = [after - before for before, after in pairwise(marks)]

    @jax.jit
    def best(params: Any, packed: Any) -> Any:
        users = sequence_scorer.vectors_at_last(model, params, packed)
        table: Any = model.apply(params, method="items")
        return jax.lax.map(lambda block: (block @ table.T).max(axis=1), users.reshape(-1, 400, WIDTH))

    scoring = []
    for _ in range(EPOCHS + 1):
        began = time.perf_counter()
        jax.block_until_ready(best(fitted.params, packed))
        scoring.append(time.perf_counter() - began)
    return figures(len(items), epochs, scoring)


def peer() -> dict[str, float]:
    """Seconds of PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    length, items = lengths_and_items()
    padded = torch.zeros(N_USERS, WINDOW, dtype=torch.long)
    valid = torch.zeros(N_USERS, WINDOW, dtype=torch.bool)
    start = 0
    for user, n in enumerate(length.tolist()):
        padded[user, :n], valid[user, :n] = torch.as_tensor(items[start : start + n]), True
        start += n
    parts = nn.ModuleDict(
        {
            "item": nn.Embedding(N_ITEMS, WIDTH),
            "position": nn.Embedding(WINDOW, WIDTH),
            "qkv": nn.Linear(WIDTH, 3 * WIDTH, bias=False),
            "attended": nn.Linear(WIDTH, WIDTH, bias=False),
            "gate": nn.Linear(WIDTH, 2 * HIDDEN, bias=False),
            "gated": nn.Linear(HIDDEN, WIDTH, bias=False),
            **{f"norm_{number}": nn.LayerNorm(WIDTH) for number in range(3)},
        }
    )
    nn.init.normal_(parts["item"].weight, std=0.02)

    def hidden(item: Any) -> Any:
        x = parts["item"](item) + parts["position"].weight[None]
        q, k, v = parts["qkv"](parts["norm_0"](x)).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)
        x = x + parts["attended"](seen[:, 0])
        gate, linear = parts["gate"](parts["norm_1"](x)).chunk(2, dim=-1)
        return parts["norm_2"](x + parts["gated"](nn.functional.silu(gate) * linear))

    optimizer = torch.optim.Adam(parts.parameters(), lr=LEARNING_RATE)
    batch = max(1, round(ROWS * WINDOW / length.mean()))  # as many events in a step as ours

    def epoch() -> None:
        for users in torch.randperm(N_USERS).split(batch):
            item, follows = padded[users], valid[users][:, 1:]
            h, own = hidden(item)[:, :-1][follows], item[:, 1:][follows]
            drawn = torch.randint(N_ITEMS, (NEGATIVES,))
            table = parts["item"]
            score = (h @ table(drawn).T).masked_fill(own[:, None] == drawn[None], -torch.inf)
            score = score + torch.log(torch.tensor(N_ITEMS / NEGATIVES))
            every = torch.cat([(h * table(own)).sum(1, keepdim=True), score], dim=1)
            loss = nn.functional.cross_entropy(every, torch.zeros(len(own), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def scores() -> None:
        last = torch.as_tensor(length) - 1
        with torch.inference_mode():
            for users in torch.arange(N_USERS).split(400):
                vectors = hidden(padded[users])[torch.arange(len(users)), last[users]]
                (vectors @ parts["item"].weight.T).max(dim=1)

    def timed(run: Any) -> list[float]:
        found = []
        for _ in range(EPOCHS + 1):
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
        return found

    return figures(len(items), timed(epoch), timed(scores))


def figures(n_events: int, epochs: list[float], scoring: list[float]) -> dict[str, float]:
    """Speeds, medians without the first run, which compiles."""
    result = {"tokens a second": n_events / median(epochs[1:]), "users a second": N_USERS / median(scoring[1:])}
    return {name: round(value) for name, value in result.items()} | {"first epoch, seconds": round(epochs[0], 2)}


def main() -> None:
    """Prints both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--peer", action="store_true", help="run PyTorch in this process")
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer()))
        return
    command = [args.peer_python, "-I", str(Path(__file__).resolve()), "--peer"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    one, two = ours(), json.loads(found.splitlines()[-1])
    print(f"jaxrec:  {one}\nPyTorch: {two}")
    for name in ("tokens a second", "users a second"):
        print(f"{name}: {one[name] / two[name]:.2f} times PyTorch")


if __name__ == "__main__":
    main()
