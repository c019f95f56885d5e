"""front/protocol.py: every rule for requests, streams cut at any place, and the answers."""

import base64
import itertools
import json
import sys
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cacheplugin.front import protocol
from cacheplugin.front.protocol import (
    CHUNK,
    CLOSE,
    END,
    FATAL,
    GET,
    MAX_HEADER_BYTES,
    MAX_INT64,
    PUT,
    REJECT,
    Parser,
)
from cacheplugin.store.record import MAX_TIME_NS, timestamp

ACTION = bytes(range(32))
OUTPUT = bytes(range(100, 132))


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def frame(fields: dict, body: bytes = b"", **style) -> bytes:
    """A request as JSON in a given style, a blank line, and a line with the body if it has one."""
    style = style or {"separators": (",", ":")}
    text = json.dumps(fields, **style).encode() + b"\n\n"
    return text + (b'"%b"\n' % base64.b64encode(body) if body else b"")


def get(number=1, action=ACTION) -> bytes:
    return frame({"ID": number, "Command": "get", "ActionID": b64(action)})


def put(number=1, body=b"", action=ACTION, output=OUTPUT) -> bytes:
    fields = {"ID": number, "Command": "put", "ActionID": b64(action), "OutputID": b64(output)}
    if body:
        fields["BodySize"] = len(body)
    return frame(fields, body)


def close(number=1) -> bytes:
    return frame({"ID": number, "Command": "close"})


def put_events(number=1, body=b"", action=ACTION, output=OUTPUT) -> list:
    chunks = [(CHUNK, body)] if body else []
    return [(PUT, number, action.hex(), output.hex(), len(body)), *chunks, (END, None)]


GET_EVENT = (GET, 1, ACTION.hex())
CLOSE_EVENT = (CLOSE, 1)


def pieces(data: bytes, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def joined(events) -> list:
    """The events with the CHUNKs of each valid body as one CHUNK; without other CHUNKs."""
    result, body = [], b""
    for event in events:
        if event[0] == CHUNK:
            body += event[1]
            continue
        if event == (END, None) and body:
            result.append((CHUNK, body))
        result.append(event)
        body = b""
    return result


def parse(data: bytes, cuts=()) -> list:
    parser = Parser()
    return joined([event for piece in pieces(data, cuts) for event in parser.feed(piece)])


def parse_bytewise(data: bytes) -> list:
    return parse(data, range(len(data)))


# -- requests as the go command writes them --------------------------------------------------------

SESSION = get(1) + put(2, b"x" * 1000) + put(3) + get(4, OUTPUT) + put(5, b"yz") + close(6)
SESSION_EVENTS = [
    (GET, 1, ACTION.hex()),
    *put_events(2, b"x" * 1000),
    *put_events(3),
    (GET, 4, OUTPUT.hex()),
    *put_events(5, b"yz"),
    (CLOSE, 6),
]


def test_pipelined_session_whole():
    """Requests that arrive in one read give their events in order."""
    assert parse(SESSION) == SESSION_EVENTS


def test_pipelined_session_byte_by_byte():
    """The same session, read one byte at a time, gives the same events."""
    assert parse_bytewise(SESSION) == SESSION_EVENTS


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 64, 1000])
def test_pipelined_session_in_pieces(size):
    """Reads of any fixed size give the same events."""
    assert parse(SESSION, range(0, len(SESSION), size)) == SESSION_EVENTS


@given(st.lists(st.integers(0, len(SESSION)), max_size=8))
def test_pipelined_session_split_anywhere(cuts):
    """Reads of any random sizes give the same events."""
    assert parse(SESSION, cuts) == SESSION_EVENTS


def test_requests_of_the_go_command_need_no_json(monkeypatch):
    """Requests as the go command writes them are parsed without importing json."""
    monkeypatch.setattr(protocol, "_request", lambda text: pytest.fail(f"not plain: {text!r}"))
    assert parse(SESSION) == SESSION_EVENTS
    assert parse_bytewise(SESSION) == SESSION_EVENTS


