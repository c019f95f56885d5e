"""SIGKILL of each process at its worst moment: no partial entry; only the fetch is lost."""

import base64
import shutil

import pytest

from cacheplugin.store.spool import count_pending
from cacheplugin.store.tree import Store
from helpers import action_id, kill, output_id, stored_bodies, wait_until

BODY = b"what the build made" * 1000


def fill(fake_s3, name, body=BODY) -> None:
    action, output = action_id(name), output_id(body)
    fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
    fake_s3.objects[f"output/{output[:2]}/{output}"] = body


def kill_all(pids) -> None:
    assert pids
    for pid in pids:
        kill(pid)


@pytest.mark.parametrize("victims", ["workers", "pool"])
def test_a_fetch_whose_process_is_killed_is_a_miss(start, fake_s3, processes, cache_dir, victims):
    fill(fake_s3, "a")
    fake_s3.hold = lambda method, key: key.startswith("output/")
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    number = plugin.get(action_id("a"))
    wait_until(lambda: fake_s3.held, "the fetch of the body")
    kill_all(getattr(processes, victims)())
    assert plugin.answer(number)["Miss"]
    assert stored_bodies(cache_dir) == {}
    fake_s3.release()
    plugin.expect_hit(action_id("a"), BODY)  # by a new process
    assert plugin.finish()["get_fault_error"] == 1
    processes.expect_none()


@pytest.mark.parametrize("victims", ["workers", "pool"])
def test_an_upload_whose_process_is_killed_is_repeated(start, fake_s3, processes, victims):
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    for n in range(3):
        plugin.expect_stored(action_id(n), b"body %d" % n)
    number = plugin.close()
    wait_until(lambda: fake_s3.held == 3, "the uploads")
    kill_all(getattr(processes, victims)())
    wait_until(lambda: fake_s3.held == 6, "the uploads, once more")
    fake_s3.release()
    assert plugin.answer(number) == {"ID": number}
    assert plugin.wait() == 0
    assert len(fake_s3.objects) == 6
    assert "put_s3_action=3" in plugin.stderr and "put_s3_error" not in plugin.stderr


def test_workers_that_keep_dying_are_given_up_with_one_warning(
    start, fake_s3, processes, cache_dir
):
    """The put after that stays in the spool, although S3 never answered."""
    fake_s3.hold = lambda method, key: True
    plugin = start(*fake_s3.flags()).hello()
    for n in range(3):
        number = plugin.get(action_id(n))
        wait_until(lambda count=n + 1: fake_s3.held == count, "the fetch")
        kill_all(processes.workers())
        assert plugin.answer(number)["Miss"]
    plugin.expect_miss(action_id("more"))
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    assert fake_s3.held == 3 and count_pending(Store(str(cache_dir))) == 1
    assert any(
        "bucket is not used: its worker processes keep dying" in line
        for line in plugin.stderr.splitlines()
    )


def test_a_pool_that_keeps_dying_is_given_up_with_one_warning(start, fake_s3, processes, cache_dir):
    """The put after that stays in the spool, although S3 never answered."""
    fake_s3.hold = lambda method, key: True
    plugin = start(*fake_s3.flags()).hello()
    for n in range(3):
        number = plugin.get(action_id(n))
        wait_until(lambda count=n + 1: fake_s3.held == count, "the fetch")
        kill_all(processes.pool())
        assert plugin.answer(number)["Miss"]
    plugin.expect_miss(action_id("more"))
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    assert count_pending(Store(str(cache_dir))) == 1
    (warning,) = plugin.stderr.splitlines()
    assert "bucket bucket is not used: its pool process keeps dying" in warning


def test_the_front_killed_in_the_middle_of_a_put_leaves_no_entry(start, cache_dir, processes):
    plugin = start().hello()
    plugin.expect_stored(action_id("whole"), b"whole")
    plugin.begin_put(action_id("a"), output_id(BODY), len(BODY))
    plugin.send(b'"' + base64.b64encode(BODY)[:12000])
    wait_until(lambda: [p for p in cache_dir.glob("tmp/*") if p.stat().st_size], "half a body")
    plugin.kill()
    processes.expect_none()
    assert stored_bodies(cache_dir) == {output_id(b"whole"): b"whole"}
    plugin = start().hello()
    plugin.expect_miss(action_id("a"))
    plugin.expect_hit(action_id("whole"), b"whole")
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()


@pytest.mark.parametrize("kind", ["output", "action"])
def test_the_front_killed_while_it_uploads(start, fake_s3, processes, cache_dir, kind):
    fake_s3.hold = lambda method, key: method == "PUT" and key.startswith(kind)
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_stored(action_id("a"), BODY)
    wait_until(lambda: fake_s3.held, "the upload")
    plugin.kill()
    processes.expect_none()
    names = {key.partition("/")[0] for key in fake_s3.objects}
    assert "action" not in names  # the record is uploaded after its output
    fake_s3.release()
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_hit(action_id("a"), BODY)  # stored before it was answered
    plugin.finish()
    shutil.rmtree(cache_dir)
    plugin = start(*fake_s3.flags()).hello()
    got = plugin.answer(plugin.get(action_id("a")))
    assert got.get("Miss") or got["Size"] == len(BODY)
    assert set(stored_bodies(cache_dir)) <= {output_id(BODY)}
    plugin.finish()
