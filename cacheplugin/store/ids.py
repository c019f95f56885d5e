"""What a valid id looks like: action ids, output ids and other lower-case hex."""

_HEX = frozenset("0123456789abcdef")
_MAX_ACTION_DIGITS = 128
_OUTPUT_DIGITS = 64


def is_hex(text: str, digits: int) -> bool:
    """Return whether ``text`` is ``digits`` lower-case hex digits."""
    return len(text) == digits and _HEX.issuperset(text)


def is_action(text: str) -> bool:
    """Return whether ``text`` is an action id: whole bytes, at most 64, in lower-case hex."""
    return 2 <= len(text) <= _MAX_ACTION_DIGITS and not len(text) % 2 and _HEX.issuperset(text)


def is_output(text: str) -> bool:
    """Return whether ``text`` is an output id: a SHA-256 in lower-case hex."""
    return len(text) == _OUTPUT_DIGITS and _HEX.issuperset(text)
