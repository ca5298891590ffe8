"""The rules of the public API: what a reader of optax, lineax or LensKit expects without being told."""

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
    "batch_size": {"at_once", "chunk_size", "rows_at_once"},
    "bucket_growth": {"growth"},
    "burn_in": {"burn", "warmup"},
    "callback": {"callbacks", "hook"},
    "init": {"start", "initial"},
    "key": {"rng_key", "prng", "random_key"},
    "l2": {"reg", "regularization", "lam", "weight_decay"},
    "min_length": {"shortest"},
    "pad_to_multiple": {"multiple"},
    "progress": {"verbose", "show_progress"},
    "rng": {"seed", "random_state"},
    "row_precision": {"sureness"},
    "sweeps": {"iterations", "n_iter", "max_iter"},
    "test_fraction": {"test_size"},
    "tol": {"tolerance", "eps"},
    "unobserved_weight": {"unobserved"},
    "weights": {"sample_weight", "weight"},
    "where": {"mask", "valid"},
}
FORBIDDEN = {other: one for one, others in SPELLING.items() for other in others}

# A name with several owners, which are the same thing done to something else; every other name has one.
HOMONYMS = {
    "as_factors": ({"bayes.as_factors", "models.hybrid.as_factors"}, "a state or a network's parameters as Factors"),
    "cost": ({"losses.closed_form.cost", "losses.cost"}, "the same number; its derivative is computed otherwise"),
    "init_params": (
        {"models.bag_of_items.init_params", "models.hybrid.init_params"},
        "random initial parameters of a model",
    ),
    "init_state": ({"training.init_state", "training.lazy.init_state"}, "`lazy` has training's functions for tables"),
    "make_step": ({"training.lazy.make_step", "training.make_step"}, "`lazy` has training's functions for tables"),
    "load": (
        {"data.load", "scorer_storage.load", "sequence_requests.load", "serving.load", "storage.load"},
        "a dataset, a scorer, requests, a model",
    ),
    "save": (
        {"scorer_storage.save", "sequence_requests.save", "serving.save", "storage.save"},
        "requests, a scorer, a model",
    ),
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
    assert hidden == set()


def test_a_public_name_means_one_thing():
    """One object under a name, wherever it is reached; a homonym is listed with what its owners have in common."""
    things = {}
    for name, thing in PUBLIC.items():
        things.setdefault(name.rpartition(".")[2], {})[id(thing)] = name
    homonyms = {short: set(names.values()) for short, names in things.items() if len(names) > 1}
    assert homonyms == {short: {f"jaxrec.{name}" for name in owners} for short, (owners, _) in HOMONYMS.items()}


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
    assert wrong == set()


def test_keys_are_keywords():
    wrong = set()
    for name, function in FUNCTIONS.items():
        if any(p.name in ("key", "rng") and p.kind is not p.KEYWORD_ONLY for p in parameters(function).values()):
            wrong.add(name)
    assert wrong == set()


def test_a_meaning_has_one_spelling():
    wrong = {f"{name}({p})" for name, function in FUNCTIONS.items() for p in parameters(function) if p in FORBIDDEN}
    assert wrong == set()


def test_several_parts_come_as_a_named_tuple():
    plain = re.compile(r"tuple\[(?!.*, \.\.\.\]$)")
    assert {name for name, function in FUNCTIONS.items() if plain.match(annotations(function)["return"])} == set()


def test_arrays_of_any_library_are_taken():
    """Outside of the trees that the library made itself; a loss of one's own is called with JAX's arrays."""
    wrong = {
        f"{name}({argument})"
        for name, function in FUNCTIONS.items()
        for argument, annotation in annotations(function).items()
        if argument != "return" and re.search(r"\bArray\b", annotation) and "Callable" not in annotation
    }
    assert wrong == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_has_no_private_name(name):
    assert name == "jaxrec.__version__" or not any(part.startswith("_") for part in name.split("."))