def test_one_newline_is_enough():
    """A request is complete at the end of its line, before the blank line that follows."""
    parser = Parser()
    assert parser.feed(get()[:-2]) == []
    assert parser.feed(b"\n") == [GET_EVENT]
    assert parser.feed(b"\n") == []


def test_empty_body_has_no_line():
    """A put with BodySize 0, or without BodySize, has no body; the next request follows."""
    explicit = put()[:-3] + b',"BodySize":0}\n\n'
    for header in (put(), explicit):
        assert parse(header + get()) == [*put_events(), GET_EVENT]


def test_put_is_announced_before_its_body():
    """PUT comes with the header, each CHUNK with its bytes, END with the closing quote."""
    header, body = put(7, b"abcdef").split(b'\n\n"')
    parser = Parser()
    assert parser.feed(header + b"\n") == [(PUT, 7, ACTION.hex(), OUTPUT.hex(), 6)]
    assert parser.feed(b"\n") == []
    assert parser.feed(b'"' + body[:5]) == [(CHUNK, b"abc")]
    assert parser.feed(body[5:8]) == [(CHUNK, b"def")]
    assert parser.feed(body[8:]) == [(END, None)]


@pytest.mark.parametrize("number", [0, 1, 10**18, MAX_INT64])
def test_request_numbers(number):
    """IDs from 0 to the largest int64 are accepted."""
    assert parse(get(number) + put(number, b"b") + close(number)) == [
        (GET, number, ACTION.hex()),
        *put_events(number, b"b"),
        (CLOSE, number),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 32, 63, 64])
def test_ids_of_1_to_64_bytes(size):
    """Ids of 1 to 64 bytes are accepted; events have them in lower-case hex."""
    raw = b"\xab" * size
    assert parse(get(1, raw)) == [(GET, 1, "ab" * size)]
    assert parse(put(1, b"b", raw, raw)) == put_events(1, b"b", raw, raw)


@pytest.mark.parametrize("size", [0, 65, 66, 300])
def test_ids_of_other_lengths_are_rejected(size):
    """An id of 0 or more than 64 bytes rejects its request; the body is skipped."""
    raw = b"a" * size
    for bad, name in (
        (get(8, raw), "ActionID"),
        (put(8, b"body", action=raw), "ActionID"),
        (put(8, b"body", output=raw), "OutputID"),
        (put(8, output=raw), "OutputID"),
    ):
        assert parse(bad + get()) == [
            (REJECT, 8, f"{name} is not base64 of 1 to 64 bytes"),
            GET_EVENT,
        ]


@pytest.mark.parametrize(
    "spelling",
    ["QUJ", "QUJD=", "QUI", "QU I=", "QUI=\n", "QUJDR=", "_-8=", "!!!!", "=", "QUI=QUI=", "QUJé"],
)
def test_ids_in_wrong_base64_are_rejected(spelling):
    """Ids must be standard base64 with padding."""
    fields = {"ID": 8, "Command": "get", "ActionID": spelling}
    for text in (frame(fields), frame(fields, ensure_ascii=False)):
        assert parse(text + get()) == [
            (REJECT, 8, "ActionID is not base64 of 1 to 64 bytes"),
            GET_EVENT,
        ]


@pytest.mark.parametrize("value", [None, 7, 1.5, True, [], {}, ["QUI="]])
def test_ids_of_other_types_are_rejected(value):
    """An id that is not a string, or is missing, rejects its request."""
    reject = [(REJECT, 8, "ActionID is not base64 of 1 to 64 bytes"), GET_EVENT]
    assert parse(frame({"ID": 8, "Command": "get", "ActionID": value}) + get()) == reject
    assert parse(frame({"ID": 8, "Command": "get"}) + get()) == reject


# -- other spellings of requests -------------------------------------------------------------------

FIELDS = {
    "ID": 9,
    "Command": "put",
    "ActionID": b64(ACTION),
    "OutputID": b64(OUTPUT),
    "BodySize": 5,
}


