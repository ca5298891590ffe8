"""The public names of jaxrec: all that is reached from `jaxrec.__all__` through the lists of its modules."""

import importlib
import inspect


def walk():
    """(modules, names): qualified name -> module, and (qualified name -> object), every alias of it included."""
    modules, names, todo = {}, {}, ["jaxrec"]
    while todo:
        path = todo.pop(0)
        modules[path] = importlib.import_module(path)
        for name in modules[path].__all__:
            thing = getattr(modules[path], name)
            if inspect.ismodule(thing):
                if thing.__name__ not in modules and thing.__name__ not in todo:
                    todo.append(thing.__name__)
            elif not name.startswith("__"):
                names[f"{path}.{name}"] = thing
    return modules, names


def canonical(names):
    """Alias -> the one name under which a thing has its entry: in the module that defines it, or the shortest."""
    by_thing = {}
    for name, thing in names.items():
        by_thing.setdefault(id(thing), []).append(name)

    def home(name):
        defined = getattr(names[name], "__module__", None)
        return (name.rpartition(".")[0] != defined, name.count("."), name)

    return {alias: min(aliases, key=home) for aliases in by_thing.values() for alias in aliases}


MODULES, NAMES = walk()
CANONICAL = canonical(NAMES)
SHORT = {}
for _name in set(CANONICAL.values()):
    SHORT.setdefault(_name.rpartition(".")[2], []).append(_name)


def resolve(text, module="jaxrec"):
    """The canonical name that `text` means in a page about `module`, or None.

    A name with a dot may leave out `jaxrec.` or the packages of its module; one without is of the module itself.
    """
    text = text.removesuffix("()")
    parents = module.split(".")
    prefixes = [".".join(parents[:n]) + "." for n in range(len(parents), 0, -1)]
    for full in [text, *(prefix + text for prefix in (prefixes if "." in text else prefixes[:1]))]:
        if full in CANONICAL:
            return CANONICAL[full]
        if full in MODULES and "." in full:
            return full
    return None


def exists(text):
    """Whether a name that begins with `jaxrec.` is one: public, a module, or an attribute of either."""
    parts = text.removesuffix("()").split(".")
    for n in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            fields = getattr(thing, "__dataclass_fields__", {})
            if part not in fields and not hasattr(thing, part):
                return False
            thing = getattr(thing, part, None)
        return True
    return False
