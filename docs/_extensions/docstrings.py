"""Docstrings, which are plain text with Markdown's backticks and tables, as reStructuredText."""

import re

SECTION = re.compile(r"\s*(Args|Attributes|Returns|Raises|Yields|Source|Sources|Example|Examples):\s*$")

NOTE = re.compile(r"\s*\[\d+\] ")


def as_rst(lines):
    """Formulas are shown as they stand: what reStructuredText would read as markup in them is escaped."""
    out, n = [], 0
    while n < len(lines):
        line = lines[n]
        if line.lstrip().startswith(">>>") or (after_blank(out) and deeper(out, line)):
            end = block_end(lines, n, doctest=line.lstrip().startswith(">>>"))
            out += lines[n:end] if line.lstrip().startswith(">>>") else literal(out, lines[n:end])
            n = end
        elif NOTE.match(line):  # with a hanging indent: an item of a list
            end = next((m for m in range(n + 1, len(lines)) if indent(lines[m]) <= indent(line)), len(lines))
            out.append(" " * indent(line) + "- " + escape(" ".join(each.strip() for each in lines[n:end])))
            n = end
        elif line.lstrip().startswith("|") and n + 1 < len(lines) and re.match(r"\s*\|[ -|]*-", lines[n + 1]):
            end = next((m for m in range(n, len(lines)) if not lines[m].lstrip().startswith("|")), len(lines))
            out += table(lines[n:end])
            n = end
        else:
            out.append(escape(line))
            n += 1
    return out


def after_blank(out):
    return bool(out) and not out[-1].strip()


def indent(line):
    return len(line) - len(line.lstrip())


def deeper(out, line):
    """Whether an indented block begins: a displayed formula or a drawing."""
    said = next((each for each in reversed(out) if each.strip()), "")
    return bool(line.strip()) and indent(line) > indent(said) and not SECTION.match(said)


def block_end(lines, start, *, doctest):
    base = indent(lines[start])
    for n in range(start, len(lines)):
        if not lines[n].strip():
            if doctest:
                return n
        elif indent(lines[n]) < base:
            return n
    return len(lines)


def literal(out, block):
    """As it stands; the paragraph before may already end in two colons."""
    said = next((each for each in reversed(out) if each.strip()), "")
    return block if said.rstrip().endswith("::") else [" " * indent(said) + "::", "", *block, ""]


def escape(line):
    """A line of prose: `code` as a literal, **bold** kept, and all else as it stands."""
    parts = re.split(r"(`+[^`]+`+|\*\*[^*`]+\*\*)", line)
    out = ""
    for n, part in enumerate(parts):
        if n % 2 == 0:  # a literal ends before a letter by an escaped space, as in `Rows`'s
            out += ("\\ " if n and part[:1].isalnum() else "") + plain(part)
        else:
            out += code(part) if part.startswith("`") else part
    return out


def code(part):
    return f"``{part.strip('`')}``"


def plain(part):
    part = re.sub(r"([\\*|])", r"\\\1", part)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)


def table(lines):
    """A Markdown table as a list-table."""
    pad = " " * indent(lines[0])
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" |")] for line in lines]
    rows = [rows[0], *rows[2:]]
    out = [f"{pad}.. list-table::", f"{pad}   :header-rows: 1", ""]
    for row in rows:
        out += [f"{pad}   {'* -' if n == 0 else '  -'} {escape(cell)}" for n, cell in enumerate(row)]
    return [*out, ""]
