"""The API reference: a page per public module, an entry per public name, written before each build.

Docstrings are plain text with Markdown's backticks and tables; here they become reStructuredText, which autodoc reads.
"""

import inspect
import re
from pathlib import Path

import public_names
from docstrings import as_rst
from sphinx.util import logging

LOG = logging.getLogger(__name__)


def write_pages(app):
    folder = Path(app.srcdir) / "api"
    pages = {name: page(name) for name in public_names.MODULES}
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.glob("jaxrec*.rst"):
        if path.stem not in pages:
            path.unlink()


def page(module):
    names = sorted(n for n in public_names.NAMES if n.rpartition(".")[0] == module)
    own = [name for name in names if public_names.CANONICAL[name] == name]
    aliases = {name: public_names.CANONICAL[name] for name in names if name not in own}
    for name in own:
        if not inspect.getdoc(public_names.NAMES[name]) and not alias_of_type(public_names.NAMES[name]):
            LOG.warning("%s is public and has no docstring.", name)
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", ""]
    if aliases:
        listed = ", ".join(f"``{name.rpartition('.')[2]}`` (``{home}``)" for name, home in aliases.items())
        lines += [f"Also here: {listed}.", ""]
    if own:
        lines += [f".. currentmodule:: {module}", "", ".. autosummary::", ""]
        lines += [f"   {name.rpartition('.')[2]}" for name in own] + [""]
    for name in own:
        lines += [directive(name, public_names.NAMES[name]), ""]
    return "\n".join(lines)


def alias_of_type(thing):
    return not inspect.isclass(thing) and not inspect.isroutine(thing)


def directive(name, thing):
    if inspect.isclass(thing):
        return f".. autoclass:: {name}\n   :members:"
    return f".. autofunction:: {name}" if inspect.isroutine(thing) else f".. autodata:: {name}\n   :no-value:"


def clean(app, what, name, thing, options, lines):
    lines[:] = as_rst(lines)


def signature(app, what, name, thing, options, args, returns):
    """As the source has it: the names of aliases and of shapes, and functions as defaults by their names."""
    if what not in ("function", "method", "class"):
        return None
    try:
        found = inspect.signature(inspect.unwrap(thing))
    except (TypeError, ValueError):
        return None
    shown = [parameter(each) for each in found.parameters.values() if each.name not in ("self", "_cls", "cls")]
    kinds = [each.kind for each in found.parameters.values() if each.name not in ("self", "_cls", "cls")]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = found.return_annotation if what != "class" else found.empty
    return f"({', '.join(shown)})", None if result in (found.empty, None, "None") else text(result)


def parameter(each):
    stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
    typed = "" if each.annotation is each.empty else f": {text(each.annotation)}"
    if each.default is each.empty:
        return f"{stars}{each.name}{typed}"
    named = callable(each.default) and hasattr(each.default, "__name__")
    default = each.default.__name__ if named else repr(each.default)
    if default.startswith("<"):  # an object without a literal
        default = "..."
    return f"{each.name}{typed} = {default}" if typed else f"{each.name}={default}"


def text(annotation):
    """An annotation as the source has it; those of a NamedTuple are ForwardRefs."""
    annotation = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(annotation, str):
        return annotation
    return (
        annotation.__name__ if inspect.isclass(annotation) else re.sub(r"\b(?:typing|jaxtyping)\.", "", str(annotation))
    )


def skip(app, what, name, thing, skipped, options):
    """A field of a NamedTuple says nothing by itself; the class's docstring describes it."""
    return True if (inspect.getdoc(thing) or "").startswith("Alias for field number") else None


def setup(app):
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", clean, priority=400)  # before Napoleon
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
