"""The GOCACHEPROG protocol without I/O: bytes to events, answers to text.

The protocol is defined by the go command's ``cmd/go/internal/cacheprog`` (see docs/protocol.rst). A
request is a JSON object. If its BodySize is not 0, a JSON string follows: the body in base64.

``Parser.feed`` returns a list of events. An event is a tuple whose first item is its kind:

======  ===============================  ==========================================================
GET     (GET, id, action)                action: lower-case hex, 2 to 128 digits
PUT     (PUT, id, action, output, size)  size: announced bytes of the body; CHUNKs and END follow
CHUNK   (CHUNK, data)                    decoded bytes of the body of the latest PUT
END     (END, reason)                    the body has ended; reason: None, or why it is invalid
CLOSE   (CLOSE, id)
REJECT  (REJECT, id, reason)             an invalid request; its body, if any, is skipped
FATAL   (FATAL, reason)                  the stream is invalid; the parser ignores all later bytes
======  ===============================  ==========================================================

A cache hit must import little: json and pybase64 are imported when first used.
"""

from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # As in the table above. Any: checkers cannot tell the kinds apart by their first item when it
    # is in a variable, as it is in the loops that must be fast.
    Event = tuple[Any, ...]

GET, PUT, CHUNK, END, CLOSE, REJECT, FATAL = range(7)

HELLO = b'{"ID":0,"KnownCommands":["get","put","close"]}\n'

MAX_HEADER_BYTES = 65536
MAX_ID_BYTES = 64
MAX_INT64 = 2**63 - 1

_HEADER, _BODY_START, _BODY, _DEAD = range(4)
_GET_MARK = b',"Command":"get","ActionID":"'
_GET_MARK_LENGTH = len(_GET_MARK)
_WHITESPACE = b" \t\r\n"

# pybase64.b64decode, which is 50 times as fast as binascii; imported with the first body.
_b64decode: "Callable[..., bytes] | None" = None


