"""remote/bundles/plan.py and fetching.py: what gets wait for, and what comes ahead of them."""

import fcntl
import os
from contextlib import contextmanager

import pytest

from bundles_driver import SCOPE, Driver
from cacheplugin.ipc import jobs
from cacheplugin.remote.bundles import fetching
from cacheplugin.remote.bundles.fetching import PREFETCHES_AT_ONCE
from cacheplugin.remote.bundles.keys import scope_key
from cacheplugin.remote.bundles.ranges import GAP_BYTES
from entries import TIME_NS, action_id
from rows import empty_row, ids, names, row

NO_PREFETCH = {"prefetch_limit_bytes": 0}


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


@pytest.fixture
def on_demand(tmp_path):
    """A driver that fetches nothing ahead."""
    return Driver(tmp_path, **NO_PREFETCH)


def apart(letters, **fields) -> list:
    """Rows that are too far from each other for one range."""
    return [row(name, 8 + at * 2 * GAP_BYTES, **fields) for at, name in enumerate(letters)]


def wanted(tasks) -> list:
    """The actions of RangeJobs, in their order."""
    return [action for task in tasks for action, *_ in task.rows]


# -- while manifests load --------------------------------------------------------------------------


def test_gets_wait_for_the_manifests(driver):
    """What is asked before anything is known is answered once it is; manifests load once."""
    known, unknown = driver.get("a"), driver.get("b")
    driver.plan.prefetch()
    assert driver.said() == {}
    driver.load([row("a")], missing="a")
    assert driver.said() == {unknown: jobs.MISS}
    driver.arrive(driver.only(jobs.RangeJob))
    assert driver.said() == {known: jobs.ARRIVED}
    driver.plan.prefetch()
    assert driver.tasks == []


@pytest.mark.parametrize("status", [jobs.FAILED, jobs.TIMED_OUT, jobs.SKIPPED])
def test_manifests_that_do_not_load(driver, status):
    """Whatever waits gets the status; what comes next tries again."""
    get, put, finish = driver.get("a"), driver.put("b"), driver.finish("ab")
    driver.fail(driver.only(jobs.LoadJob), status)
    answers = driver.said()
    assert answers.pop(finish)
    assert answers == {get: status, put: status}
    again = driver.get("a")
    driver.load()
    assert driver.said() == {again: jobs.MISS}


def test_worker_that_dies_while_manifests_load(driver):
    """The get is a miss at once; what is to be uploaded waits for another worker to read them."""
    get, put, finish = driver.get("a"), driver.put("b"), driver.finish("ab")
    driver.fail(driver.only(jobs.LoadJob), jobs.LOST)
    assert driver.said() == {get: jobs.LOST}
    driver.load()
    driver.bundle(driver.only(jobs.BundleJob))
    driver.manifest()
    assert driver.said() == {put: jobs.STORED, finish: jobs.STORED}


def test_finish_while_manifests_load(driver):
    """A session that ends at once has its puts uploaded and named, before it is answered."""
    put, finish = driver.put("b"), driver.finish("b")
    assert driver.said() == {}
    driver.load([row("a")])
    driver.bundle(driver.only(jobs.BundleJob))
    assert driver.said() == {}
    assert names(driver.manifest().rows) == ids("ba")
    assert driver.said() == {put: jobs.STORED, finish: jobs.STORED}


def test_finish_without_any_need(driver):
    """A session that needed nothing of the bucket asks it nothing."""
    finish = driver.finish("a")
    assert driver.said() == {finish: jobs.STORED} and driver.tasks == []


@pytest.mark.parametrize("layout", ["auto", "bundles", "both"])
@pytest.mark.parametrize("objects", [False, True])
def test_the_front_is_told_what_to_expect(tmp_path, layout, objects):
    """It hears what bundles have, what of it the store lacks, and whether there is more."""
    driver = Driver(tmp_path, layout=layout)
    driver.begin(*apart("abc"), missing="cb", has_objects=objects, damaged=2)
    expected = jobs.Expected(ids("cb"), ids("a"), not objects and layout != "both")
    assert expected in driver.messages
    assert jobs.Transferred(0, 0, 2) in driver.messages


# -- gets ------------------------------------------------------------------------------------------


def test_get_of_what_is_here(on_demand):
    """What the store has by now, by whosoever hands, needs no request."""
    on_demand.begin(row("a"), missing="a")
    on_demand.store_entry("a")
    get = on_demand.get("a")
    assert on_demand.said() == {get: jobs.ARRIVED} and on_demand.tasks == []


