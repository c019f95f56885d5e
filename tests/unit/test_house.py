"""Rules for the source as a whole that no linter checks."""

from pathlib import Path

import pytest

import cacheplugin

PACKAGE = Path(cacheplugin.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path):
    """No module is longer than 400 lines."""
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_have_a_docstring(path):
    """Each module begins with a docstring that says what it is for."""
    assert path.read_text().startswith('"""')
