"""The rules of the public API: what a reader of optax, lineax or LensKit expects without being told.

Each rule has the list of what breaks it today. A list may only shrink: whatever breaks a rule and is not listed fails,
and so does a listed name that no longer breaks it.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest

import jaxrec

# The first word of an argument's name that says what it is. Model or state first, then data.
MODEL = {"factors", "state", "params", "draws", "posterior", "model", "index", "step", "level", "factor", "towers"}
DATA = {"ratings", "rows", "by_user", "by_item", "train", "test", "batches", "batch", "user", "item", "users", "items"}
DATA |= {"queries", "value", "where", "x", "y", "w", "b", "matrix", "frame", "known", "scores", "table"}

# One spelling per meaning: what stands for what.
SPELLING = {
    "batch_size": {"at_once", "block", "chunk_size"},
    "bucket_growth": {"growth"},
    "burn_in": {"burn", "warmup"},
    "callback": {"callbacks", "hook"},
    "init": {"start", "initial"},
    "key": {"rng_key", "prng", "random_key"},
    "l2": {"reg", "regularization", "lam", "weight_decay"},
    "min_length": {"shortest"},
    "pad_to_multiple": {"multiple"},
    "precision": {"sureness"},
    "progress": {"verbose", "show_progress"},
    "rng": {"seed", "random_state"},
    "sweeps": {"iterations", "n_iter", "max_iter"},
    "test_fraction": {"test_size"},
    "tol": {"tolerance", "eps"},
    "unobserved_weight": {"unobserved"},
    "weights": {"sample_weight", "weight"},
    "where": {"mask", "valid"},
}
FORBIDDEN = {other: one for one, others in SPELLING.items() for other in others}

# What breaks a rule today.
HIDDEN_MODULES = {
    "jaxrec.retrieval.related",
    "jaxrec.solvers.als",
}
HOMONYMS = {
    "State": ["jaxrec.solvers.gibbs.State", "jaxrec.training.State"],
    "build": ["jaxrec.retrieval.approximate.build", "jaxrec.retrieval.quantized.build"],
    "cost": ["jaxrec.losses.closed_form.cost", "jaxrec.losses.cost"],
    "fit": ["jaxrec.data.features.fit", "jaxrec.training.fit"],
    "global_mean": ["jaxrec.data.normalize.global_mean", "jaxrec.models.baselines.global_mean"],
    "init": ["jaxrec.models.init", "jaxrec.training.init", "jaxrec.training.lazy.init"],
    "item_mean": ["jaxrec.data.normalize.item_mean", "jaxrec.models.baselines.item_mean"],
    "leave_one_out": ["jaxrec.solvers.leave_one_out", "jaxrec.solvers.ridge.leave_one_out"],
    "load": ["jaxrec.artifact.load", "jaxrec.data.load", "jaxrec.serving.load"],
    "make_step": ["jaxrec.training.lazy.make_step", "jaxrec.training.make_step"],
    "predict": ["jaxrec.models.predict", "jaxrec.solvers.newcomer.predict"],
    "recall": ["jaxrec.metrics.ranking.recall", "jaxrec.retrieval.approximate.recall"],
    "related": ["jaxrec.related", "jaxrec.retrieval.related"],
    "save": ["jaxrec.artifact.save", "jaxrec.serving.save"],
    "sweep": ["jaxrec.solvers.gibbs.sweep", "jaxrec.solvers.sweep"],
    "user_mean": ["jaxrec.data.normalize.user_mean", "jaxrec.models.baselines.user_mean"],
}
NOT_MODEL_FIRST = {
    "jaxrec.solvers.fold_in",
    "jaxrec.solvers.gibbs.gibbs",
    "jaxrec.solvers.implicit_fold_in",
    "jaxrec.solvers.leave_one_out",
}
MISSPELLED = {
    "jaxrec.data.linked(multiple)",
    "jaxrec.data.memory(multiple)",
    "jaxrec.data.memory(shortest)",
    "jaxrec.data.minibatches(seed)",
    "jaxrec.data.observed(multiple)",
    "jaxrec.data.rows(multiple)",
    "jaxrec.data.rows(shortest)",
    "jaxrec.evaluation.ranking(at_once)",
    "jaxrec.retrieval.approximate.recall(block)",
    "jaxrec.retrieval.candidates.nearest(block)",
    "jaxrec.retrieval.top_k(block)",
    "jaxrec.solvers.frequency_scaled(unobserved)",
    "jaxrec.solvers.gibbs.gibbs(block)",
    "jaxrec.solvers.gibbs.gibbs(burn)",
    "jaxrec.solvers.implicit_als(unobserved)",
    "jaxrec.solvers.implicit_cost(unobserved)",
    "jaxrec.solvers.implicit_fold_in(unobserved)",
    "jaxrec.solvers.implicit_sweep(unobserved)",
    "jaxrec.solvers.newcomer.next_question(block)",
    "jaxrec.training.grid(at_once)",
}
PLAIN_TUPLES = {
    "jaxrec.artifact.read",
    "jaxrec.data.lists",
    "jaxrec.data.splits.by_time",
    "jaxrec.data.splits.canonical",
    "jaxrec.data.splits.leave_last",
    "jaxrec.data.splits.random",
    "jaxrec.data.to_dense",
    "jaxrec.losses.closed_form.user_gradient",
    "jaxrec.losses.closed_form.value_and_gradient",
    "jaxrec.models.as_vectors",
    "jaxrec.retrieval.candidates.favorites",
    "jaxrec.retrieval.candidates.look_up",
    "jaxrec.retrieval.ranking.diversify",
    "jaxrec.retrieval.ranking.order",
    "jaxrec.retrieval.ranking.rank",
    "jaxrec.retrieval.related",
    "jaxrec.retrieval.top_k",
    "jaxrec.solvers.als",
    "jaxrec.solvers.dense_sweep",
    "jaxrec.solvers.frequency_scaled",
    "jaxrec.solvers.gibbs.gibbs",
    "jaxrec.solvers.hierarchy.wishart",
    "jaxrec.solvers.implicit_als",
    "jaxrec.solvers.implicit_sweep",
    "jaxrec.solvers.ordinal.moments",
    "jaxrec.solvers.ridge.solve_user",
    "jaxrec.solvers.solve_user",
    "jaxrec.solvers.sweep",
    "jaxrec.training.descend",
    "jaxrec.training.epochs",
    "jaxrec.training.fit",
}
ARRAYS_WANTED = {
    "jaxrec.losses.closed_form.item_gradient(b)",
    "jaxrec.losses.closed_form.item_gradient(c)",
    "jaxrec.losses.closed_form.item_gradient(offset)",
    "jaxrec.losses.closed_form.item_gradient(w)",
    "jaxrec.losses.closed_form.item_gradient(weights)",
    "jaxrec.losses.closed_form.item_gradient(where)",
    "jaxrec.losses.closed_form.item_gradient(x)",
    "jaxrec.losses.closed_form.item_gradient(y)",
    "jaxrec.losses.closed_form.user_gradient(b)",
    "jaxrec.losses.closed_form.user_gradient(offset)",
    "jaxrec.losses.closed_form.user_gradient(w)",
    "jaxrec.losses.closed_form.user_gradient(weights)",
    "jaxrec.losses.closed_form.user_gradient(where)",
    "jaxrec.losses.closed_form.user_gradient(x)",
    "jaxrec.losses.closed_form.user_gradient(y)",
    "jaxrec.losses.content.in_batch_softmax(temperature)",
    "jaxrec.losses.content.kernels(l2)",
    "jaxrec.losses.content.two_tower(offset)",
    "jaxrec.losses.content.two_tower(scale)",
    "jaxrec.losses.item_cost(b)",
    "jaxrec.losses.item_cost(c)",
    "jaxrec.losses.item_cost(offset)",
    "jaxrec.losses.item_cost(w)",
    "jaxrec.losses.item_cost(weights)",
    "jaxrec.losses.item_cost(where)",
    "jaxrec.losses.item_cost(x)",
    "jaxrec.losses.item_cost(y)",
    "jaxrec.losses.items_cost(b)",
    "jaxrec.losses.items_cost(w)",
    "jaxrec.losses.items_cost(where)",
    "jaxrec.losses.items_cost(x)",
    "jaxrec.losses.items_cost(y)",
    "jaxrec.losses.user_cost(b)",
    "jaxrec.losses.user_cost(offset)",
    "jaxrec.losses.user_cost(w)",
    "jaxrec.losses.user_cost(weights)",
    "jaxrec.losses.user_cost(where)",
    "jaxrec.losses.user_cost(x)",
    "jaxrec.losses.user_cost(y)",
    "jaxrec.losses.users_cost(b)",
    "jaxrec.losses.users_cost(w)",
    "jaxrec.losses.users_cost(where)",
    "jaxrec.losses.users_cost(x)",
    "jaxrec.losses.users_cost(y)",
    "jaxrec.models.init(scale)",
    "jaxrec.retrieval.ranking.diversify(trade_off)",
    "jaxrec.solvers.gibbs.factors(mu)",
    "jaxrec.solvers.gibbs.sweep(mu)",
    "jaxrec.solvers.hierarchy.draw_sureness(count)",
    "jaxrec.solvers.hierarchy.draw_sureness(error)",
    "jaxrec.solvers.hierarchy.wishart(scatter)",
    "jaxrec.solvers.implicit_als(unobserved)",
    "jaxrec.solvers.implicit_cost(unobserved)",
    "jaxrec.solvers.implicit_fold_in(unobserved)",
    "jaxrec.solvers.implicit_sweep(unobserved)",
    "jaxrec.solvers.ordinal.draw_cuts(cut)",
    "jaxrec.solvers.ordinal.draw_cuts(eta)",
    "jaxrec.solvers.ordinal.draw_cuts(level)",
    "jaxrec.solvers.ordinal.draw_cuts(precision)",
    "jaxrec.solvers.ordinal.draw_cuts(scale)",
    "jaxrec.solvers.ordinal.draw_cuts(where)",
    "jaxrec.solvers.ordinal.draw_latents(cut)",
    "jaxrec.solvers.ordinal.draw_latents(eta)",
    "jaxrec.solvers.ordinal.draw_latents(level)",
    "jaxrec.solvers.ordinal.draw_latents(precision)",
    "jaxrec.solvers.ordinal.draw_latents(where)",
    "jaxrec.solvers.ordinal.log_interval(lower)",
    "jaxrec.solvers.ordinal.log_interval(upper)",
    "jaxrec.solvers.ordinal.moments(eta)",
    "jaxrec.solvers.ordinal.moments(precision)",
    "jaxrec.solvers.ordinal.probabilities(cut)",
    "jaxrec.solvers.ordinal.probabilities(eta)",
    "jaxrec.solvers.ordinal.probabilities(precision)",
    "jaxrec.training.descend(key)",
    "jaxrec.training.epochs(key)",
    "jaxrec.training.fit(key)",
}
KEYS_BY_POSITION = {
    "jaxrec.data.features.align",
    "jaxrec.solvers.hierarchy.gamma",
    "jaxrec.solvers.hierarchy.wishart",
    "jaxrec.solvers.ridge.sample",
}


def public():
    """Qualified name -> object: all that is reached from `jaxrec.__all__` through the lists of its modules."""
    found, todo, seen = {}, [("jaxrec", jaxrec)], set()
    while todo:
        path, module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                todo.append((f"{path}.{name}", thing))
            else:
                found[f"{path}.{name}"] = thing
    return found


PUBLIC = public()
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isroutine(thing)}


def parameters(function):
    return inspect.signature(function).parameters


def annotations(function):
    """Name -> what its annotation says in the source, where aliases and jaxtyping's shapes have their own names."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    every = [*node.args.args, *node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
    found = {each.arg: ast.unparse(each.annotation) for each in every if each.annotation}
    return found | ({"return": ast.unparse(node.returns)} if node.returns else {})