def test_gets_of_one_action(on_demand):
    """All that wait for an action are answered by one range, each once."""
    on_demand.begin(row("a"), row("b", 200), missing="ab")
    waiting = [on_demand.get("a"), on_demand.get("a"), on_demand.get("b")]
    task = on_demand.only(jobs.RangeJob)
    assert (task.bundle, task.start, task.length) == ("bundle-a", 8, 292)
    assert wanted([task]) == ids("ab") and {type(one) for one in task.rows} == {tuple}
    on_demand.arrive(task)
    assert on_demand.said() == dict.fromkeys(waiting, jobs.ARRIVED)
    assert on_demand.tasks == []
    assert jobs.Transferred(292, 0, 0) in on_demand.messages


def test_get_of_what_came_and_went(on_demand):
    """An entry that the store lost again is fetched again, alone."""
    on_demand.begin(row("a"), row("b", 200), missing="ab")
    on_demand.get("a")
    on_demand.arrive(on_demand.only(jobs.RangeJob))
    on_demand.said()
    again = on_demand.get("a")
    task = on_demand.only(jobs.RangeJob)
    assert wanted([task]) == ids("a")
    on_demand.arrive(task)
    assert on_demand.said() == {again: jobs.ARRIVED}


def test_get_of_what_was_here_at_first(on_demand):
    """An entry that the store had when the manifests came, and lost, is fetched."""
    on_demand.begin(row("a"))
    get = on_demand.get("a")
    on_demand.arrive(on_demand.only(jobs.RangeJob))
    assert on_demand.said() == {get: jobs.ARRIVED}


@pytest.mark.parametrize(
    "status", [jobs.FAILED, jobs.TIMED_OUT, jobs.SKIPPED, jobs.LOST, jobs.LOCAL, jobs.UNUSABLE]
)
def test_range_that_fails(on_demand, status):
    """Whoever waits for it gets the status; the next get tries again."""
    on_demand.begin(row("a"), row("b"), missing="ab")
    waiting = on_demand.get("a"), on_demand.get("b")
    on_demand.fail(on_demand.only(jobs.RangeJob), status)
    assert on_demand.said() == dict.fromkeys(waiting, status)
    again = on_demand.get("b")
    on_demand.arrive(on_demand.only(jobs.RangeJob))
    assert on_demand.said() == {again: jobs.ARRIVED}


def test_range_that_fails_in_the_middle(on_demand):
    """What came is there; what did not has failed; what is wrong is damaged, and then a miss."""
    on_demand.begin(row("a"), row("b"), row("c"), row("d"), missing="abcd")
    a, b, c = (on_demand.get(name) for name in "abc")
    on_demand.arrive(
        on_demand.only(jobs.RangeJob), status=jobs.TIMED_OUT, arrived=ids("a"), damaged=ids("bd")
    )
    assert on_demand.said() == {a: jobs.ARRIVED, b: jobs.DAMAGED, c: jobs.TIMED_OUT}
    assert on_demand.messages[-1].damaged == 1  # d, which nobody asked for
    again = on_demand.get("b")
    assert on_demand.said() == {again: jobs.MISS} and on_demand.tasks == []


def test_what_a_good_range_lacks_has_failed(on_demand):
    """An entry that a range neither brought nor found damaged does not leave its get waiting."""
    on_demand.begin(row("a"), row("b"), missing="ab")
    get = on_demand.get("b")
    on_demand.arrive(on_demand.only(jobs.RangeJob), arrived=ids("a"))
    assert on_demand.said() == {get: jobs.FAILED}


def test_damaged_entry_is_put_anew(on_demand):
    """The next put of a damaged entry goes into a bundle, though one was said to have the body."""
    on_demand.begin(row("a"), missing="a")
    get = on_demand.get("a")
    task = on_demand.only(jobs.RangeJob)
    on_demand.arrive(task, status=jobs.DAMAGED, arrived=[], damaged=ids("a"))
    assert on_demand.said() == {get: jobs.DAMAGED}
    put = on_demand.put("a", time_ns=TIME_NS + 1)
    on_demand.finish("a")
    on_demand.bundle(on_demand.only(jobs.BundleJob))
    assert on_demand.manifest().rows[0].bundle == "bundle-n"
    assert on_demand.said()[put] == jobs.STORED


