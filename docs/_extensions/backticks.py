"""A public name in backticks is a link to its entry, on every page and in every docstring.

One that begins with `jaxrec.` must exist, or the build fails.
"""

import re

import public_names
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

LOG = logging.getLogger(__name__)
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")


class LinkNames(SphinxPostTransform):
    """Wraps literals that are public names into links."""

    default_priority = 5

    def run(self, **options):
        here = self.env.docname
        module = here.removeprefix("api/") if here.startswith("api/jaxrec") else "jaxrec"
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            if not DOTTED.fullmatch(text) or inside(node, nodes.reference, nodes.title):
                continue
            name = public_names.resolve(text, module)
            if name is not None:
                node.replace_self(link(self.app.builder, here, name, node.deepcopy()))
            elif (
                text.startswith("jaxrec.") and here != "changelog" and not public_names.exists(text)
            ):  # it has old names
                LOG.warning("There is no %s.", text, location=node)


def inside(node, *kinds):
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def link(builder, here, name, content):
    page = name if name in public_names.MODULES else name.rpartition(".")[0]
    anchor = f"module-{name}" if name in public_names.MODULES else name
    return make_refnode(builder, here, f"api/{page}", anchor, content, name)


def link_annotation(app, env, node, content):
    """Types in signatures: jaxrec's own are links, all others (Array, NumPy's, shapes) stay text."""
    if node["refdomain"] != "py":
        return None
    target = node["reftarget"]
    found = [public_names.CANONICAL[target]] if target in public_names.CANONICAL else public_names.SHORT.get(target, [])
    return link(app.builder, node["refdoc"], found[0], content) if len(found) == 1 else content


def setup(app):
    app.add_post_transform(LinkNames)
    app.connect("missing-reference", link_annotation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
