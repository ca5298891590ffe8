"""Who may import whom, what is public, and what `import jaxrec` must not bring in."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrec

ROOT = Path(jaxrec.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
BOTTOM = {
    "check",
    "counting_sort",
    "dataset",
    "events",
    "gather",
    "numerics",
    "pytree",
    "ratings",
    "raw_ids",
    "times",
    "types",
}
ALLOWED = {  # a part of jaxrec: what it may import beside itself
    "_version": set(),
    "atomic": set(),
    "check": set(),
    "checkpoints": {"_version", "atomic", "check"},
    "counting_sort": {"check"},
    "gather": set(),
    "numerics": set(),
    "pytree": set(),
    "raw_ids": set(),
    "times": {"check"},
    "ratings": {"check", "counting_sort", "raw_ids", "times"},
    "dataset": {"check", "ratings", "raw_ids"},
    "types": {"dataset", "pytree", "ratings"},
    "events": {"check", "counting_sort", "types"},
    "prediction": BOTTOM | {"kernels"},
    "scorers": BOTTOM | {"prediction"},
    "kernels": {"types", "check", "counting_sort", "gather", "numerics", "pytree"},
    "models": BOTTOM | {"kernels", "prediction"},
    "losses": BOTTOM | {"kernels", "prediction"},
    "data": BOTTOM | {"atomic"},
    "metrics": BOTTOM,
    "retrieval": BOTTOM | {"kernels"},
    "solvers": BOTTOM
    | {
        "checkpoints",
        "data.layouts",
        "kernels",
        "losses",
        "models.factors",
        "models.linear",
        "models.neighbors",
        "models.recency",
        "prediction",
    },
    "bayes": BOTTOM | {"checkpoints", "data.layouts", "kernels", "prediction", "solvers"},
    "training": {"types", "check", "checkpoints", "gather", "losses", "numerics", "pytree"},
    "storage": BOTTOM | {"_version", "atomic"},
    "serving": BOTTOM | {"storage"},
    "scorer_storage": BOTTOM | {"kernels", "models", "solvers", "storage"},
    "sequence_requests": BOTTOM | {"retrieval", "serving"},
    "evaluation": BOTTOM | {"data.layouts", "kernels", "metrics", "prediction", "scorers"},
    "catalog": BOTTOM | {"data.layouts", "kernels", "prediction", "retrieval", "scorers"},
}


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(source, modules=MODULES):
    """Every module that a source imports, anywhere in it; `from a import b` is a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.add(whole if whole in modules or not module.startswith("jaxrec") else module)
    return found


def forbidden(module, imported):
    """The imports of a module that its part of jaxrec may not have."""
    part = module.split(".")[1] if "." in module else None
    if part is None:
        return set()
    wrong = set()
    for name in imported:
        if name.startswith("."):
            wrong.add(name)  # one way to write an import, so that this file can read it
        elif name == "jaxrec" or name.startswith("jaxrec."):
            inner = name.removeprefix("jaxrec").removeprefix(".")
            allowed = ALLOWED[part] | {part}
            if not any(inner == one or inner.startswith(f"{one}.") for one in allowed):
                wrong.add(name)
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_the_allowed_directions(module):
    assert forbidden(module, imports(MODULES[module].read_text())) == set()


def test_every_part_has_its_rule():
    assert {module.split(".")[1] for module in MODULES if "." in module} == set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("jaxrec.check", "from jaxrec import types", {"jaxrec.types"}),
        ("jaxrec.losses.x", "from jaxrec.prediction import predict\nimport jaxrec.losses.y", set()),
        ("jaxrec.losses.x", "from jaxrec.models import baselines", {"jaxrec.models.baselines"}),
        ("jaxrec.losses.x", "from jaxrec.models import predict", {"jaxrec.models"}),
        ("jaxrec.models.x", "def f():\n    from jaxrec.losses import cost", {"jaxrec.losses"}),
        ("jaxrec.data.x", "import jaxrec", {"jaxrec"}),
        ("jaxrec.data.x", "from ..losses import cost", {"..losses.cost"}),
        ("jaxrec.catalog", "from jaxrec.retrieval import top_k\nfrom jaxrec import data", {"jaxrec.data"}),
    ],
)
def test_the_reader_of_imports_sees_them(module, source, wrong):
    assert forbidden(module, imports(source)) == wrong


@pytest.mark.parametrize("module", MODULES)
def test_nobody_reaches_outside_the_package_or_for_pallas(module):
    imported = imports(MODULES[module].read_text())
    tops = {name.split(".")[0] for name in imported}
    assert not tops & {"experiments", "benchmarks", "tests"}
    if not module.startswith("jaxrec.kernels"):
        assert not [name for name in imported if "pallas" in name or "mosaic" in name]


def has_own_docstring(name, thing):
    """Dataclasses and named tuples write themselves a docstring, their signature: that is none."""
    text = inspect.getdoc(thing) or ""
    return len(text.split()) > 1 and not text.startswith(f"{name}(")


def is_alias(thing):
    """L2 = Strength | tuple[...]: there is nowhere to put a docstring."""
    return not (
        inspect.isclass(thing) or inspect.ismodule(thing) or inspect.isroutine(thing) or hasattr(thing, "__wrapped__")
    )


@pytest.mark.parametrize("module", [name for name in MODULES if "._" not in name])
def test_what_is_public_is_listed_exists_and_is_described(module):
    loaded = importlib.import_module(module)
    assert (loaded.__doc__ or "").strip(), "a module says what it is for"
    defined = [node for node in ast.parse(MODULES[module].read_text()).body if not isinstance(node, ast.Expr)]
    if not defined:
        return  # a package of nothing but its docstring
    names = loaded.__all__
    assert len(names) == len(set(names))
    for name in names:
        thing = getattr(loaded, name)
        assert is_alias(thing) or has_own_docstring(name, thing), f"{module}.{name} has no docstring"


def test_public_methods_are_described():
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", ()):
            thing = getattr(loaded, name)
            if inspect.isclass(thing) and thing.__module__.startswith("jaxrec"):
                for method, function in vars(thing).items():
                    if not method.startswith("_") and inspect.isroutine(getattr(thing, method)) and callable(function):
                        assert (inspect.getdoc(function) or "").strip(), f"{module}.{name}.{method} has no docstring"


def test_import_jaxrec_is_light():
    heavy = ["flax", "polars", "matplotlib", "pooch", "pandas", "sklearn"]
    code = (
        "import sys, jax, jax.numpy; before = set(sys.modules); import jaxrec; new = set(sys.modules) - before; "
        f"print(jaxrec.__name__, [name for name in {heavy} if name in sys.modules], "
        "sorted(name for name in new if name.split('.')[0] == 'scipy'))"  # such as scipy.stats, of 1.2 s
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.strip() == "jaxrec [] []"