@given(st.permutations(list(FIELDS)), st.sampled_from([None, 0, 1, "\t", "\r\n "]), st.booleans())
def test_any_key_order_and_whitespace(order, indent, extra):
    """Key order, white space and unknown fields do not change a request."""
    fields = {key: FIELDS[key] for key in order}
    if extra:
        fields = {"x": {"y": ['}"{', "\\"]}, **fields, "Z": None}
    data = frame(fields, b"hello", indent=indent) + get()
    expected = [*put_events(9, b"hello"), GET_EVENT]
    assert parse(data) == expected
    assert parse_bytewise(data) == expected


@given(
    st.integers(0, MAX_INT64),
    st.binary(min_size=1, max_size=64),
    st.binary(min_size=1, max_size=64),
    st.binary(max_size=40),
)
def test_plain_parser_and_json_parser_agree(number, action, output, body):
    """One more space makes the parser use json; the events stay the same."""
    for plain in (get(number, action), put(number, body, action, output), close(number)):
        assert parse(plain.replace(b"{", b"{ ", 1)) == parse(plain)


def test_object_id_from_old_toolchains():
    """Go 1.21 to 1.23 send ObjectID instead of OutputID."""
    fields = {"ID": 9, "Command": "put", "ActionID": b64(ACTION), "ObjectID": b64(OUTPUT)}
    assert parse(frame({**fields, "BodySize": 3}, b"abc")) == put_events(9, b"abc")
    assert parse(frame(fields)) == put_events(9)


@pytest.mark.parametrize("space", [b"", b" ", b"\n", b"\r\n", b"\t \n\n\n"])
def test_whitespace_between_requests_and_bodies(space):
    """JSON white space is allowed before, between and after requests and bodies."""
    header, body = put(2, b"abc").split(b"\n\n")
    data = space + header + space + body.strip() + space + get() + space
    expected = [*put_events(2, b"abc"), GET_EVENT]
    assert parse(data) == expected
    assert parse_bytewise(data) == expected


def test_two_requests_on_one_line():
    """Requests need no separator."""
    data = get(1).strip() + get(2).strip() + close(3)
    assert parse(data) == [(GET, 1, ACTION.hex()), (GET, 2, ACTION.hex()), (CLOSE, 3)]


def test_escapes_in_strings():
    """JSON escapes are decoded, also if they look like the end of the object."""
    data = b'{"ID":1,"x":"}\\"}\\\\","Comm\\u0061nd":"g\\u0065t","ActionID":"AA=\\u003d"}\n'
    assert parse(data) == [(GET, 1, "00")]
    assert parse_bytewise(data) == [(GET, 1, "00")]


def test_last_of_duplicate_keys_wins():
    """The last of duplicate keys wins, as in Go's encoding/json."""
    data = b'{"ID":1,"ID":2,"Command":"get","Command":"close"}\n'
    assert parse(data) == [(CLOSE, 2)]


# -- bodies ----------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 500), max_size=6))
def test_any_body_split_anywhere(body, cuts):
    """A body is decoded to the same bytes for reads of any sizes."""
    assert parse(put(3, body) + get(), cuts) == [*put_events(3, body), GET_EVENT]


@pytest.mark.parametrize("claimed", [1, 4, 6, 10**6, MAX_INT64])
def test_body_size_is_not_checked(claimed):
    """The parser returns the whole body whatever BodySize says; the writer checks the size."""
    data = frame({**FIELDS, "BodySize": claimed}, b"hello")
    assert parse(data + get()) == [
        (PUT, 9, ACTION.hex(), OUTPUT.hex(), claimed),
        (CHUNK, b"hello"),
        (END, None),
        GET_EVENT,
    ]


def test_empty_string_as_body():
    """An empty string as body with BodySize above 0 gives no CHUNK."""
    data = frame({**FIELDS, "BodySize": 3}) + b'""\n' + get()
    assert parse(data) == [(PUT, 9, ACTION.hex(), OUTPUT.hex(), 3), (END, None), GET_EVENT]


