"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build`, offline."""

import os
import re
from pathlib import Path

import rrnn_jax

project = "rrnn_jax"
author = "The rrnn_jax authors"
release = version = rrnn_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# The pages' equations are plain text; a browser loads MathJax for those of docstrings.
myst_heading_anchors = 3
nb_execution_mode = "off"  # The blocks run as tests: tests/test_docs.py.

autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_attr_annotations = False  # The descriptions tell the types.
napoleon_use_ivar = True
default_role = "code"

html_theme = "furo"
html_title = "rrnn_jax"
html_show_copyright = False
exclude_patterns = ["_build"]


def convert_links(app, page, source):
    """Converts relative links of READMEs, which are symbolic links here, to those of the site."""
    here = Path(app.env.doc2path(page))
    folder = here.resolve().parent
    pages = {Path(app.env.doc2path(other)).resolve(): other for other in app.env.found_docs}

    def convert(match):
        mark, text, path = match.groups()
        target = (folder / path).resolve()
        if target in pages:
            return f"{{doc}}`{text} </{pages[target]}>`"
        if not target.is_file():
            return text  # A folder.
        kind = "" if mark else "path:"
        return f"{mark}[{text}]({kind}{os.path.relpath(target, here.parent)})"

    if here.is_symlink():
        pattern = r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#]*)(?:#[^)]*)?\)"
        source[0] = re.sub(pattern, convert, source[0])


def skip_member(app, what, name, member, skip, options):
    """Leaves out what only Flax calls, and fields, which `Attributes` of their class describes."""
    is_default = callable(member) and getattr(member, "__name__", name) != name
    of_tuple = (member.__doc__ or "").startswith("Alias for field number")
    return True if name == "setup" or is_default or of_tuple else None


def split_groups(app, what, name, member, options, lines):
    """Gives each name of ``a, b: description`` the description; Napoleon knows single names."""
    done, rest = [], list(lines)
    while rest:
        line = rest.pop(0)
        group = re.fullmatch(r"(\s+)(\w+(?:, \w+)+): (.*)", line)
        if group is None:
            done.append(line)
            continue
        indent, names, text = group.groups()
        more = []
        while rest and rest[0].startswith(indent + "  "):
            more.append(rest.pop(0))
        for each in names.split(", "):
            done += [f"{indent}{each}: {text}", *more]
    lines[:] = done


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", convert_links)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", split_groups, priority=400)  # Before Napoleon.
