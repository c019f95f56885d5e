"""Hello, gets, puts and close, without and with a bucket."""

import base64
import os
import re
import time
from pathlib import Path

from helpers import Plugin, action_id, b64, counters, output_id, time_ns, wait_until

BODY = b"the body of a package" * 50


def test_the_hello_line_comes_first_and_alone(start):
    plugin = start()
    assert plugin.line() == {"ID": 0, "KnownCommands": ["get", "put", "close"]}
    assert plugin.silent(0.05)
    plugin.finish()


def test_a_get_of_an_unknown_action_is_a_miss(start):
    plugin = start().hello()
    plugin.expect_miss(action_id("unknown"))
    plugin.finish()


def test_a_put_is_a_hit_with_the_time_of_the_put(start, cache_dir):
    plugin = start().hello()
    before = time.time_ns()
    got = plugin.expect_stored(action_id("a"), BODY)
    assert before <= time_ns(got["Time"]) <= time.time_ns()
    assert os.path.isabs(got["DiskPath"]) and not Path(got["DiskPath"]).suffix
    assert Path(got["DiskPath"]).is_relative_to(cache_dir)
    plugin.finish()


def test_a_later_session_finds_the_entry_and_its_time(start):
    first = start().hello()
    got = first.expect_stored(action_id("a"), BODY)
    first.finish()
    second = start().hello()
    again = second.expect_hit(action_id("a"), BODY)
    assert again["Time"] == got["Time"]
    second.finish()


def test_a_second_put_replaces_the_record(start):
    plugin = start().hello()
    old = plugin.expect_stored(action_id("a"), BODY)
    same = plugin.expect_stored(action_id("a"), BODY)
    assert time_ns(same["Time"]) > time_ns(old["Time"])
    plugin.expect_stored(action_id("a"), b"another body")
    plugin.finish()


def test_an_empty_body(start):
    plugin = start().hello()
    plugin.expect_stored(action_id("empty"), b"")
    plugin.finish()


def test_a_put_of_an_old_toolchain_has_an_object_id(start):
    plugin = start().hello()
    number = plugin.request(
        Command="put", ActionID=b64(action_id("a")), ObjectID=b64(output_id(b"")), BodySize=0
    )
    assert "DiskPath" in plugin.answer(number)
    plugin.expect_hit(action_id("a"), b"")
    plugin.finish()


def test_requests_may_be_pipelined(start):
    plugin = start().hello()
    numbers = [plugin.put(action_id(n), b"body %d" % n) for n in range(50)]
    numbers += [plugin.get(action_id(n)) for n in range(50)]
    assert all("DiskPath" in plugin.answer(number) for number in numbers)
    plugin.finish()


def test_a_body_of_another_hash_or_size_is_refused_and_not_stored(start, cache_dir):
    plugin = start().hello()
    for output, size in (
        (output_id(b"else"), len(BODY)),
        (output_id(BODY), len(BODY) + 1),
        (output_id(BODY), len(BODY) - 1),
    ):
        number = plugin.begin_put(action_id("a"), output, size)
        plugin.send(b'"' + base64.b64encode(BODY) + b'"\n')
        assert plugin.answer(number)["Err"]
        plugin.expect_miss(action_id("a"))
    plugin.finish()
    assert not list(cache_dir.glob("*/*/*")) and not list(cache_dir.glob("tmp/*"))


def test_others_can_read_files_and_run_bodies_whatever_the_umask(start, cache_dir):
    plugin = start(preexec_fn=lambda: os.umask(0o077)).hello()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    bodies = [*cache_dir.glob("output/*/*")]
    assert bodies
    for path in [cache_dir, *cache_dir.rglob("*")]:
        wanted = 0o755 if path.is_dir() or path in bodies else 0o644
        assert path.stat().st_mode & 0o777 == wanted, path


def test_an_output_is_written_once(start, cache_dir):
    plugin = start().hello()
    path = Path(plugin.expect_stored(action_id("a"), BODY)["DiskPath"])
    inode = path.stat().st_ino
    plugin.expect_stored(action_id("b"), BODY)
    assert path.stat().st_ino == inode
    plugin.finish()


def test_a_damaged_record_and_a_truncated_body_are_misses_and_removed(start, cache_dir):
    plugin = start().hello()
    plugin.expect_stored(action_id("a"), BODY)
    (record,) = cache_dir.glob("action/*/*")
    whole = record.read_bytes()
    for damage in (b"", whole[:-3], whole.replace(b"v1", b"v2"), b"\0" * len(whole)):
        record.write_bytes(damage)
        plugin.expect_miss(action_id("a"))
        assert not record.exists()
        plugin.expect_stored(action_id("a"), BODY)
    (body,) = cache_dir.glob("output/*/*")
    os.truncate(body, 5)
    plugin.expect_miss(action_id("a"))
    assert not body.exists()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()


def test_gets_of_one_action_are_one_fetch(start, fake_s3):
    action, output = action_id("a"), output_id(BODY)
    fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
    fake_s3.objects[f"output/{output[:2]}/{output}"] = BODY
    fake_s3.hold = lambda method, key: key.startswith("action/")
    plugin = start(*fake_s3.flags()).hello()
    gets = [plugin.get(action) for _ in range(5)]
    # The answer to this put overtakes; it shows that the gets before it have been read.
    plugin.answer(plugin.put(action_id("b"), b"local"))
    wait_until(lambda: fake_s3.held, "the fetch")
    assert not set(gets) & set(plugin.answers)
    fake_s3.release()
    assert {plugin.answer(number)["Size"] for number in gets} == {len(BODY)}
    assert fake_s3.count("GET", action) == 1 and fake_s3.count("GET", output) == 1
    plugin.finish()