@pytest.mark.parametrize(
    "encoded",
    [
        b"A",
        b"AB",
        b"ABC",
        b"ABCDE",
        b"AB=",
        b"A===",
        b"====",
        b"QQ==QUJD",
        b"QUI=QUJD",
        b"QUJD====",
        b"AB_-",
        b"AB CD",
        b"QUJD\n",
        b"\x00\x00\x00\x00",
        b"\xff\xfe\xfd\xfc",
        b"\\u0041AAA",
        b"QUJDQUJD!QUJ",
        b"{}{}",
        b"QUJD=",
        b"QUJDQQ=",
    ],
)
def test_invalid_base64_fails_one_put(encoded):
    """A body that is not base64 ends with a reason; the next request is parsed."""
    data = frame(FIELDS) + b'"%b"\n' % encoded + get()
    expected = [
        (PUT, 9, ACTION.hex(), OUTPUT.hex(), 5),
        (END, "the body is not base64"),
        GET_EVENT,
    ]
    for events in (parse(data), parse_bytewise(data), parse(data, range(0, len(data), 4))):
        assert events == expected


def test_body_that_is_not_a_string_is_fatal():
    """A body must begin with a quote: the end of anything else is unknown."""
    assert parse(frame(FIELDS) + b"null\n" + get())[1:] == [
        (FATAL, "expected a JSON string with the body")
    ]
    assert parse(frame(FIELDS) + get())[1:] == [(FATAL, "expected a JSON string with the body")]


@pytest.mark.parametrize("command", ["get", "close", "trim", "", None, 5])
@pytest.mark.parametrize("body", [b"", b"some body", b"x" * 10000])
def test_body_of_a_request_without_use_for_it(command, body):
    """The body of a get, a close or an unknown command is skipped."""
    fields = {"ID": 1, "Command": command, "ActionID": b64(ACTION), "BodySize": len(body)}
    known = {"get": GET_EVENT, "close": CLOSE_EVENT}
    first = known.get(command, (REJECT, 1, "unknown command"))
    data = frame(fields, body) + get()
    assert parse(data) == [first, GET_EVENT]
    assert parse_bytewise(data) == [first, GET_EVENT]


def test_skipped_body_may_be_invalid():
    """The body of a rejected request is skipped even if it is not base64."""
    data = frame({"ID": 1, "Command": "x", "BodySize": 9}) + b'"!!! \xff"\n' + get()
    assert parse(data) == [(REJECT, 1, "unknown command"), GET_EVENT]


def test_memory_stays_bounded_for_a_large_body():
    """A body of 32 MB, read in pieces of 64 kB, needs less than 1 MB of memory."""
    fields = {**FIELDS, "BodySize": 32 << 20}
    parser = Parser()
    parser.feed(frame(fields) + b'"AAAA')
    piece = base64.b64encode(bytes(48 << 10))[:-4] + b"AAA"  # pieces are not multiples of four
    received = 3
    tracemalloc.start()
    try:
        for _ in range((32 << 20) // (48 << 10)):
            received += sum(len(data) for kind, data in parser.feed(piece) if kind == CHUNK)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received > 31 << 20
    assert peak < 1 << 20


# -- invalid streams -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    ["-1", "-0.0", "1.0", "1e3", str(MAX_INT64 + 1), "9" * 5000, "true", "null", '"1"', "[]"],
)
@pytest.mark.parametrize("field", ["ID", "BodySize"])
def test_invalid_numbers_are_fatal(field, number):
    """ID and BodySize must be whole numbers from 0 to 2**63 - 1."""
    fields = {"ID": "1", "BodySize": "1", field: number}
    text = ",".join(f'"{key}":{value}' for key, value in fields.items())
    events = parse(b"{%b}\n" % text.encode() + get())
    assert len(events) == 1 and events[0][0] == FATAL