class Parser:
    """Turns the bytes that a client sends, in pieces of any size, into events."""

    def __init__(self) -> None:
        self._buffer = b""
        self._state = _HEADER
        self._discard = False  # the current body belongs to a rejected request
        self._fault: str | None = None  # why the current body is invalid
        self._padded = False  # its base64 has reached the padding, so nothing may follow
        self._scan = _ObjectScan()

    @property
    def at_boundary(self) -> bool:
        """Whether the stream is between requests, where it may end."""
        return self._state == _HEADER and not self._buffer.strip(_WHITESPACE)

    # Complex, because it does not call a method for each line: that takes 3 % longer for each get.
    def feed(self, data: bytes) -> "list[Event]":
        """Take the next bytes of the stream; return the events that they complete."""
        buffer = self._buffer + data if self._buffer else data
        events: list[Event] = []
        position, size = 0, len(buffer)
        while position < size:
            if self._state == _HEADER:
                end = buffer.find(b"\n", position)
                if end == position:
                    position += 1
                    continue
                if end > 0 and not self._scan.offset and buffer.startswith(b'{"ID":', position):
                    # The go command's own get: one line, keys in this order, no spaces.
                    mark = buffer.find(_GET_MARK, position + 6, end)
                    if mark > 0 and buffer.endswith(b'"}', position, end):
                        number = buffer[position + 6 : mark]
                        action = _hex_id(buffer[mark + _GET_MARK_LENGTH : end - 2])
                        if action and number.isdigit() and len(number) < 19:
                            events.append((GET, int(number), action))
                            position = end + 1
                            continue
                    event = _plain_request(buffer[position + 6 : end])
                    if event:
                        self._accept(event, event[0] == PUT and event[4] > 0, events)
                        position = end + 1
                        continue
                elif end < 0 and not self._scan.offset and size - position <= MAX_HEADER_BYTES:
                    break
                position = self._header(buffer, position, events)
            elif self._state == _BODY:
                position = self._body(buffer, position, events)
            elif self._state == _BODY_START:
                position = self._body_start(buffer, position, events)
            else:
                position = size
            if position < 0:  # incomplete: the rest begins at -1 - position
                position = -1 - position
                break
        self._buffer = buffer[position:]
        return events

    # The methods below append to ``events`` and return the position in ``buffer`` where the parser
    # goes on; -1 - position if it needs more bytes to go on from there.

    def _header(self, buffer: bytes, position: int, events: "list[Event]") -> int:
        """Read one JSON object in any legal spelling."""
        scan = self._scan
        if not scan.offset:
            while position < len(buffer) and buffer[position] in _WHITESPACE:
                position += 1
            if position == len(buffer):
                return position
            if buffer[position] != 0x7B:
                return self._fatal(buffer, events, "expected a JSON object")
        length = scan.length(buffer, position)
        if length is None:
            if len(buffer) - position > MAX_HEADER_BYTES:
                return self._fatal(
                    buffer, events, f"a request is longer than {MAX_HEADER_BYTES} bytes"
                )
            return -1 - position
        if length > MAX_HEADER_BYTES:
            return self._fatal(buffer, events, f"a request is longer than {MAX_HEADER_BYTES} bytes")
        self._accept(*_request(buffer[position : position + length]), events)
        return position + length

    def _accept(self, event: "Event", has_body: bool, events: "list[Event]") -> None:
        """Add the event of a header, and prepare for its body."""
        events.append(event)
        if event[0] == FATAL:
            self._state = _DEAD
        elif has_body:
            self._state = _BODY_START
            self._discard = event[0] != PUT
            self._fault = None
            self._padded = False
        elif event[0] == PUT:
            events.append((END, None))

    def _body_start(self, buffer: bytes, position: int, events: "list[Event]") -> int:
        """Skip white space up to the opening quote of a body."""
        while position < len(buffer):
            byte = buffer[position]
            position += 1
            if byte == 0x22:
                self._state = _BODY
                break
            if byte not in _WHITESPACE:
                return self._fatal(buffer, events, "expected a JSON string with the body")
        return position

    def _body(self, buffer: bytes, position: int, events: "list[Event]") -> int:
        """Decode the part of a body that is there: whole groups of four, or all up to its end."""
        end = buffer.find(b'"', position)
        stop = position + (len(buffer) - position) // 4 * 4 if end < 0 else end
        if stop > position and not self._fault:
            try:
                if self._padded:
                    raise ValueError
                data = _decode_body(buffer[position:stop])
            except (BinasciiError, ValueError):
                self._fault = "the body is not base64"
            else:
                self._padded = buffer[stop - 1] == 0x3D
                if not self._discard:
                    events.append((CHUNK, data))
        if end < 0:
            return -1 - stop
        self._state = _HEADER
        if not self._discard:
            events.append((END, self._fault))
        return end + 1

    def _fatal(self, buffer: bytes, events: "list[Event]", reason: str) -> int:
        self._state = _DEAD
        events.append((FATAL, reason))
        return len(buffer)


