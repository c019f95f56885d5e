"""The command ``prune``: limits the age and size of the cache directory.

With ``--remote`` it limits the age of what is in the bucket.
"""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from .. import log
from ..console import say
from ..errors import RemoteError, UsageError, is_exhausted, reason_of
from ..metrics import byte_text
from ..store.prune import KINDS, Result, Tally, lock, prune
from ..store.record import timestamp
from .progress import Progress

if TYPE_CHECKING:
    from ..options import Options
    from ..remote.prune import Result as RemoteResult

EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT


def run(options: Options) -> int:
    """Prune and print what was removed; return the exit status. Raises UsageError."""
    if options.remote:
        return _run_remote(options)
    root = options.cache_dir
    if not os.path.lexists(root):
        return _nothing_done(options, f"{root} does not exist: nothing to prune")
    progress = Progress()
    handler = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if options.dry_run:
            result = _prune(options, progress)
        else:
            with lock(root) as alone:
                if not alone:
                    return _nothing_done(options, f"another prune of {root} is running")
                result = _prune(options, progress)
    except OSError as error:
        if is_exhausted(error):
            raise  # the directory is not to blame
        raise UsageError(f"the cache directory {root} cannot be used: {reason_of(error)}") from None
    except KeyboardInterrupt:
        say("prune was interrupted: files not yet removed stay")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, handler)
    return _report(options, result)


def _prune(options: Options, progress: Progress) -> Result:
    try:
        return prune(
            options.cache_dir,
            options.expiry_s,
            options.max_size_bytes,
            options.min_age_s,
            options.dry_run,
            progress.show,
        )
    finally:
        progress.clear()


def _nothing_done(options: Options, text: str) -> int:
    say(text)
    if options.json:
        nothing = {kind: Tally() for kind in KINDS}
        _print_json(options, Result(nothing, nothing, None, 0.0, 0, None))
    return 0


def _report(options: Options, result: Result) -> int:
    if options.json:
        _print_json(options, result)
    else:
        _print_text(options, result)
    if result.failures:
        say(
            f"{result.failures} files or directories could not be pruned;"
            f" the first error: {result.failure}"
        )
        return EXIT_FAILED
    return 0


def _print_json(options: Options, result: Result) -> None:
    report = {
        "dry_run": options.dry_run,
        "cutoff": None if result.cutoff_ns is None else timestamp(max(0, result.cutoff_ns)),
        "removed": _as_dict(result.removed),
        "kept": _as_dict(result.kept),
        "failures": result.failures,
        "seconds": round(result.seconds, 3),
    }
    print(json.dumps(report))


def _as_dict(tallies: dict[str, Tally]) -> dict[str, dict[str, int]]:
    return {kind: {"count": tally.count, "bytes": tally.bytes} for kind, tally in tallies.items()}


def _print_text(options: Options, result: Result) -> None:
    verb = "would remove" if options.dry_run else "removed"
    if result.cutoff_ns is None and not options.max_size_bytes:
        count = result.removed["other"].count
        print(f"nothing expires without --expiry or --max-size; {verb} {count} temporary files")
        return
    print(f"{verb} {_sum_text(result.removed)}")
    print(f"{'would keep' if options.dry_run else 'kept'} {_sum_text(result.kept)}")
    kept_bytes = sum(tally.bytes for tally in result.kept.values())
    if options.max_size_bytes and kept_bytes > options.max_size_bytes:
        print("still over --max-size: the rest is younger than --min-age or awaits upload")


def _sum_text(tallies: dict[str, Tally]) -> str:
    counts = ", ".join(f"{tally.count} {kind}" for kind, tally in tallies.items())
    return f"{counts}: {byte_text(sum(tally.bytes for tally in tallies.values()))}"


# -- the bucket ------------------------------------------------------------------------------------


def _run_remote(options: Options) -> int:
    """``prune --remote``: return the exit status. Raises UsageError."""
    if not options.bucket:
        raise UsageError("prune --remote needs --bucket")
    if not options.expiry_s:
        raise UsageError("prune --remote needs --expiry")
    if options.max_size_bytes:
        raise UsageError(
            "prune --remote limits the age of objects, not the size of the bucket:"
            " leave out --max-size"
        )
    if options.read_only and not options.dry_run:
        raise UsageError(
            "prune --remote deletes objects, which --read-only forbids: use --dry-run with it"
        )
    from ..remote.prune import RemotePrune
    from ..remote.s3 import Bucket

    log.setup(options)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # main.py ignores it, for the front
    try:
        bucket = Bucket(options)
        result = RemotePrune(bucket, options.prefix).run(options.expiry_s, options.dry_run)
    except (RemoteError, OSError) as error:
        say(f"bucket {options.bucket}: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    _report_remote(options, result)
    return 0


def _report_remote(options: Options, result: RemoteResult) -> None:
    if options.json:
        print(json.dumps({"dry_run": options.dry_run, **result._asdict()}))
        return
    deleted, rewritten, kept = (
        ("would delete", "to be rewritten", "would keep")
        if options.dry_run
        else ("deleted", "rewritten", "kept")
    )
    print(
        f"{deleted} {result.manifests} manifests and {result.bundles} bundles,"
        f" {byte_text(result.bytes)}; {result.rewritten} bundles {rewritten}"
    )
    print(f"{kept} {result.kept} bundles, {byte_text(result.kept_bytes)}")