def test_the_walk_finds_the_library():
    assert {"jaxrec.recommend", "jaxrec.losses.cost", "jaxrec.data.splits.random"} <= set(PUBLIC)


def test_no_module_is_hidden_by_a_function_of_its_name():
    hidden = set()
    for module in pkgutil.walk_packages(jaxrec.__path__, "jaxrec."):
        parent, _, name = module.name.rpartition(".")
        if not inspect.ismodule(getattr(importlib.import_module(parent), name, importlib.import_module(module.name))):
            hidden.add(module.name)
    assert hidden == HIDDEN_MODULES


def test_a_public_name_means_one_thing():
    """One object under a name, wherever it is reached; a homonym is listed with what its owners have in common."""
    things = {}
    for name, thing in PUBLIC.items():
        things.setdefault(name.rpartition(".")[2], {})[id(thing)] = name
    homonyms = {short: sorted(names.values()) for short, names in things.items() if len(names) > 1}
    assert homonyms == HOMONYMS


def first_words(name, words):
    return name in words or name.split("_")[0] in words


def test_the_model_comes_before_the_data():
    wrong = set()
    for name, function in FUNCTIONS.items():
        positional = [p.name for p in parameters(function).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        kinds = ["model" if p in MODEL else "data" if p in DATA else "" for p in positional]
        kinds = [kind for kind in kinds if kind]
        if kinds != sorted(kinds, reverse=True):
            wrong.add(name)
    assert wrong == NOT_MODEL_FIRST


def test_keys_are_keywords():
    wrong = set()
    for name, function in FUNCTIONS.items():
        if any(p.name in ("key", "rng") and p.kind is not p.KEYWORD_ONLY for p in parameters(function).values()):
            wrong.add(name)
    assert wrong == KEYS_BY_POSITION


def test_a_meaning_has_one_spelling():
    wrong = {f"{name}({p})" for name, function in FUNCTIONS.items() for p in parameters(function) if p in FORBIDDEN}
    assert wrong == MISSPELLED


def test_several_parts_come_as_a_named_tuple():
    plain = re.compile(r"tuple\[(?!.*, \.\.\.\]$)")
    assert {
        name for name, function in FUNCTIONS.items() if plain.match(annotations(function)["return"])
    } == PLAIN_TUPLES


def test_arrays_of_any_library_are_taken():
    """Outside of the trees that the library made itself; a loss of one's own is called with JAX's arrays."""
    wrong = {
        f"{name}({argument})"
        for name, function in FUNCTIONS.items()
        for argument, annotation in annotations(function).items()
        if argument != "return" and re.search(r"\bArray\b", annotation) and "Callable" not in annotation
    }
    assert wrong == ARRAYS_WANTED


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_has_no_private_name(name):
    assert not any(part.startswith("_") for part in name.split("."))
