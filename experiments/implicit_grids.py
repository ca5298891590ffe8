"""The settings that the methods of `experiments.published_implicit` choose from, by method and table.

A table that a method does not have here is not run with it. Changing a grid does not change a choice that was made:
delete its entry in published_implicit_choices.json to choose again.
"""

import itertools
from typing import Any

Settings = dict[str, Any]


def grid(**options: tuple[Any, ...]) -> list[Settings]:
    """All combinations of the options."""
    return [dict(zip(options, point, strict=True)) for point in itertools.product(*options.values())]


# ChebyCF's authors' settings of gowalla: nothing is chosen.
CHEBY_CF: Settings = {
    "order": (8,),
    "flatness": (1.5,),
    "rank": (512,),
    "ideal_weight": (0.2,),
    "degree_exponent": (0.4,),
}

GRIDS: dict[str, dict[str, list[Settings]]] = {
    "popularity": {table: [{}] for table in ("gowalla", "ml-1m-ncf", "ml-100k-strong", "ml-1m-strong")},
    "item_knn": {
        "gowalla": grid(k=(100,), shrinkage=(10.0, 30.0)),
        "ml-1m-ncf": grid(k=(50, 100, 200), shrinkage=(0.0, 100.0)),
        "ml-100k-strong": grid(k=(20, 50, 100, 200), shrinkage=(0.0, 10.0, 100.0)),
        "ml-1m-strong": grid(k=(50, 100, 200), shrinkage=(0.0, 100.0)),
    },
    "rp3beta": {
        "gowalla": grid(k=(400,), alpha=(0.7,), beta=(0.35,)),
        "ml-100k-strong": grid(k=(100, 400), alpha=(0.7, 1.0), beta=(0.2, 0.4, 0.6)),
        "ml-1m-strong": grid(k=(100, 400), alpha=(0.7, 1.0), beta=(0.2, 0.4, 0.6)),
    },
    "ease": {
        "gowalla": grid(l2=(300.0,)),
        "ml-1m-ncf": grid(l2=(300.0, 1000.0)),
        "ml-100k-strong": grid(l2=(30.0, 100.0, 200.0, 300.0, 500.0)),
        "ml-1m-strong": grid(l2=(100.0, 200.0, 300.0, 500.0, 1000.0)),
    },
    "ials": {
        "gowalla": grid(rank=(128,), l2=(0.003, 0.01), unobserved_weight=(0.03, 0.1), cg_steps=(2,), sweeps=(12,)),
        "ml-1m-ncf": grid(
            rank=(192, 512), l2=(0.005, 0.007, 0.01), unobserved_weight=(0.3,), cg_steps=(2,), sweeps=(12,)
        ),
        "ml-100k-strong": grid(
            rank=(16, 32, 64), l2=(0.01, 0.03, 0.1), unobserved_weight=(0.1, 0.3, 1.0), sweeps=(12,)
        ),
        "ml-1m-strong": grid(rank=(64, 128), l2=(0.003, 0.01), unobserved_weight=(0.1, 0.3), sweeps=(12,)),
    },
    "closed_form": {
        "gowalla": grid(**CHEBY_CF, hop_weight=(0.05, 0.1, 0.2), hop_user_exponent=(0.15,)),
    },
    "low_pass": {
        "gowalla": grid(rank=(1024,), hop_weight=(0.35, 0.5), hop_user_exponent=(0.15,), spectral_power=(0.0, 0.5)),
        "ml-1m-ncf": grid(rank=(64, 128, 256), hop_weight=(0.0, 0.1), hop_user_exponent=(0.15,)),
    },
    "cheby_cf": {"gowalla": grid(**CHEBY_CF)},
    "softmax_mf": {
        "gowalla": grid(
            rank=(128,),
            temperature=(0.1,),
            negatives_per_batch=(1024,),
            batch_size=(2048,),
            learning_rate=(0.03,),
            epochs=(24,),
        )
    },
    "bag_of_items": {
        "ml-100k-strong": grid(
            rank=(64, 256),
            dropped=(0.5,),
            power=(0.5,),
            l2=(0.01, 0.1),
            batch_size=(100,),
            learning_rate=(0.003,),
            epochs=(20, 50, 100),
        ),
        "ml-1m-strong": grid(
            rank=(256,),
            dropped=(0.5,),
            power=(0.5,),
            l2=(0.01, 0.1, 1.0, 3.0, 10.0),
            batch_size=(200,),
            learning_rate=(0.003,),
            epochs=(20, 50),
        ),
    },
    "blend": {"gowalla": grid(weight=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0))},
    "cheby_blend": {"gowalla": grid(weight=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0))},
    "ease_ials": {table: grid(weight=(0.5, 1.0, 2.0)) for table in ("ml-1m-ncf", "ml-100k-strong", "ml-1m-strong")},
    "irspack_ease": {
        "ml-100k-strong": grid(reg=(30.0, 100.0, 200.0, 300.0, 500.0)),
        "ml-1m-strong": grid(reg=(100.0, 200.0, 300.0, 500.0, 1000.0)),
    },
    "irspack_ials": {
        "ml-100k-strong": grid(
            n_components=(16, 32, 64), reg=(0.003, 0.01, 0.03), alpha0=(0.1, 0.3, 1.0), train_epochs=(12,)
        ),
        "ml-1m-strong": grid(n_components=(64, 128), reg=(0.003, 0.01), alpha0=(0.1, 0.3), train_epochs=(12,)),
    },
    "irspack_edlae": {
        "ml-100k-strong": grid(reg=(10.0, 30.0, 100.0), dropout_p=(0.2, 0.4, 0.6)),
        "ml-1m-strong": grid(reg=(100.0, 300.0, 1000.0), dropout_p=(0.2, 0.4, 0.6)),
    },
}
