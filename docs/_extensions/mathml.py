"""Formulas as MathML, made by docutils while the site is built: no script, no font and no network in the browser."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOG = logging.getLogger(__name__)


def as_mathml(translator, node, *, block):
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=block))
    except MathError as error:
        LOG.warning("This formula cannot be set: %s", error, location=node)
    raise nodes.SkipNode


def inline(translator, node):
    as_mathml(translator, node, block=False)


def display(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="formula"))
    try:
        as_mathml(translator, node, block=True)
    finally:
        translator.body.append("</div>")


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
