"""Rows for tests, with defaults for the fields that a test is not about."""

from cacheplugin.remote.bundles.rows import Row
from cacheplugin.store.tree import EMPTY_OUTPUT
from entries import TIME_NS, action_id, output_id


def row(name, offset=8, length=100, **fields) -> Row:
    """The row of the action ``name``, whose body is its own unless ``output`` is given."""
    known = {
        "action": action_id(name),
        "output": output_id(name.encode()),
        "size": 1000,
        "time_ns": TIME_NS,
        "used_s": 0,
        "bundle": "bundle-a",
        "offset": offset,
        "length": length,
        "inner": 0,
        "xxh3": 7,
    }
    return Row(**known | fields)


def empty_row(name, **fields) -> Row:
    """The row of an action with an empty body."""
    return row(name, **{"offset": 0, "length": 0, "output": EMPTY_OUTPUT, "size": 0} | fields)


def names(rows) -> list:
    """The actions of rows, in order."""
    return [one.action for one in rows]


def ids(text) -> list:
    """The actions of names that have one letter each."""
    return [action_id(name) for name in text]
