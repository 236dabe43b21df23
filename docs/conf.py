"""How Sphinx builds these pages: `make docs`."""

from raysense import __version__

project = "raysense"
author = "the authors of raysense"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"raysense {release}"
exclude_patterns = ["_build"]
add_module_names = False

default_role = "code"  # docstrings set names in single backticks
myst_heading_anchors = 3  # `page.md#heading`, as on GitHub
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