@pytest.mark.parametrize(
    "text",
    [
        b"get",
        b"[]",
        b'"x"',
        b"1",
        b"null",
        b"\x00",
        b"\xff\xfe",
        b"}",
        b'"abc',
        b"GET / HTTP/1.1",
        b"{]}",
        b"{'ID':1}",
        b'{"ID":1,}',
        b'{"ID" 1}',
        b'{"ID":1 "Command":"get"}',
        b"{}",
        b"{{}}",
        b'{"ID":01}',
        b'{"ID":1,"x":"\x00"}',
        b'{"ID":1,"x":"\n"}',
        b'{"ID":1,"x":"\xff"}',
        b'{"ID":1,"x":"\\q"}',
        b'{"ID":1,"x":NaN1}',
        b"{\x00}",
        b"\xef\xbb\xbf{}",
        b'{"ID":1,"x":' + b"[" * 50000 + b"]" * 10000 + b"}",
        b'{"x":' * 9000 + b"1" + b"}" * 9000,
    ],
)
def test_invalid_requests_are_fatal(text):
    """Bytes that are not a request give FATAL with a printable reason, and no later event."""
    data = get(5) + text + b"\n" + get()
    whole = parse(data)
    assert [event[0] for event in whole] == [GET, FATAL]
    reason = whole[1][1]
    assert reason and "\n" not in reason and reason.isprintable()
    assert parse(data, range(0, len(data), 777)) == whole


def test_no_events_after_a_fatal_error():
    """After FATAL the parser ignores and does not keep bytes, and is not at a boundary."""
    parser = Parser()
    assert parser.feed(b"x\n")[0][0] == FATAL
    assert parser.feed(SESSION) == []
    assert parser._buffer == b""
    assert not parser.at_boundary


@pytest.mark.parametrize("step", [None, 1000, 4096, 65535, 65536, 65537])
@pytest.mark.parametrize(
    "data",
    [
        b'{"ID":1,"x":"' + b"a" * MAX_HEADER_BYTES + b'","Command":"close"}\n',
        b'{"ID":1,\n"x":"' + b"a" * MAX_HEADER_BYTES + b'","Command":"close"}\n',
        b'{"ID":1,"Command":"get","ActionID":"' + b"A" * MAX_HEADER_BYTES,
        b"{" * (MAX_HEADER_BYTES + 2),
        b'{"' + b"\\" * (MAX_HEADER_BYTES + 2),
    ],
)
def test_oversized_request_is_fatal(data, step):
    """A request of more than 64 kB is fatal, complete or not, in one read or in many."""
    events = parse(data, range(0, len(data), step) if step else ())
    assert events == [(FATAL, f"a request is longer than {MAX_HEADER_BYTES} bytes")]


@pytest.mark.parametrize("step", [None, 1000, 65535])
def test_largest_request_is_accepted(step):
    """A request of exactly 64 kB is accepted; white space around it does not count."""
    start, end = b'{"ID":1,"Command":"close","x":"', b'"}'
    text = start + b"a" * (MAX_HEADER_BYTES - len(start) - len(end)) + end
    data = b" " * 70000 + b"\n" + text + b"\n" + b"\n" * 70000 + get()
    assert parse(data, range(0, len(data), step) if step else ()) == [CLOSE_EVENT, GET_EVENT]


def test_unfinished_header_is_bounded():
    """The parser keeps at most 128 kB of a header that never ends."""
    parser = Parser()
    kept = 0
    for _ in range(100):
        parser.feed(b" " * 50000)
        kept = max(kept, len(parser._buffer))
    assert kept <= 2 * MAX_HEADER_BYTES


def test_at_boundary():
    """at_boundary is true between requests only."""
    parser = Parser()
    assert parser.at_boundary
    data = put(1, b"abc") + get(2)
    ends = []
    for index in range(len(data)):
        parser.feed(data[index : index + 1])
        if parser.at_boundary:
            ends.append(index + 1)
    body_end = data.index(b'"\n{"ID":2') + 1
    get_end = len(data) - 1
    assert ends == [body_end, body_end + 1, get_end, get_end + 1]


# -- random streams --------------------------------------------------------------------------------