def test_bundle_that_is_gone(on_demand):
    """With a bundle that is not there all that was in it is a miss, other bundles are not."""
    on_demand.begin(*apart("abc"), row("d", bundle="bundle-b"), missing="abcd")
    a, b = on_demand.get("a"), on_demand.get("b")
    first, second = on_demand.take(jobs.RangeJob)
    on_demand.arrive(first, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    assert on_demand.said() == {a: jobs.DAMAGED}
    c, _ = on_demand.get("c"), on_demand.get("d")
    assert on_demand.said() == {c: jobs.MISS}
    assert wanted(on_demand.take(jobs.RangeJob)) == ids("d")
    on_demand.arrive(second, status=jobs.DAMAGED, arrived=[], damaged=ids("b"), gone=True)
    assert on_demand.said() == {b: jobs.DAMAGED}


def test_late_news_of_damage_do_not_undo_a_put(on_demand):
    """What a range of a lost bundle says is not said of the same action in a new one."""
    on_demand.begin(*apart("ab"), missing="ab")
    for name in "ab":
        on_demand.get(name)
    first, second = on_demand.take(jobs.RangeJob)
    on_demand.arrive(first, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    on_demand.put("b", time_ns=TIME_NS + 1)
    on_demand.now += 1000
    on_demand.plan.on_time()
    on_demand.bundle(on_demand.only(jobs.BundleJob))
    on_demand.arrive(second, status=jobs.DAMAGED, arrived=[], damaged=ids("b"), gone=True)
    on_demand.finish("b")
    assert names(on_demand.manifest().rows) == ids("b")


# -- prefetch --------------------------------------------------------------------------------------


def test_prefetch_goes_in_order_and_so_many_at_once(driver):
    """The missing entries come in the order of their use, a bounded number of ranges at once."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters[::-1])
    running = driver.take(jobs.RangeJob)
    assert wanted(running) == ids(letters[::-1][:PREFETCHES_AT_ONCE])
    driver.arrive(running[3])
    more = driver.take(jobs.RangeJob)
    assert wanted(more) == ids(letters[::-1][PREFETCHES_AT_ONCE])
    for task in running[:3] + running[4:] + more:
        driver.arrive(task)
    assert wanted(driver.take(jobs.RangeJob)) == ids(letters[2::-1])


def test_get_moves_its_range_to_the_front(driver):
    """A get of what is far behind has its range fetched next, and it is not fetched again."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters)
    running = driver.take(jobs.RangeJob)
    get = driver.get("l")
    task = driver.only(jobs.RangeJob)
    assert wanted([task]) == ids("l")
    driver.arrive(task)
    assert driver.said() == {get: jobs.ARRIVED}
    for one in running:
        driver.arrive(one)
    assert wanted(driver.take(jobs.RangeJob)) == ids("ijk")


def test_get_of_what_is_on_its_way(driver):
    """A get of what a prefetch has under way waits for it and asks for nothing."""
    driver.begin(row("a"), missing="a")
    task = driver.only(jobs.RangeJob)
    get = driver.get("a")
    assert driver.tasks == [] and driver.said() == {}
    driver.arrive(task)
    assert driver.said() == {get: jobs.ARRIVED}


def test_prefetch_limit(tmp_path):
    """No more than the limit comes ahead, however much is asked for; the rest comes on demand."""
    driver = Driver(tmp_path, prefetch_limit_bytes=250)
    driver.begin(*apart("abcde"), missing="abcde")
    tasks = driver.take(jobs.RangeJob)
    assert wanted(tasks) == ids("ab")
    for task in tasks:
        driver.arrive(task)
    get = driver.get("d")
    task = driver.only(jobs.RangeJob)
    assert wanted([task]) == ids("d")
    driver.arrive(task)
    assert driver.said() == {get: jobs.ARRIVED} and driver.tasks == []


def test_no_prefetch(on_demand):
    """With a limit of 0 nothing is fetched ahead but what needs no request."""
    on_demand.begin(*apart("ab"), empty_row("e"), missing="abe")
    task = on_demand.only(jobs.RangeJob)
    assert wanted([task]) == ids("e") and task.length == 0
    on_demand.get("b")
    assert wanted(on_demand.take(jobs.RangeJob)) == ids("b")


def test_prefetch_leaves_room_on_the_disk(driver, monkeypatch):
    """A prefetch takes no more than a part of what the disk has free."""
    monkeypatch.setattr(fetching, "free_bytes", lambda _: 5000 * fetching.DISK_SHARE // 2)
    driver.begin(*apart("abcd", size=1000), missing="abcd")
    assert wanted(driver.take(jobs.RangeJob)) == ids("ab")


def test_prefetch_ends_with_the_disk(driver):
    """Where the store takes nothing more, nothing more is fetched ahead."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters)
    for task in driver.take(jobs.RangeJob):
        driver.fail(task, jobs.LOCAL)
    assert driver.tasks == []


@pytest.mark.parametrize("end", [lambda driver: driver.plan.stop(), lambda driver: driver.finish()])
def test_prefetch_ends_with_the_session(driver, end):
    """What nobody will ask for any more is not fetched; what is on its way is answered."""
    letters = "abcdefghijkl"
    driver.begin(*apart(letters), missing=letters)
    get = driver.get("a")
    running = driver.take(jobs.RangeJob)
    end(driver)
    driver.said()
    for task in running:
        driver.arrive(task)
    assert driver.tasks == [] and driver.said() == {get: jobs.ARRIVED}
    assert not os.listdir(f"{driver.store.root}/tmp")


@contextmanager
def other_prefetch(root):
    """Another session on this store prefetches the same scope."""
    os.makedirs(f"{root}/tmp", exist_ok=True)
    path = f"{root}/tmp/prefetch-{scope_key(SCOPE)}"
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        os.unlink(path)


def test_one_prefetch_at_a_time(tmp_path, driver):
    """While another session prefetches, this one fetches on demand; then it does the rest."""
    with other_prefetch(tmp_path):
        driver.begin(*apart("abcd"), missing="abcd")
        assert driver.tasks == []
        driver.get("b")
        assert wanted(driver.take(jobs.RangeJob)) == ids("b")
    driver.get("c")
    assert wanted(driver.take(jobs.RangeJob)) == ids("cad")


def test_prefetch_of_two_sessions(tmp_path, driver):
    """The lock is free again, and its file gone, when all has come."""
    driver.begin(row("a"), missing="a")
    with pytest.raises(BlockingIOError), other_prefetch(tmp_path):
        pass
    driver.arrive(driver.only(jobs.RangeJob))
    assert os.listdir(tmp_path / "tmp") == []


def test_prefetch_without_a_lock(tmp_path, driver):
    """Where the store takes no file, the lock keeps nobody from asking."""
    (tmp_path / "tmp").write_text("in the way")
    driver.begin(row("a"), missing="a")
    assert wanted(driver.take(jobs.RangeJob)) == ids("a")


def test_a_bundle_that_is_gone_is_asked_for_once(driver):
    """Its other ranges are not fetched, and what they hold is a miss."""
    letters = "abcdefghijkl"
    far = [row(name, offset=at * (1 << 30)) for at, name in enumerate(letters)]
    driver.begin(*far, missing=letters)
    first, *others = driver.take(jobs.RangeJob)
    driver.arrive(first, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    assert driver.take(jobs.RangeJob) == [] and len(others) < len(letters) - 1
    number = driver.get("l")
    assert driver.said() == {number: jobs.MISS}


def test_a_session_that_has_ended_prefetches_nothing(tmp_path):
    """Manifests that come after its end are for what it put, not for what it might want."""
    driver = Driver(tmp_path)
    driver.plan.prefetch()
    driver.finish()
    task = driver.only(jobs.LoadJob)
    rows = [tuple(row("a"))]
    driver.plan.done(
        task,
        jobs.LoadResult(
            task.number, jobs.HIT, "", rows, [], [], ["m"], 1e12, ids("a"), False, 0, 0
        ),
    )
    assert driver.take(jobs.RangeJob) == []


@pytest.mark.parametrize("status", [jobs.SKIPPED, jobs.FAILED, jobs.LOST, jobs.TIMED_OUT])
def test_what_a_range_that_failed_lacks_comes_together(driver, status):
    """After an outage a get fetches its range again, not its entry alone."""
    driver.begin(row("a"), row("b", offset=200), missing="ab")
    driver.fail(driver.only(jobs.RangeJob), status)
    driver.get("a")
    assert [fields[0] for fields in driver.only(jobs.RangeJob).rows] == ids("ab")


def test_a_put_whose_body_turns_out_lost_is_bundled(driver):
    """It was to be named where a bundle had it; that bundle is gone, so it goes into a new one."""
    driver.begin(row("a"), missing="a")
    task = driver.only(jobs.RangeJob)
    put = driver.put("b", body="a")
    finish = driver.finish("b")
    manifest_task = driver.only(jobs.ManifestJob)
    driver.fail(manifest_task, jobs.FAILED)
    assert driver.said() == {put: jobs.FAILED, finish: jobs.FAILED}
    put = driver.put("c", body="a")
    driver.arrive(task, status=jobs.DAMAGED, arrived=[], damaged=ids("a"), gone=True)
    finish = driver.finish("c")
    bundle = driver.only(jobs.BundleJob)
    assert [entry[0] for entry in bundle.entries] == ids("c")
    assert driver.said() == {}
    driver.bundle(bundle)
    assert action_id("c") in names(driver.manifest().rows)
    assert driver.said() == {put: jobs.STORED, finish: jobs.STORED}
