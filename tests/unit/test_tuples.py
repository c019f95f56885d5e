"""tuples.py: its NamedTuple works like that of typing, but does not import typing."""

import subprocess
import sys

import pytest

from cacheplugin.tuples import NamedTuple


class Point(NamedTuple):
    """A point in the plane."""

    x: int
    y: "int | None" = None

    def moved(self, by: int) -> "Point":
        """The point at the distance ``by`` along x."""
        return self._replace(x=self.x + by)


def test_fields_defaults_and_methods():
    """A class has fields, defaults, methods and its docstring."""
    assert Point(1) == (1, None) and Point(1, y=2) == (1, 2)
    assert Point._fields == ("x", "y") and Point._field_defaults == {"y": None}
    assert Point(1, 2).moved(3) == Point(4, 2) and isinstance(Point(1).moved(1), Point)
    assert Point.__doc__ == "A point in the plane." and Point.__module__ == __name__
    assert repr(Point(1)) == "Point(x=1, y=None)"


def test_a_field_without_a_default_is_required():
    with pytest.raises(TypeError, match="'x'"):
        Point()


def test_typing_is_not_imported():
    code = "import sys, cacheplugin.tuples; sys.exit('typing' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-S", "-c", code],
            check=False,
            timeout=60,
            env={"PYTHONPATH": ":".join(sys.path)},
        ).returncode
        == 0
    )