class _ObjectScan:
    """Finds the end of a JSON object that arrives in pieces; looks at each byte once."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.offset = self._depth = 0  # offset: bytes of the object read so far
        self._in_string = self._escaped = False

    def length(self, buffer: bytes, start: int) -> "int | None":
        """The length of the object at ``start``; None while its end is missing."""
        depth, in_string, escaped = self._depth, self._in_string, self._escaped
        for index in range(start + self.offset, min(len(buffer), start + MAX_HEADER_BYTES + 1)):
            byte = buffer[index]
            if escaped:
                escaped = False
            elif in_string:
                if byte == 0x5C:
                    escaped = True
                elif byte == 0x22:
                    in_string = False
            elif byte == 0x22:
                in_string = True
            elif byte == 0x7B:
                depth += 1
            elif byte == 0x7D:
                depth -= 1
                if depth == 0:
                    self._reset()
                    return index + 1 - start
        self.offset = len(buffer) - start
        self._depth, self._in_string, self._escaped = depth, in_string, escaped
        return None


def _plain_request(line: bytes) -> "Event | None":
    """The event of a put or close in the go command's own spelling; None for anything else.

    ``line`` is the request without its start, ``{"ID":``.
    """
    number, _, rest = line.partition(b',"Command":"')
    if not number.isdigit() or len(number) > 18:
        return None
    if rest == b'close"}':
        return (CLOSE, int(number))
    if not rest.startswith(b'put","ActionID":"'):
        return None
    action_text, _, rest = rest[17:].partition(b'","OutputID":"')
    output_text, _, rest = rest.partition(b'"')
    action, output = _hex_id(action_text), _hex_id(output_text)
    if not action or not output:
        return None
    if rest == b"}":
        return (PUT, int(number), action, output, 0)
    size = rest[12:-1]
    if rest[:12] == b',"BodySize":' and rest[-1:] == b"}" and size.isdigit() and len(size) < 19:
        return (PUT, int(number), action, output, int(size))
    return None


def _request(text: bytes) -> "tuple[Event, bool]":
    """Read the JSON text of one request; return (event, whether a body follows)."""
    import json

    try:
        fields = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return (FATAL, "a request is not valid JSON"), False
    number = fields.get("ID")
    if type(number) is not int or not 0 <= number <= MAX_INT64:
        return (FATAL, "a request has no usable ID"), False
    size = fields.get("BodySize", 0)
    if type(size) is not int or not 0 <= size <= MAX_INT64:
        return (FATAL, "a request has no usable BodySize"), False
    command = fields.get("Command")
    if command == "close":
        return (CLOSE, number), size > 0
    if command not in ("get", "put"):
        return (REJECT, number, "unknown command"), size > 0
    action = _hex_field(fields.get("ActionID"))
    if not action:
        return (REJECT, number, "ActionID is not base64 of 1 to 64 bytes"), size > 0
    if command == "get":
        return (GET, number, action), size > 0
    output = _hex_field(fields.get("OutputID", fields.get("ObjectID")))
    if not output:
        return (REJECT, number, "OutputID is not base64 of 1 to 64 bytes"), size > 0
    return (PUT, number, action, output, size), size > 0


def _hex_field(value: object) -> str:
    """As _hex_id, of a field's JSON value."""
    if type(value) is not str or not value.isascii():
        return ""
    return _hex_id(value.encode())


def _hex_id(encoded: bytes) -> str:
    """Hex of an id in padded standard base64; "" unless it is valid and has 1 to 64 bytes."""
    try:
        raw = a2b_base64(encoded)
    except BinasciiError:
        return ""
    # a2b_base64 skips invalid characters; the text is then too long for the decoded bytes.
    length = len(raw)
    if 0 < length <= MAX_ID_BYTES and len(encoded) == (length + 2) // 3 * 4:
        return raw.hex()
    return ""


def _decode_body(encoded: bytes) -> bytes:
    """Decode standard base64; raises binascii.Error or ValueError."""
    global _b64decode
    if _b64decode is None:
        try:
            from pybase64 import b64decode
        except (ImportError, OSError, MemoryError):  # the program was removed while it runs
            _b64decode = _slow_b64decode
        else:
            _b64decode = b64decode
    return _b64decode(encoded, validate=True)


def _slow_b64decode(encoded: bytes, validate: bool) -> bytes:
    data = a2b_base64(encoded)
    if b2a_base64(data, newline=False) != encoded:  # a2b_base64 skips invalid characters
        raise ValueError
    return data


# -- answers ---------------------------------------------------------------------------------------


def json_text(text: str) -> str:
    """``text`` as it is written between the quotes of a JSON string."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    import json

    return json.dumps(text, ensure_ascii=False)[1:-1]


def hit_answer(number: int, output: str, size: int, time: str, json_path: str) -> str:
    """The answer to a get that hit.

    ``output`` is hex, ``time`` is RFC 3339 (from record.timestamp), ``json_path`` comes from
    json_text.
    """
    encoded = b2a_base64(bytes.fromhex(output), newline=False).decode()
    return (
        f'{{"ID":{number},"OutputID":"{encoded}","Size":{size},'
        f'"Time":"{time}","DiskPath":"{json_path}"}}\n'
    )


def miss_answer(number: int) -> str:
    return f'{{"ID":{number},"Miss":true}}\n'


def put_answer(number: int, json_path: str) -> str:
    return f'{{"ID":{number},"DiskPath":"{json_path}"}}\n'


def close_answer(number: int) -> str:
    return f'{{"ID":{number}}}\n'


def error_answer(number: int, reason: str) -> str:
    return f'{{"ID":{number},"Err":"{json_text(reason)}"}}\n'