FRAGMENTS = [
    get(),
    put(),
    put(2, b"abc"),
    put(3, b"\x00" * 9),
    close(),
    b"\n",
    b" \r\n",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\x00",
    b"\xff",
    b"QQ==",
    b"QUJD",
    b'"QQ==QUJD"\n',
    b'{"ID":',
    b'{"ID":1,"Command":"get","ActionID":"',
    b',"Command":"put","ActionID":"',
    b'"}\n',
    b'{"ID":1,"Command":"x","BodySize":4}\n',
    b'{"ID":-1}\n',
    b'{"ID":1,"Command":"close","BodySize":1}',
    b"[",
    b"]",
    b"1e999",
    b"\xc3\xa9",
    b'"ObjectID":"QQ=="',
    b'{"ID":2,"Command":"put","ActionID":"QQ==","OutputID":"QQ==","BodySize":3}\n\n"',
    b"../../etc/passwd",
    b'{"ID":1,"Command":"get","ActionID":"Li4vLi4="}\n',
]
STREAMS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=6)), max_size=12)
CUTS = st.lists(st.integers(0, 5000), max_size=12)


@given(STREAMS, CUTS)
@example(
    [
        b'{"ID":2,"Command":"put","ActionID":"QQ==","OutputID":"QQ==","BodySize":3}\n',
        b'"QQ==QUJD"\n',
    ],
    [-8],
)
def test_split_stream_gives_the_events_of_the_whole(fragments, cuts):
    """Valid or not, a stream gives the same events for reads of any sizes; feed never raises."""
    data = b"".join(fragments)
    assert parse(data, cuts) == parse(data)
    assert parse_bytewise(data) == parse(data)


@given(st.binary(max_size=300), CUTS)
def test_feed_never_raises_on_noise(data, cuts):
    """Random bytes give events of known kinds, and none after FATAL."""
    events = parse(data, cuts)
    assert all(GET <= event[0] <= FATAL for event in events)
    assert all(event[0] != FATAL for event in events[:-1])


@given(STREAMS)
def test_ids_are_safe_file_names(fragments):
    """Ids in events, which become file names, are hex digits only."""
    for event in parse(b"".join(fragments)):
        if event[0] in (GET, PUT):
            for name in event[2 : 3 if event[0] == GET else 4]:
                assert 2 <= len(name) <= 128
                assert not name.strip("0123456789abcdef")


# -- answers ---------------------------------------------------------------------------------------

NUMBERS = st.integers(0, MAX_INT64)
PATHS = st.text(st.characters(exclude_categories=["Cs"]))


def decoded(answer: str) -> dict:
    """The fields of an answer, which must be one line of JSON in UTF-8."""
    line = answer.encode("utf-8")
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    return json.loads(line)


def test_hello():
    """The hello line lists the known commands under ID 0."""
    hello = decoded(protocol.HELLO.decode())
    assert hello == {"ID": 0, "KnownCommands": ["get", "put", "close"]}


@given(NUMBERS, st.binary(min_size=32, max_size=32), NUMBERS, st.integers(0, MAX_TIME_NS), PATHS)
def test_hit_answer(number, output, size, time_ns, path):
    """A hit has ID, OutputID, Size, Time and DiskPath, of the types that the go command reads."""
    time = timestamp(time_ns)
    answer = protocol.hit_answer(number, output.hex(), size, time, protocol.json_text(path))
    assert decoded(answer) == {
        "ID": number,
        "OutputID": b64(output),
        "Size": size,
        "Time": time,
        "DiskPath": path,
    }


@given(NUMBERS, PATHS)
def test_other_answers(number, text):
    """Answers to misses, puts, closes and errors are valid JSON with any text in them."""
    assert decoded(protocol.miss_answer(number)) == {"ID": number, "Miss": True}
    assert decoded(protocol.close_answer(number)) == {"ID": number}
    assert decoded(protocol.error_answer(number, text)) == {"ID": number, "Err": text}
    put_answer = protocol.put_answer(number, protocol.json_text(text))
    assert decoded(put_answer) == {"ID": number, "DiskPath": text}


def test_bodies_without_pybase64(monkeypatch):
    """If it cannot be imported any more, bodies are decoded more slowly, and as strictly."""
    monkeypatch.setitem(sys.modules, "pybase64", None)
    monkeypatch.setattr(protocol, "_b64decode", None)
    assert protocol._decode_body(b"YWJj") == b"abc"
    for wrong in (b"YW!Jj", b"YWJ", b"YWJj====", b"YW Jj"):
        with pytest.raises(ValueError):
            protocol._decode_body(wrong)
