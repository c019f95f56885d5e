"""The sizes of the scenarios: ``full`` for figures, ``quick`` to try, ``smoke`` for a test."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """The sizes of all scenarios in one form."""

    runs: int  # of each case, after the warm-ups
    warmups: int
    syncs: bool  # write all to the disk before each measurement; takes seconds on a busy machine
    workload: str
    round_trips_ms: tuple[float, ...]
    large_mb: int
    clients: int
    serve_gets: int  # of each client
    sessions: int
    prune_actions: int
    verify_mb: int
    spool_puts: int
    scale_entries: tuple[int, ...]  # of each store
    zip_mb: int
    proxy_modules: int  # versions; a project downloads the newest one of each module
    proxy_s: float  # duration of many small requests


SIZES = {
    "full": Sizes(
        runs=7,
        warmups=1,
        syncs=True,
        workload="std",
        round_trips_ms=(0.0, 5.0, 20.0, 50.0),
        large_mb=256,
        clients=32,
        serve_gets=3000,
        sessions=10_000,
        prune_actions=50_000,
        verify_mb=1000,
        spool_puts=1500,
        scale_entries=(10_000, 100_000, 1_000_000),
        zip_mb=50,
        proxy_modules=160,
        proxy_s=5,
    ),
    "quick": Sizes(
        runs=2,
        warmups=0,
        syncs=True,
        workload="std:encoding/json",
        round_trips_ms=(0.0, 20.0),
        large_mb=32,
        clients=8,
        serve_gets=1000,
        sessions=500,
        prune_actions=5_000,
        verify_mb=100,
        spool_puts=300,
        scale_entries=(1_000, 10_000),
        zip_mb=10,
        proxy_modules=30,
        proxy_s=1,
    ),
    "smoke": Sizes(
        runs=1,
        warmups=0,
        syncs=False,
        workload="std:unicode/...",
        round_trips_ms=(20.0,),
        large_mb=1,
        clients=2,
        serve_gets=50,
        sessions=5,
        prune_actions=200,
        verify_mb=1,
        spool_puts=10,
        scale_entries=(200,),
        zip_mb=1,
        proxy_modules=5,
        proxy_s=0.2,
    ),
}
