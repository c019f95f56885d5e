"""Settings of the Sphinx site; scripts/docs builds it."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
# _ext holds the project's directives; the root of the checkout holds the options table they read.
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

project = "go-cache-plugin"
author = "the authors of go-cache-plugin"
release = re.search(
    r'__version__ = "(.+)"', (DOCS.parent / "cacheplugin" / "__init__.py").read_text()
).group(1)
version = release

extensions = ["options_table"]
exclude_patterns = ["_build"]
nitpicky = True
smartquotes = False  # it would turn the dashes of flags into typographic ones
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_copyright = False
