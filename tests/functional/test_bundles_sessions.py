"""The layout bundles with several sessions: scopes, prefetches, sessions that end together."""

from bundle_sessions import bundle_gets, expect_all, fill, keys, noise, put_all, some, take_requests
from helpers import action_id, temporaries, wait_until

# -- scopes ----------------------------------------------------------------------------------------


def test_new_scope_uses_entries_of_another_scope(machine, fake_s3):
    """It writes its own manifest, which names the used entries in the existing bundle."""
    used, unused = some(6, "used"), some(6, "unused")
    fill(machine("a"), used | unused)
    plugin = machine("b", "--scope=theirs")
    expect_all(plugin, used)
    assert plugin.finish()["get_fault_hit"] == 6
    assert len(keys(fake_s3, "bundle")) == 1 and len(keys(fake_s3, "manifest")) == 2
    take_requests(fake_s3)
    plugin = machine("c", "--scope=theirs")
    expect_all(plugin, used)
    plugin.expect_miss(action_id("unused 4"))
    assert plugin.finish()["get_fault_hit"] == 6
    assert len(take_requests(fake_s3)) == 3


def test_scope_with_entries_ignores_other_scopes(machine):
    fill(machine("a"), {action_id("a"): b"ours", action_id("b"): b"ours too"})
    fill(machine("b", "--scope=theirs"), {action_id("a"): b"theirs"})
    for scope, body in (("ours", b"ours"), ("theirs", b"theirs")):
        plugin = machine(f"fresh {scope}", f"--scope={scope}")
        plugin.expect_hit(action_id("a"), body)
        plugin.finish()
    plugin = machine("fresh theirs", "--scope=theirs")
    plugin.expect_miss(action_id("b"))
    plugin.finish()


def test_entry_of_two_scopes_is_named_in_both(machine, flush_of):
    """Two scopes put the same action, and the first scope is uploaded last, by a flush."""
    shared, own = {action_id("shared"): b"body"}, {action_id("own"): b"own"}
    fill(machine("a", "--upload=off", "--scope=first"), shared | own)
    fill(machine("b", "--scope=second"), shared)
    assert flush_of("a") == (0, 2, 0)
    plugin = machine("c", "--scope=first")
    expect_all(plugin, shared | own)
    assert plugin.finish()["get_fault_hit"] == 2


# -- prefetching -----------------------------------------------------------------------------------


def test_prefetch_limit_0_fetches_on_demand(machine, fake_s3):
    """Nothing is fetched that no get asks for."""
    puts = noise(3, 2 << 20)  # each body has its own range
    fill(machine("a"), puts)
    plugin = machine("b", "--prefetch-limit=0")
    plugin.expect_miss(action_id("unknown"))  # answered once the manifests are loaded
    assert bundle_gets(fake_s3) == 0
    plugin.expect_hit(*list(puts.items())[1])
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 1 and counts["get_fault_bytes"] < 3 << 20
    assert bundle_gets(fake_s3) == 1


def test_prefetch_limit_counts_once(machine, fake_s3):
    """Gets beyond the limit are fetched on demand and do not begin a new prefetch."""
    puts = noise(4, 2 << 20)
    fill(machine("a"), puts)
    plugin = machine("b", "--prefetch-limit=3MiB")
    plugin.expect_miss(action_id("unknown"))
    wait_until(lambda: bundle_gets(fake_s3) == 1, "the prefetch of one range")
    plugin.expect_hit(*list(puts.items())[1])
    assert bundle_gets(fake_s3) == 2
    assert plugin.finish()["get_fault_bytes"] < 5 << 20


def test_two_sessions_on_one_directory_prefetch_once(machine, fake_s3, tmp_path):
    """One session prefetches, and both have hits."""
    puts = noise(8, 1 << 20)
    fill(machine("a"), puts)
    take_requests(fake_s3)
    expect_all(alone := machine("alone"), puts)
    alone.finish()
    ranges = bundle_gets(fake_s3)
    take_requests(fake_s3)

    fake_s3.hold = lambda method, key: key.startswith("bundle/")
    first = machine("b")
    wait_until(lambda: fake_s3.held == ranges, "the first one's prefetch")
    second = machine("b")
    second.expect_miss(action_id("unknown"))  # its manifests are loaded
    assert fake_s3.held == ranges
    fake_s3.release()
    expect_all(first, puts)
    expect_all(second, puts)
    assert second.finish()["get_fault_hit"] == first.finish()["get_fault_hit"] == 8
    assert bundle_gets(fake_s3) == ranges > 1
    assert not temporaries(tmp_path / "b")


def test_ten_concurrent_sessions_lose_nothing(machine, fake_s3):
    """The next session sees all their entries and writes one manifest that names them all."""
    everything, plugins = {}, []
    for n in range(10):
        plugins.append(machine(f"machine {n}"))
        plugins[-1].expect_miss(action_id("unknown"))  # it has loaded an empty bucket
    for n, plugin in enumerate(plugins):
        puts = some(4, f"of {n}") | {action_id(f"shared by {n}"): b"the same body"}
        put_all(plugin, puts)
        everything |= puts
    numbers = [plugin.close() for plugin in plugins]
    for plugin, number in zip(plugins, numbers):
        assert plugin.answer(number) == {"ID": number}
    assert len(keys(fake_s3, "manifest")) == len(keys(fake_s3, "bundle")) == 10
    plugin = machine("next")
    expect_all(plugin, everything)
    put_all(plugin, {action_id("more"): b"more"})
    counts = plugin.finish()
    assert counts["get_fault_hit"] == len(everything) == 50 and "get_misses" not in counts
    take_requests(fake_s3)
    plugin = machine("last")
    expect_all(plugin, everything)
    plugin.finish()
    assert len([key for _, key in take_requests(fake_s3) if key.startswith("manifest/")]) == 1
