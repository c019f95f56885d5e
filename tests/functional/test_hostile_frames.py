"""Requests that no go command sends: an error answer, or an exit with one line on stderr."""

import base64
import json
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers import action_id, b64, output_id

BODY = b"a body"


def put(**more) -> bytes:
    fields = {
        "ID": 1,
        "Command": "put",
        "ActionID": b64(action_id("a")),
        "OutputID": b64(output_id(BODY)),
        "BodySize": len(BODY),
        **more,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


QUOTED = b'\n\n"' + base64.b64encode(BODY) + b'"\n'

# The stream cannot be read on: one line on stderr, exit status 1.
FATAL = {
    "not JSON": b"GET / HTTP/1.1\r\n\r\n",
    "binary": bytes(range(256)),
    "an array": b"[1]\n\n",
    "bad JSON": b'{"ID":1,}\n\n',
    "no ID": b'{"Command":"get"}\n\n',
    "ID a string": b'{"ID":"1","Command":"get"}\n\n',
    "ID too large": b'{"ID":9223372036854775808,"Command":"get"}\n\n',
    "ID negative": b'{"ID":-1,"Command":"get"}\n\n',
    "ID of many digits": b'{"ID":' + b"9" * 6000 + b',"Command":"get"}\n\n',
    "nested deeply": b'{"ID":1,"x":' + b"[" * 30000 + b"]" * 30000 + b"}\n\n",
    "a header without end": b'{"ID":1,"x":"' + b"x" * 200_000,
    "many blanks and no object": b" \n" * 50_000 + b"x",
    "BodySize negative": put(BodySize=-1) + QUOTED,
    "BodySize a fraction": put(BodySize=1.5) + QUOTED,
    "BodySize too large": put(BodySize=2**63) + QUOTED,
    "a body without quotes": put() + b"\n\n" + base64.b64encode(BODY) + b"\n",
    "invalid UTF-8": b'{"ID":1,"Command":"\xff\xfe"}\n\n',
    "cut in a header": b'{"ID":1,"Command":"ge',
    "cut before a body": put() + b"\n\n",
    "cut in a body": put() + QUOTED[:6],
}

# One request is answered with an error; the next one is served.
REFUSED = {
    "unknown command": b'{"ID":1,"Command":"delete"}\n\n',
    "no command": b'{"ID":1}\n\n',
    "unknown command with a body": b'{"ID":1,"Command":"x","BodySize":6}' + QUOTED,
    "no ActionID": put(ActionID=None) + QUOTED,
    "ActionID empty": put(ActionID="") + QUOTED,
    "ActionID a path": put(ActionID="../../../etc/passwd") + QUOTED,
    "ActionID bytes of a path": put(ActionID=base64.urlsafe_b64encode(b"\xff../x?").decode())
    + QUOTED,
    "ActionID too long": put(ActionID=base64.b64encode(b"x" * 65).decode()) + QUOTED,
    "ActionID a number": put(ActionID=7) + QUOTED,
    "ActionID unpadded": put(ActionID=b64(action_id("a")).rstrip("=")) + QUOTED,
    "OutputID a path": put(OutputID="/../x") + QUOTED,
    "OutputID null": put(OutputID=None) + QUOTED,
    "OutputID of another body": put(OutputID=b64(output_id(b"x"))) + QUOTED,
    "body not base64": put() + b'\n\n"!!!!!!!!"\n',
    "body unpadded": put() + b'\n\n"YWI"\n',
    "body too long": put() + b'\n\n"' + b"AAAA" * 100_000 + b'"\n',
    "body too short": put() + b'\n\n"AAAA"\n',
    "a huge BodySize": put(BodySize=2**62) + QUOTED,
}


def assert_clean(plugin, tmp_path, cache_dir) -> None:
    """Assert: no traceback, no temporary file, no file outside the cache directory."""
    assert not re.search("traceback|Error:", plugin.stderr)
    assert not list(cache_dir.glob("tmp/*"))
    known = {"home", "tmp", "cache"}
    outside = [path for path in tmp_path.iterdir() if path.name not in known]
    assert all(path.name.startswith("stderr-") for path in outside), outside
    assert not list((tmp_path / "home").iterdir()) and not list((tmp_path / "tmp").iterdir())
    for path in cache_dir.rglob("*"):
        if path.is_file():
            assert re.fullmatch(
                r"(action|output)/([0-9a-f]{2})/\2[0-9a-f]*|sessions\.jsonl",
                str(path.relative_to(cache_dir)),
            )


@pytest.mark.parametrize("stream", FATAL.values(), ids=FATAL)
def test_an_invalid_stream_ends_with_one_line_on_stderr(start, cache_dir, tmp_path, stream):
    plugin = start().hello()
    try:
        plugin.send(stream)
        plugin.end_input()
    except BrokenPipeError:
        pass  # the plugin ended before it had read everything
    assert plugin.line() is None
    assert plugin.wait() == 1
    (line,) = plugin.stderr.splitlines()
    assert line.startswith("go-cache-plugin: ")
    assert_clean(plugin, tmp_path, cache_dir)


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_a_refused_request_does_not_affect_the_next_one(start, cache_dir, tmp_path, request_):
    plugin = start().hello()
    plugin.send(request_)
    assert plugin.answer(1)["Err"]
    plugin._number = 1
    plugin.expect_miss(action_id("a"))
    plugin.expect_stored(action_id("b"), BODY)
    plugin.finish()
    assert plugin.stderr == ""
    assert_clean(plugin, tmp_path, cache_dir)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_ids_of_any_length_become_names_below_the_cache_directory(start, cache_dir, tmp_path, size):
    plugin = start().hello()
    plugin.expect_stored((b"../" * 30)[:size].hex(), BODY)
    plugin.finish()
    assert_clean(plugin, tmp_path, cache_dir)


@pytest.mark.parametrize(
    "text",
    [
        '{ "Command" : "get" ,\n "ActionID" : "%s" , "ID" : 1 }\n',
        '\n\n\n{"ActionID":"%s","ID":1,"Command":"get","Unknown":{"deep":[{}]}}\n',
        '{"ID":1,"Command":"get","ActionID":"%s"}\r\n\r\n',
        '{"ID":1,"Command":"\\u0067et","ActionID":"%s"}\n',
    ],
)
def test_any_valid_json_of_a_request_is_accepted(start, text):
    plugin = start().hello()
    plugin.send((text % b64(action_id("a"))).encode())
    assert plugin.answer(1) == {"ID": 1, "Miss": True}
    plugin._number = 1
    plugin.finish()


frames = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([*FATAL.values(), *REFUSED.values()]).flatmap(
        lambda data: st.integers(0, min(len(data), 400)).map(lambda end: data[:end])
    ),
    st.builds(
        lambda fields: json.dumps(fields).encode() + QUOTED,
        st.dictionaries(
            st.sampled_from(["ID", "Command", "ActionID", "OutputID", "BodySize", "ObjectID"]),
            st.one_of(
                st.sampled_from(["get", "put", "close", b64(action_id("a")), b64(output_id(BODY))]),
                st.integers(-(2**70), 2**70),
                st.text(max_size=20),
                st.none(),
                st.floats(),
            ),
        ),
    ),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(stream=st.lists(frames, min_size=1, max_size=4).map(b"".join))
def test_any_input_gives_answers_only(start, cache_dir, tmp_path, stream):
    plugin = start()
    plugin.hello()
    try:
        plugin.send(stream)
        plugin.end_input()
    except BrokenPipeError:
        pass
    while (answer := plugin.line()) is not None:
        assert type(answer["ID"]) is int
    assert plugin.wait() in (0, 1)
    assert len(plugin.stderr.splitlines()) == (1 if plugin.wait() else 0)
    assert_clean(plugin, tmp_path, cache_dir)