def test_a_body_in_the_store_is_not_fetched_again(start, fake_s3):
    action, output = action_id("a"), output_id(BODY)
    fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
    plugin = start(*fake_s3.flags(), "--read-only").hello()
    plugin.expect_stored(action_id("b"), BODY)
    plugin.expect_hit(action, BODY)
    plugin.finish()
    assert fake_s3.count("GET", output) == 0


def test_close_waits_for_the_uploads(start, fake_s3):
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags()).hello()
    plugin.answer(plugin.put(action_id("a"), BODY))
    number = plugin.close()
    wait_until(lambda: fake_s3.held, "the upload")
    assert plugin.silent(0.2)
    fake_s3.release()
    assert plugin.answer(number) == {"ID": number}
    assert len(fake_s3.objects) == 2
    assert plugin.wait() == 0


def test_drain_timeout_bounds_the_wait(start, fake_s3):
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags(), "--drain-timeout=300ms", "--metrics").hello()
    plugin.answer(plugin.put(action_id("a"), BODY))
    wait_until(lambda: fake_s3.held, "the upload")
    began = time.monotonic()
    plugin.finish()
    assert time.monotonic() - began >= 0.3
    assert plugin.stderr.count("1 uploads not finished within --drain-timeout") == 1


def test_a_warm_session_starts_no_other_process(start, fake_s3, processes):
    first = start().hello()
    first.expect_stored(action_id("a"), BODY)
    first.finish()
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_hit(action_id("a"), BODY)
    assert processes.running() == [plugin.pid]
    maps = Path(f"/proc/{plugin.pid}/maps").read_text()
    assert "_ssl" not in maps and "_socket" not in maps  # botocore would load them
    plugin.finish()
    assert not fake_s3.requests


def test_no_process_holds_the_go_commands_pipes(start, fake_s3, processes):
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_miss(action_id("a"))
    ours = {
        os.readlink(f"/proc/{os.getpid()}/fd/{pipe.fileno()}")
        for pipe in (plugin.process.stdin, plugin.process.stdout)
    } | {str(plugin._stderr_path)}
    others = [pid for pid in processes.running() if pid != plugin.pid]
    assert len(others) >= 2  # the pool and a worker
    for pid in others:
        held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert not held & ours
    plugin.finish()


def test_counters_and_the_summary_line(start, fake_s3):
    plugin = start(*fake_s3.flags(), "--metrics", "--min-upload-size=10").hello()
    plugin.answer(plugin.put(action_id("small"), b"123456789"))
    plugin.answer(plugin.put(action_id("a"), BODY))
    plugin.answer(plugin.put(action_id("b"), BODY))
    plugin.expect_hit(action_id("a"), BODY)
    plugin.expect_miss(action_id("unknown"))
    counts = plugin.finish()
    found = counts.pop("put_s3_found", 0)
    assert (
        found + counts.pop("put_s3_object") == 2
    )  # the second may be checked before the first is stored
    assert counts == {
        "get_requests": 2,
        "get_hits": 1,
        "get_hit_bytes": len(BODY),
        "get_misses": 1,
        "put_requests": 3,
        "put_bytes": 2 * len(BODY) + 9,
        "get_local_hit": 1,
        "get_fault_miss": 1,
        "put_skip_small": 1,
        "put_s3_action": 2,
        "put_s3_bytes": (2 - found) * len(BODY),
    }
    assert re.search(
        r"^go-cache-plugin: 2 gets, 1 local hits, 0 S3 hits \(50.0 % hit\), 3 puts; "
        r".* down, .* up, \d+\.\d s waited for uploads$",
        plugin.stderr,
        re.M,
    )


def test_verbose_logs_the_start_and_debug_logs_answers(start):
    plugin = start("-v").hello()
    plugin.expect_miss(action_id("a"))
    plugin.finish()
    stamp = r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} go-cache-plugin: "
    assert re.search(stamp + "cache directory .*local cache only", plugin.stderr, re.M)
    assert counters(plugin.stderr)["get_misses"] == 1
    assert "answered" not in plugin.stderr
    plugin = start(environ={"GOCACHE_DEBUG": "1"}).hello()
    plugin.expect_miss(action_id("a"))
    plugin.finish()
    assert re.search(stamp + 'answered {"ID":1,"Miss":true}', plugin.stderr, re.M)
    assert "gocache_server: get_requests=1" in plugin.stderr


def test_without_flags_it_is_silent_and_uses_the_cache_directory_of_the_user(processes, tmp_path):
    environ = processes.environ(XDG_CACHE_HOME=str(tmp_path / "xdg"), GOCACHE_DIR="")
    plugin = Plugin([], environ, tmp_path / "stderr").hello()
    got = plugin.expect_stored(action_id("a"), BODY)
    assert Path(got["DiskPath"]).is_relative_to(tmp_path / "xdg" / "go-cache-plugin")
    plugin.finish()
    assert plugin.stderr == ""
