"""Of several puts of one action the bucket ends up with the latest, however uploads overlap."""

import pytest

from cacheplugin.store.spool import session_directories
from helpers import action_id, kill, output_id, wait_until

pytest_plugins = ["server_fixtures"]

A = action_id("a")
KEY = f"action/{A[:2]}/{A}"
OLD, NEW = b"the older put", b"the newer put"


def recorded(fake_s3) -> str:
    """The output that the bucket's record of the action names."""
    return fake_s3.objects[KEY].decode().partition(" ")[0]


def hold(fake_s3, method, key) -> None:
    """Hold the first request of this method and key alone."""
    left = [(method, key)]
    fake_s3.hold = lambda *request: request in left and not left.remove(request)


def output_key(body) -> str:
    return f"output/{output_id(body)[:2]}/{output_id(body)}"


@pytest.mark.parametrize("layout", ["objects", "both"])
def test_two_puts_in_a_row(start, fake_s3, cache_dir, layout):
    """The older upload is still under way when the newer put comes."""
    hold(fake_s3, "PUT", output_key(OLD))
    plugin = start(*fake_s3.flags(layout=layout), "--scope=s", "--metrics").hello()
    plugin.expect_stored(A, OLD)
    wait_until(lambda: fake_s3.held, "the older upload")
    plugin.expect_stored(A, NEW)
    plugin.expect_stored(action_id("b"), b"other")
    wait_until(lambda: output_key(b"other") in fake_s3.objects, "an upload after that")
    fake_s3.release()
    assert plugin.finish()["put_s3_action"] == 3
    assert recorded(fake_s3) == output_id(NEW)
    assert session_directories(str(cache_dir)) == []


@pytest.mark.parametrize("layout", ["objects", "both"])
def test_two_sessions_of_a_server(serve, tcp, fake_s3, layout):
    """Sessions share the workers, also those of different plans."""
    hold(fake_s3, "PUT", output_key(OLD))
    server = serve(*fake_s3.flags(layout=layout))
    first, second = tcp(server.port), tcp(server.port)
    first.expect_stored(A, OLD)
    wait_until(lambda: fake_s3.held, "the older upload")
    second.expect_stored(A, NEW)
    fake_s3.release()
    first.finish()
    second.finish()
    assert server.stop() == 0
    assert recorded(fake_s3) == output_id(NEW)


@pytest.mark.parametrize(
    ("same_machine", "key"), [(True, output_key(OLD)), (False, KEY)], ids=["output", "record"]
)
def test_two_builds_at_once(start, fake_s3, tmp_path, same_machine, key):
    """The older put of another process comes late, on the same machine or on another one."""
    hold(fake_s3, "PUT", key)
    older = start(*fake_s3.flags()).hello()
    older.expect_stored(A, OLD)
    wait_until(lambda: fake_s3.held, "the older upload")
    more = {} if same_machine else {"cache_dir": tmp_path / "other"}
    newer = start(*fake_s3.flags(), **more).hello()
    newer.expect_stored(A, NEW)
    newer.finish()
    assert recorded(fake_s3) == output_id(NEW)
    fake_s3.release()
    older.finish()
    assert recorded(fake_s3) == output_id(NEW)


@pytest.mark.parametrize("before", [None, b"an even older put"])
def test_flush_beside_a_live_session(start, fake_s3, begin_flush_of, before):
    """A newer put is uploaded after the flush has looked for one, and before it writes."""
    if before is not None:
        first = start(*fake_s3.flags()).hello()
        first.expect_stored(A, before)
        first.finish()
    left = start(*fake_s3.flags(), "--upload=off").hello()
    left.expect_stored(A, OLD)
    left.finish()
    hold(fake_s3, "PUT", KEY)
    flush = begin_flush_of("cache")
    wait_until(lambda: fake_s3.held, "the write of the flush")
    live = start(*fake_s3.flags()).hello()
    live.expect_stored(A, NEW)
    wait_until(lambda: recorded_or_none(fake_s3) == output_id(NEW), "the newer put")
    fake_s3.release()
    assert flush.wait(60) == 0
    live.finish()
    assert recorded(fake_s3) == output_id(NEW)


def recorded_or_none(fake_s3):
    return recorded(fake_s3) if KEY in fake_s3.objects else None


def test_workers_killed_between_two_puts(start, fake_s3, processes):
    """The uploads are repeated by other workers, in their order."""
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    plugin.expect_stored(A, OLD)
    wait_until(lambda: fake_s3.held, "the older upload")
    plugin.expect_stored(A, NEW)
    number = plugin.close()
    for pid in processes.pool():
        kill(pid)
    wait_until(lambda: fake_s3.held == 2, "the older upload, once more")
    fake_s3.release()
    assert plugin.answer(number) == {"ID": number}
    assert plugin.wait() == 0
    assert recorded(fake_s3) == output_id(NEW)
