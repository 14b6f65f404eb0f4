"""Sphinx configuration of the docs site: `make docs` builds it into docs/_build."""

import os

from grace_bench import __version__
from grace_bench.cli import build_parser

os.environ["COLUMNS"] = "100"  # argparse wraps its help there

project = "grace-bench"
html_title = f"grace-bench {__version__}"
html_theme = "furo"
html_show_copyright = False
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
highlight_language = "none"  # a block without a language is a shell command
myst_enable_extensions = ["deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"commands": f"```text\n{build_parser().format_help()}```"}

# Docstrings are Google style and mark code with single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autosummary_generate = False  # summaries link to the entries on their own page
napoleon_use_ivar = True
