"""``NamedTuple``, as in typing, for modules that are loaded before the first answer.

Importing typing takes 4 ms, a third of the time to the first answer, so this is a small copy of its
class. Type checkers see the original.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple

    class _Meta(type):
        """Turns each class that derives from NamedTuple into a collections.namedtuple."""

        def __new__(cls, name, bases, members):
            if not bases:
                return super().__new__(cls, name, bases, members)
            fields = tuple(type(name, (), dict(members)).__annotations__)
            defaults = [members[field] for field in fields if field in members]
            made = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            for key, value in members.items():
                if key == "__doc__" or (key not in fields and not key.startswith("__")):
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Meta):
        """The base class. A subclass has ``field: type = default`` for each field, and methods."""
