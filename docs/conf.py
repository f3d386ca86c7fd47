"""How Sphinx builds these pages: `pip install '.[docs]' && sphinx-build -W -b html docs docs/_build`."""

import fabless

project = "fabless"
author = "the fabless authors"
project_copyright = "the fabless authors; Apache-2.0"
version = release = fabless.__version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fabless {release}"
html_copy_source = False
html_show_sourcelink = False
