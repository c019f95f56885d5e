"""Work with a distant bucket: ``remote-build``, ``upload``, ``incremental``, ``large``."""

import hashlib
import itertools
import os
import random
import time
from base64 import b64encode
from functools import lru_cache

from .. import rivals
from ..driver import Plugin
from ..lab import expect_hits, expect_uploads, go_environment, traffic
from ..processes import PeakMemory
from ..runner import Case, Comparison, Failed

_WARM = "warm local build"
_ROUND_TRIP_MS = 20.0  # of the comparisons at one distance only
_PIECE_BYTES = 3 << 16  # a multiple of three, so that its base64 needs no padding


def build(lab):
    """A build with an empty local cache and a full bucket: what a fresh CI machine does."""
    for round_trip_ms in lab.round_trips_ms:
        with lab.network(round_trip_ms) as (address, net):

            def restore(rival, watch=None, address=address, net=net):
                lab.filled(rival, True)
                program = rival.program(lab.fresh(), lab.remote(address, lab.full_prefix(rival)))
                return expect_hits(lab.build(program, net, watch), lab.repeated_misses)

            cases = [_warm_build(lab)]
            cases += [Case(one.name, lambda one=one, do=restore: do(one)) for one in remotes(lab)]
            yield Comparison("remote-build", _text(lab, round_trip_ms), "wall_s", _WARM, cases)
    with lab.network(_ROUND_TRIP_MS) as (address, net):

        def memory():
            peak = PeakMemory(rivals.PLUGIN)
            restore(lab.ours, peak.sample, address, net)
            return {"pss_bytes": peak.pss}

        name = f"memory of all its processes, {_text(lab, _ROUND_TRIP_MS)}"
        yield Comparison("remote-build", name, "pss_bytes", None, [Case(lab.ours.name, memory)])


def upload(lab):
    """A build with nothing cached anywhere, until the go command exits, with its uploads."""
    with lab.network(_ROUND_TRIP_MS) as (address, net):

        def store(rival):
            where = lab.fresh("cold")
            program = rival.program(where, lab.remote(address, os.path.basename(where)))
            return expect_uploads(lab.build(program, net))

        cases = [Case(rivals.OWN, lambda: expect_hits(lab.build()))]
        cases += [Case(one.name, lambda one=one: store(one)) for one in remotes(lab)]
        yield Comparison("upload", _text(lab, _ROUND_TRIP_MS), "wall_s", rivals.OWN, cases)


def incremental(lab):
    """One package changed, on a fresh machine with the rest in the bucket; beside no change."""
    edits, misses = itertools.count(), lab.repeated_misses
    with lab.network(_ROUND_TRIP_MS) as (address, net):
        for rival in remotes(lab):

            def changed(rival=rival):
                lab.filled(rival, True)  # before the first change
                lab.workload.change(f"edit {rival.name} {next(edits)}")
                return expect_hits(_restore(lab, rival, address, net))

            def unchanged(rival=rival):
                lab.workload.reset()
                return expect_hits(_restore(lab, rival, address, net), misses)

            cases = [Case("nothing changed", unchanged), Case(rival.name, changed)]
            what = f"{rival.name}, {_text(lab, _ROUND_TRIP_MS)}" if len(lab.rivals) > 1 else ""
            yield Comparison(
                "incremental",
                what or _text(lab, _ROUND_TRIP_MS),
                "wall_s",
                "nothing changed",
                cases,
            )
    lab.workload.reset()


def _restore(lab, rival, address, net) -> dict:
    lab.filled(rival, True)
    return lab.build(rival.program(lab.fresh(), lab.remote(address, lab.full_prefix(rival))), net)


def large(lab):
    """One object of hundreds of MB: put with its upload, and fetched on a fresh machine."""
    size = lab.sizes.large_mb * 1_000_000
    cases = {"put": [], "get": []}
    with lab.network(0.0) as (address, net):
        for rival in remotes(lab):
            for what in cases:
                cases[what].append(_large(lab, rival, what, size, address, net))
        for what, found in cases.items():
            yield Comparison("large", f"{lab.sizes.large_mb} MB, {what}", "wall_s", None, found)


def _large(lab, rival, what, size, address, net) -> Case:
    """A put into an empty bucket until the answer to close; or a get of that entry."""
    kept = {}  # {"prefix": the prefix that holds the entry}

    def put():
        where = lab.fresh("large")
        net_reset(net)
        found = _converse(
            lab, rival, where, lab.remote(address, os.path.basename(where)), size, True
        )
        kept.setdefault("prefix", os.path.basename(where))
        return found | traffic(net)

    def get():
        if not kept:
            put()
        net_reset(net)
        remote = lab.remote(address, kept["prefix"])
        return _converse(lab, rival, lab.fresh("large"), remote, size, False) | traffic(net)

    return Case(rival.name, put if what == "put" else get)


def _converse(lab, rival, cache, remote, size, puts) -> dict:
    """Start the program, put or get one body of ``size`` bytes, and close."""
    action, (output, encoded) = "ab" * 32, _body(size)
    begin = time.perf_counter()
    try:
        plugin = Plugin(rival.argv(cache, remote), go_environment(cache))
        if puts:
            answer = plugin.put(action, output, size, encoded)
            if b"DiskPath" not in answer:
                raise Failed(f"the answer to the put is {answer[:200]!r}")
        else:
            plugin.gets([action], 1)
        grown = plugin.resident_bytes(peak=True)
        plugin.close()
    except (ValueError, OSError, EOFError) as error:
        raise Failed(str(error)[:300]) from error
    wall_s = time.perf_counter() - begin
    return {"wall_s": wall_s, "rate_mb_s": size / wall_s / 1e6, "front_peak_bytes": grown}


@lru_cache(1)
def _body(size) -> tuple:
    """(SHA-256 in hex, base64 in pieces) of a fixed body that does not compress."""
    source, digest, encoded = random.Random(1), hashlib.sha256(), []
    for at in range(0, size, _PIECE_BYTES):
        piece = source.randbytes(min(_PIECE_BYTES, size - at))
        digest.update(piece)
        encoded.append(b64encode(piece))
    return digest.hexdigest(), encoded


# -- shared by the scenarios -----------------------------------------------------------------------


def remotes(lab) -> list:
    """The rivals that can use a bucket."""
    return [rival for rival in lab.rivals if rival.has_remote]


def net_reset(net) -> None:
    """Reset the counts of a Network; no-op for None."""
    if net is not None:
        net.reset()


def _warm_build(lab) -> Case:
    return Case(
        _WARM,
        lambda: expect_hits(
            lab.build(lab.ours.program(lab.filled(lab.ours, True))), lab.repeated_misses
        ),
    )


def _text(lab, round_trip_ms) -> str:
    return f"{round_trip_ms:g} ms" if lab.s3.port is not None else "its own distance"
