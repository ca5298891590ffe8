"""Every dataclass of the library that is a pytree has a structure of its own."""

import ast
import dataclasses
import importlib
import itertools
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxrec
from jaxrec.pytree import register_dataclass

ROOT = Path(jaxrec.__file__).parent


def classes():
    """All dataclasses of jaxrec that are pytrees, also private ones."""
    modules = [importlib.import_module(each.name) for each in pkgutil.walk_packages(jaxrec.__path__, "jaxrec.")]
    every = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__.startswith("jaxrec.")
    }
    pytrees = [each for each in every if not jax.tree_util.all_leaves([bare(each)])]
    return sorted(pytrees, key=lambda each: each.__qualname__)


def bare(cls):
    """An instance with a number in every field, whatever its constructor checks."""
    value = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(value, field.name, 1.0)
    return value


def test_no_two_classes_have_equal_structures():
    found = classes()
    assert {"Polynomial", "Chebyshev", "Factors", "TrainState", "Sequences"} <= {each.__name__ for each in found}
    structures = {each: jax.tree.structure(bare(each)) for each in found}
    assert [(a, b) for a, b in itertools.combinations(found, 2) if structures[a] == structures[b]] == []
    assert all(jax.tree.structure(bare(each)) == structures[each] for each in found)


def test_no_file_registers_dataclasses_by_jax():
    """Its structures of different classes compare equal: see jaxrec.pytree."""
    files = [
        *ROOT.rglob("*.py"),
        *(ROOT.parent / "experiments").glob("*.py"),
        *(ROOT.parent / "benchmarks").glob("*.py"),
    ]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "jax.tree_util":
                assert "register_dataclass" not in {each.name for each in node.names}, path
            if isinstance(node, ast.Attribute) and node.attr == "register_dataclass":
                raise AssertionError(path)


def pair():
    """Two classes with the same fields and different calls."""

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Twice:
        x: jax.Array

        def __call__(self):
            return 2 * self.x

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Thrice:
        x: jax.Array

        def __call__(self):
            return 3 * self.x

    return Twice, Thrice


def test_programs_of_classes_with_the_same_fields_are_not_confused():
    run = jax.jit(lambda value: value())
    for _ in range(20):
        twice, thrice = pair()
        assert (float(run(twice(jnp.ones(())))), float(run(thrice(jnp.ones(()))))) == (2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Named:
    x: jax.Array
    name: str = dataclasses.field(default="a", metadata={"static": True})
    y: jax.Array | None = None


register_dataclass(Named)


@pytest.mark.parametrize("value", [Named(jnp.ones(2)), Named(jnp.ones(2), "b", jnp.zeros(1))])
def test_fields_keep_their_names_and_static_ones_are_structure(value):
    leaves, structure = jax.tree.flatten(value)
    again = jax.tree.unflatten(structure, leaves)
    assert all(getattr(again, field.name) is getattr(value, field.name) for field in dataclasses.fields(Named))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(value)]
    assert paths == [".x", ".y"][: len(leaves)]
    assert structure != jax.tree.structure(dataclasses.replace(value, name="c"))
