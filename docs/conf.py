"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build`, offline."""

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
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # The blocks run as tests: tests/test_docs.py.

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True
default_role = "code"

html_theme = "furo"
html_title = "rrnn_jax"
html_show_copyright = False
exclude_patterns = ["_build"]
