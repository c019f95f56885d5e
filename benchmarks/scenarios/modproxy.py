"""``modproxy``: module files from a warm cache, beside servers of plain files and files on disk."""

import os
import random
import time
from contextlib import closing, contextmanager, suppress

from ..processes import status_bytes
from ..runner import Case, Comparison
from ..site import HTTP_SERVER, NGINX, Site, go_module, many_modules
from ..webclient import Client, send_many

_CONNECTIONS = 32
_TRANSFERS = 3  # in each run, on one connection
_ON_DISK = "GOPROXY=file://"
_SOURCES = 48  # files that are added to each module


def modproxy(lab):
    """The module proxy: a large zip, many small files, and go mod download, all from its disk."""
    sizes = lab.sizes
    modules = many_modules(sizes.proxy_modules)
    body = random.Random(1).randbytes(sizes.zip_mb * 1_000_000)
    large = go_module("example.com/large", "v1.0.0", **{"testdata/random.bin": body})
    site = Site(lab.fresh("site"), modules, [large])
    with site.servers() as servers:
        plain = NGINX if NGINX in servers else HTTP_SERVER
        path = large.url_path(".zip")
        yield Comparison(
            "modproxy",
            f"zip of {sizes.zip_mb} MB",
            "rate_mb_s",
            plain,
            [Case(name, _zip(server, path)) for name, server in servers.items()],
        )
        small = [one.url_path(kind) for one in modules for kind in (".info", ".mod")]
        script = os.path.join(lab.work, "small.lua")
        yield Comparison(
            "modproxy",
            f".info and .mod, {_CONNECTIONS} connections, one core",
            "requests_s",
            NGINX if NGINX in servers else None,
            [
                Case(name, _small(server, small, sizes.proxy_s, script))
                for name, server in servers.items()
                if name != HTTP_SERVER
            ],
        )
    yield from _download(site, "a few files each")
    with_sources = [_with_sources(one) for one in modules]
    yield from _download(Site(lab.fresh("site"), with_sources), f"{_SOURCES} files more each")


def _download(site, what):
    with site.servers() as servers:
        cases = [Case(_ON_DISK, lambda: site.download(site.file_url))]
        cases += [
            Case(name, lambda server=server: site.download(server.url))
            for name, server in servers.items()
            if name != HTTP_SERVER
        ]
        yield Comparison("modproxy", f"go mod download, {what}", "wall_s", _ON_DISK, cases)


def _zip(server, path):
    def run():
        with _pinned(server), closing(Client(server.port)) as client:
            client.get(server.prefix + path)
            begin = time.perf_counter()
            size = sum(client.get(server.prefix + path) for _ in range(_TRANSFERS))
            rate = size / (time.perf_counter() - begin) / 1e6
        return {"rate_mb_s": rate, "resident_bytes": status_bytes(server.pid)}

    return run


def _small(server, paths, seconds, script):
    paths = [server.prefix + path for path in paths]

    def run():
        with _pinned(server):
            return send_many(server.port, paths, _CONNECTIONS, seconds, script)

    return run


@contextmanager
def _pinned(server):
    """For the context, pin the server to one core and this process to another one."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        with suppress(ProcessLookupError):  # http.server has a thread for each connection
            os.sched_setaffinity(int(thread), cores[-1:])
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _with_sources(one):
    """The same module with _SOURCES more files of 4 kB, which compress to half in the zip."""
    rng = random.Random(one.path)
    files = {
        f"internal/p{n // 6}/f{n % 6}.go": f"package p{n // 6}\n\n// {rng.randbytes(2000).hex()}\n"
        for n in range(_SOURCES)
    }
    return type(one)(one.path, one.version, {**one.files, **files}, requires=one.requires)
