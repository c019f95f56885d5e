"""The real go command with the module proxy: downloads, builds, refusals, failing upstreams."""

import http.client
import json
import os
import shutil
import signal
import subprocess
from hashlib import sha256

import pytest

from helpers import (
    GO_TIMEOUT_S,
    PROGRAM,
    counters,
    kill,
    proc,
    temporaries,
    wait_until,
    write_module,
)
from module_proxy import LEAF, OLD, ROOT, ModProxy, path_of
from modules import Module, go_module, many_modules, newest, program
from server_sessions import Server, free_port

pytest_plugins = ["modproxy_fixtures"]

# Module paths on this host, where nothing listens: requests past the proxy fail at once.
NOWHERE = "127.9.9.9"
_TRIED = f"https://{NOWHERE}"  # in error texts of the go command
_REACH_S = 10  # for the request that tests whether there is a network
# Variables that may be needed to skip_unless_reachable the network.
_NETWORK = {
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
}
QUOTE, QUOTE_VERSION = "rsc.io/quote", "v1.5.2"
QUOTE_MAIN = f"""package main

import "{QUOTE}"

func main() {{ println(quote.Go()) }}
"""
PROVERB = "Don't communicate by sharing memory, share memory by communicating."


class Machine:
    """A go command with its own HOME and directory, which uses the proxy as its only source."""

    def __init__(self, command, processes, directory, go_cache, **environ) -> None:
        self.directory = directory / "work"
        self.home = directory / "home"
        for path in (self.directory, self.home):
            path.mkdir(parents=True)
        self.modcache = self.home / "go/pkg/mod"
        self.environ = processes.environ(
            HOME=str(self.home),
            PATH=os.pathsep.join([os.path.dirname(command), os.environ["PATH"]]),
            GOCACHE=str(go_cache),
            GOFLAGS="-mod=mod -modcacherw",
            GOTOOLCHAIN="local",
            GOENV="off",
            GOVCS="*:off",
            GIT_ALLOW_PROTOCOL="none",
            CGO_ENABLED="0",
        )
        self.environ.update(environ)

    def write(self, sources) -> "Machine":
        write_module(self.directory, sources)
        return self

    def start(self, *argv, **environ) -> subprocess.Popen:
        return subprocess.Popen(
            argv,
            cwd=self.directory,
            env={**self.environ, **environ},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def go(self, *argv, **environ) -> str:
        """The stdout of a go command, which must succeed."""
        return passes(self.start("go", *argv, **environ))[0]

    def fails(self, *argv, **environ) -> str:
        """The output of a go command, which must fail."""
        process = self.start("go", *argv, **environ)
        out, err = process.communicate(timeout=GO_TIMEOUT_S)
        assert process.returncode, out
        return out + err

    def download(self, *modules) -> dict:
        """{path@version: (zip hash, go.mod hash)} of ``go mod download``, which must succeed."""
        text, found = self.go("mod", "download", "-json", *map(repr, modules)), {}
        while text.strip():
            said, end = json.JSONDecoder().raw_decode(text)
            found[f"{said['Path']}@{said['Version']}"] = said["Sum"], said["GoModSum"]
            text = text[end:].lstrip()
        return found

    def build(self, *flags) -> list:
        """Build the program and run it; returns the lines that it prints."""
        self.go("build", *flags, "-o", "program", ".")
        return self.printed()

    def printed(self) -> list:
        return passes(self.start("./program"))[1].splitlines()


def passes(process):
    """(stdout, stderr) of a process, which must succeed."""
    out, err = process.communicate(timeout=GO_TIMEOUT_S)
    assert process.returncode == 0, err + out
    return out, err


def hashes(modules) -> dict:
    return {repr(module): (module.zip_hash, module.mod_hash) for module in modules}


def lines_of(modules) -> list:
    """The lines that a program of these modules prints."""
    return [f"{module.path} {module.version}" for module in modules]


@pytest.fixture
def machine(go_command, go_build_cache, processes, tmp_path, database):
    """machine(proxy, **environ): a Machine that uses a ModProxy and verifies checksums."""
    made = []

    def machine(proxy, **environ):
        environ = {"GOPROXY": proxy.url, "GOSUMDB": database.vkey, **environ}
        directory = tmp_path / f"machine-{len(made)}"
        made.append(Machine(go_command, processes, directory, go_build_cache, **environ))
        return made[-1]

    return machine


@pytest.fixture
def many(upstream, database):
    """Many modules, which the upstream and the database have too."""
    modules = many_modules(40)
    upstream.add(*modules)
    database.add(*modules)
    return modules


def flags_without_upstream(upstream) -> list:
    """Flags for a server that sends no requests upstream."""
    return ["--modproxy-upstream=off", f"--sumdb={upstream.checksums.name}"]


def add(upstream, *modules) -> None:
    upstream.add(*modules)
    upstream.checksums.add(*modules)


# -- requests of the go command --------------------------------------------------------------------


@pytest.mark.parametrize("way", ["through GOPROXY", "by its URL"])
def test_downloads_have_the_hashes_of_the_database(modproxy, machine, upstream, many, way):
    """Both ways to reach the database work, and no file is fetched from upstream twice."""
    old = Module("example.test/old", "v2.1.0+incompatible", {"old.go": "package old\n"})
    major = go_module("gopkg.in/made.v3", "v3.0.0-20240102030405-0123456789ab")
    add(upstream, old, major)
    many += [old, major]
    proxy = modproxy()
    name, vkey = upstream.checksums.name, upstream.checksums.vkey
    gosumdb = vkey if way == "through GOPROXY" else f"{vkey} {proxy.url}/sumdb/{name}"
    assert machine(proxy, GOSUMDB=gosumdb).download(*many) == hashes(many)
    files = {path for _, path in upstream.requests}
    assert len(files) == upstream.count()
    assert upstream.count("/lookup/") == len(many)
    assert machine(proxy, GOSUMDB=gosumdb).download(*many) == hashes(many)
    assert {path for _, path in upstream.requests} == files
    assert proxy.counts()["upstream_request"] == len(files)


def test_get_of_versions_branches_and_latest(modproxy, machine, upstream):
    """A branch that moved is found again, also one with upper-case letters in its name."""
    first, second = (
        go_module(ROOT.path, f"v1.3.1-0.2024010203040{n}-{n}123456789ab", [LEAF]) for n in (5, 6)
    )
    rc = go_module(ROOT.path, "v1.4.0-rc.1", [LEAF])
    add(upstream, first, second, rc)
    upstream.queries[ROOT.path, "master"] = first.version
    upstream.queries[ROOT.path, "Rel-1.x"] = second.version
    upstream.queries[ROOT.path, "6123456789ab"] = second.version
    here = machine(modproxy("--modproxy-max-age=0")).write({"go.mod": "module example.com/here\n"})

    def got(query):
        here.go("get", f"{ROOT.path}@{query}")
        return here.go("list", "-m", ROOT.path).split()[1]

    assert got(OLD.version) == got("<v1.2.0") == OLD.version
    assert got("master") == first.version
    assert got("Rel-1.x") == got("6123456789ab") == second.version
    upstream.queries[ROOT.path, "master"] = second.version
    assert got("master") == second.version
    assert got("v1.4.0-rc.1") == rc.version
    assert got("latest") == got("v1") == got("v1.2") == ROOT.version
    listed = here.go("list", "-m", "-versions", ROOT.path).split()
    assert listed == [ROOT.path, OLD.version, ROOT.version, rc.version]
    assert here.go("list", "-m", "all").splitlines()[1:] == lines_of([LEAF, ROOT])
    sums = (here.directory / "go.sum").read_text()
    assert f"{ROOT.path} {ROOT.version} {ROOT.zip_hash}\n" in sums
    assert f"{LEAF.path} {LEAF.version}/go.mod {LEAF.mod_hash}\n" in sums


def test_tidy_upgrade_vendor_verify_and_install(modproxy, machine, upstream):
    """Other commands that use a proxy."""
    tool = Module("example.test/Tool", "v0.1.0", program([ROOT], path="example.test/Tool"))
    add(upstream, tool)
    proxy = modproxy()
    here = machine(proxy).write(program([OLD]))
    here.go("mod", "tidy")
    assert f"{ROOT.path} {OLD.version} [{ROOT.version}]" in here.go("list", "-m", "-u", "all")
    here.go("get", "-u", "./...")
    assert here.build() == lines_of([ROOT])
    assert here.go("mod", "verify").strip() == "all modules verified"
    here.go("mod", "vendor")
    assert (here.directory / "vendor/example.test/Leaf/leaf.go").exists()
    here.go("install", f"{tool.path}@latest")
    assert passes(here.start(str(here.home / "go/bin/Tool")))[1].splitlines() == lines_of([ROOT])


def test_a_toolchain_that_a_module_requires(modproxy, machine, upstream):
    """A toolchain is a module too; the go command always verifies it with the database."""
    system = machine(modproxy()).go("env", "GOOS", "GOARCH").split()
    toolchain = Module(
        "golang.org/toolchain",
        f"v0.0.1-go1.99.0.{'-'.join(system)}",
        {
            "bin/go": "#!/bin/sh\necho the newer one\n",
            **dict.fromkeys(("bin/gofmt", "pkg/tool/none", "lib/none"), "made for tests\n"),
            "src/_go.mod": "module std\n",
        },
    )
    add(upstream, toolchain)
    proxy = modproxy()
    for _ in range(2):
        here = machine(proxy, GOTOOLCHAIN="auto")
        here.write({"go.mod": "module here.test\n\ngo 1.99.0\n"})
        assert here.go("version") == "the newer one\n"
        upstream.close()


# -- builds ----------------------------------------------------------------------------------------


def test_builds_with_upstream_and_without(modproxy, machine, upstream, many, tmp_path):
    """From upstream, then with upstream closed, then with upstream off after a restart."""
    used = newest(many)[-20:]
    proxy = modproxy()
    assert machine(proxy).write(program(used)).build() == lines_of(used)
    upstream.close()
    asked = proxy.counts()["upstream_request"]
    again = machine(proxy).write(program(used))
    assert again.build() == lines_of(used)
    assert again.go("mod", "verify").strip() == "all modules verified"
    assert proxy.counts()["upstream_request"] == asked
    assert proxy.server.stop() == 0
    off = modproxy(*flags_without_upstream(upstream))
    assert machine(off).write(program(used)).build() == lines_of(used)
    assert "get_error" not in off.counts() and "upstream_request" not in off.counts()


def test_a_build_from_the_bucket_alone(modproxy, machine, upstream, many, fake_s3, tmp_path):
    """A server without files on disk and without upstream serves what another one uploaded."""
    used = newest(many)[-20:]
    proxy = modproxy(*fake_s3.flags())
    assert machine(proxy).write(program(used)).build() == lines_of(used)
    assert proxy.server.stop() == 0
    kept = {path.name for path in (tmp_path / "modules").glob("module/*/*")}
    assert kept and {key.rpartition("/")[2] for key in fake_s3.objects} >= kept
    upstream.close()
    fresh = modproxy(*fake_s3.flags(), cache_dir=tmp_path / "fresh")
    assert machine(fresh).write(program(used)).build() == lines_of(used)
    counts = fresh.counts()
    assert counts["get_fault_hit"] >= 3 * len(used) and "upstream_request" not in counts
    assert machine(fresh).write(program(used)).build() == lines_of(used)
    assert fresh.counts()["get_fault_hit"] == counts["get_fault_hit"]


def test_concurrent_go_commands_share_downloads(modproxy, machine, upstream, many):
    proxy = modproxy()
    used = newest(many)[-20:]
    machines = [machine(proxy).write(program(used)) for _ in range(4)]
    builds = [one.start("go", "build", "-o", "program", ".") for one in machines]
    for one, build in zip(machines, builds):
        passes(build)
        assert one.printed() == lines_of(used)
    assert len({path for _, path in upstream.requests}) == upstream.count()


def test_temporary_faults_are_not_noticed(modproxy, machine, upstream, many):
    """Each fault once, at the zip, the go.mod and the database's record of a module."""
    for fault, module in zip(("503", "429", "reset", "cut"), many[::5]):
        lookup = f"/sumdb/{upstream.checksums.name}/lookup/{module.escaped}@{module.version}"
        for struck in (path_of(module, "zip"), path_of(module, "mod"), lookup):
            upstream.fail(fault, times=1, match=struck.__eq__)
    assert machine(modproxy()).download(*many) == hashes(many)


def test_build_cache_and_modules_in_one_server(
    modproxy, machine, upstream, many, std_cache, tmp_path
):
    """Without GOMODCACHE and upstream, modules and compiled packages come from the server."""
    used = newest(many)[-20:]
    shutil.copytree(std_cache, tmp_path / "both")
    port = free_port()
    proxy = modproxy(f"--plugin={port}", cache_dir=tmp_path / "both")
    proxy.server.ready()
    here = machine(proxy, GOCACHEPROG=f"{PROGRAM} connect --metrics {port}").write(program(used))
    counts = []
    for _ in range(2):
        counts.append(counters(passes(here.start("go", "build", "-o", "program", "."))[1]))
        assert here.printed() == lines_of(used)
        shutil.rmtree(here.modcache)
        upstream.close()
    first, second = counts
    assert first["put_requests"] >= len(used) and not second.get("put_requests")
    assert second["get_local_hit"] == second["get_requests"]
    assert proxy.server.stop() == 0
    assert not temporaries(tmp_path / "both")


@pytest.mark.parametrize("way", ["closed", "off"])
def test_queries_without_upstream_have_their_last_answers(modproxy, machine, upstream, way):
    """Lists, @latest and branches, for a machine that never asked for them before."""
    commit = go_module(ROOT.path, "v1.3.1-0.20240102030405-0123456789ab", [LEAF])
    add(upstream, commit)
    upstream.queries[ROOT.path, "master"] = commit.version

    def ask(proxy):
        here = machine(proxy).write({"go.mod": "module here.test\n"})
        here.go("get", f"{ROOT.path}@latest")
        said = [here.go("list", "-m", "all"), here.go("list", "-m", "-versions", ROOT.path)]
        here.go("get", f"{ROOT.path}@master")
        return [*said, here.go("list", "-m", "all")]

    proxy = modproxy()
    said = ask(proxy)
    assert said[1].split() == [ROOT.path, OLD.version, ROOT.version]
    assert commit.version in said[2]
    assert proxy.server.stop() == 0
    upstream.close()
    assert ask(modproxy(*flags_without_upstream(upstream) if way == "off" else ())) == said


# -- absent and wrong files ------------------------------------------------------------------------


def test_go_falls_back_to_direct_for_an_absent_module(modproxy, machine, upstream, tmp_path):
    """Without direct, the go command prints the text of upstream."""
    proxy = modproxy()
    here = machine(proxy).write({"go.mod": "module here.test\n"})
    path = f"{NOWHERE}/none"
    said = here.fails("get", f"{path}@v1.0.0")
    assert f"404 Not Found\n\tserver response: not found: {path}" in said and _TRIED not in said
    for query in ("v1.0.0", "latest", "master"):
        assert _TRIED in here.fails("get", f"{path}@{query}", GOPROXY=f"{proxy.url},direct")
    off = modproxy(*flags_without_upstream(upstream), cache_dir=tmp_path / "off")
    assert _TRIED in here.fails("get", f"{path}@v1.0.0", GOPROXY=f"{off.url},direct")
    said = here.fails("get", f"{ROOT.path}@v1.2.0", GOPROXY=off.url)
    assert "404 Not Found\n\tserver response: it is not in the cache, and upstream is off" in said


@pytest.mark.parametrize("fault", ["closed", "500", "403"])
def test_go_does_not_fall_back_to_direct_when_upstream_fails(modproxy, machine, upstream, fault):
    """Otherwise the owner of the host would be asked for private modules."""
    proxy = modproxy()
    here = machine(proxy).write({"go.mod": "module here.test\n"})
    if fault == "closed":
        upstream.close()
    else:
        upstream.fail(fault)
    for query in ("v1.0.0", "latest"):
        said = here.fails("get", f"{NOWHERE}/none@{query}", GOPROXY=f"{proxy.url},direct")
        assert f"502 Bad Gateway\n\tserver response: upstream {upstream.url}" in said
        assert _TRIED not in said
        closed = "Cannot connect" in said or "it could not be reached moments ago" in said
        assert closed if fault == "closed" else f"HTTP status {fault}" in said
    said = here.fails("get", f"{NOWHERE}/none@v1.0.0", GOPROXY=f"{proxy.url}|direct")
    assert _TRIED in said  # after "|" it falls back on any failure


def test_private_modules(modproxy, machine, upstream, tmp_path):
    """Upstream has them, no database does: they are served when they are marked as private."""
    private = go_module(f"{NOWHERE}/secret/m", "v1.0.0")
    upstream.add(private)
    open_proxy = modproxy()
    said = machine(open_proxy).fails("mod", "download", repr(private))
    assert f"verifying go.mod: {private}/go.mod: reading" in said and "404 Not Found" in said
    proxy = modproxy(environ={"GOPRIVATE": f"{NOWHERE}/secret"}, cache_dir=tmp_path / "private")
    before = upstream.count("/lookup/")
    glob = f"{NOWHERE}/*"
    assert machine(proxy, GONOSUMDB=glob).download(private) == hashes([private])
    assert upstream.count("/lookup/") == before
    upstream.close()
    assert machine(proxy, GONOSUMDB=glob).download(private) == hashes([private])
    requests = proxy.counts()["get_request"]
    assert _TRIED in machine(proxy, GOPRIVATE=glob).fails("mod", "download", repr(private))
    assert proxy.counts()["get_request"] == requests


@pytest.mark.parametrize("kind", ["zip", "mod"])
def test_the_proxy_refuses_changed_files(modproxy, machine, upstream, kind):
    """The go command does not verify here; afterwards the right file is accepted."""
    changed = {**LEAF.files, "more.go": "package leaf\n"} if kind == "zip" else LEAF.files
    go_mod = LEAF.mod + (b"\n// Changed.\n" if kind == "mod" else b"")
    upstream.add(Module(LEAF.path, LEAF.version, changed, go_mod=go_mod))
    proxy = modproxy()
    blind = machine(proxy, GOSUMDB="off")
    said = blind.fails("mod", "download", repr(LEAF))
    right = LEAF.zip_hash if kind == "zip" else LEAF.mod_hash
    refusal = f"{path_of(LEAF, kind)[1:]} is refused: its hash is h1:"
    assert f"502 Bad Gateway\n\tserver response: {refusal}" in said
    assert f"but the checksum database has {right}" in said
    assert not list(blind.modcache.glob(f"cache/download/example.test/!leaf/@v/*.{kind}"))
    assert proxy.counts()["mismatch"] >= 1
    upstream.add(LEAF)
    assert blind.download(LEAF) == hashes([LEAF])


def test_a_large_changed_zip_is_cut(modproxy, machine, upstream):
    """It is sent while it is fetched, but its end is not, so no go command stores a zip."""
    right = go_module("example.test/large", "v1.0.0", **{"bulk.txt": os.urandom(1 << 19).hex()})
    add(upstream, right)
    upstream.add(Module(right.path, right.version, {**right.files, "more.go": "package large\n"}))
    proxy = modproxy()
    blind = machine(proxy, GOSUMDB="off")
    assert "EOF" in blind.fails("mod", "download", repr(right))
    assert not list(blind.modcache.glob("cache/download/example.test/large/@v/*.zip"))
    assert f"{path_of(right, 'zip')[1:]} is refused" in proxy.server.says("is refused")
    upstream.add(right)
    assert blind.download(right) == hashes([right])


def test_go_refuses_a_record_signed_with_another_key(modproxy, machine, upstream):
    """The proxy does not know the database's key; the go command reports the error."""
    other = type(upstream.checksums)(upstream.checksums.name, seed=b"x" * 32)
    other.add(LEAF)
    proxy = modproxy()
    said = machine(proxy, GOSUMDB=other.vkey).fails("mod", "download", repr(LEAF))
    assert "invalid signature" in said or "no verifiable signatures" in said


@pytest.mark.parametrize("first", ["A", "B"])
def test_a_database_that_grew_is_verified_without_upstream(modproxy, machine, upstream, first):
    """Records stored at different times have trees of different sizes; any order of reading works.

    Go commands with a go.sum leave such records: they download modules, but no tiles.
    """
    a, b = (go_module(f"example.test/{name}", "v1.0.0") for name in "ab")
    add(upstream, a)
    proxy = modproxy()
    machine(proxy, GOSUMDB="off").download(a)
    add(upstream, *many_modules(20), b)
    online = machine(proxy)
    for module in (b, a):
        online.download(module)
    upstream.close()
    offline = machine(proxy)
    for module in (a, b) if first == "A" else (b, a):
        assert offline.download(module) == hashes([module])


# -- processes that end ----------------------------------------------------------------------------


def test_a_go_command_killed_during_a_download(modproxy, machine, upstream, tmp_path):
    """The download goes on, and the next go command gets the file."""
    large = go_module("example.test/large", "v1.0.0", **{"bulk.txt": os.urandom(1 << 19).hex()})
    add(upstream, large)
    upstream.fail("slow", match=lambda path: path.endswith(".zip"))
    proxy = modproxy()
    here = machine(proxy)
    victim = here.start("go", "mod", "download", repr(large))
    upstream.step()
    wait_until(lambda: list(here.modcache.glob("**/*.zip*.tmp")), "a part of the zip")
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    upstream.release()
    upstream.heal()
    assert here.download(large) == hashes([large])
    assert machine(proxy).download(large) == hashes([large])
    assert upstream.count(".zip") == 1
    assert proxy.server.stop() == 0
    assert not temporaries(tmp_path / "modules")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_during_downloads(modproxy, machine, upstream, many, tmp_path, number):
    """Its go command fails; the next server continues, and fetches no stored file again."""
    used = newest(many)[-20:]
    held = path_of(used[-1], "zip")
    upstream.hold(lambda path: path == held)
    proxy = modproxy("--stop-timeout=1s")
    here = machine(proxy).write(program(used))
    build = here.start("go", "build", "-o", "program", ".")
    upstream.wait_for_held(1)
    wait_until(lambda: len(stored_zips(tmp_path, many)) >= 5, "zips of other modules")
    proxy.server.signal(number)
    proxy.server.wait()
    _, err = build.communicate(timeout=GO_TIMEOUT_S)
    assert build.returncode and repr(used[-1]) in err
    upstream.release()
    kept = stored_zips(tmp_path, many)
    proxy = modproxy()
    here.go("build", "-o", "program", ".", GOPROXY=proxy.url)
    assert here.printed() == lines_of(used)
    assert machine(proxy).write(program(used)).build() == lines_of(used)
    assert upstream.count(held) == 2
    assert {upstream.count(path_of(module, "zip")) for module in kept} == {1}
    assert proxy.server.stop() == 0
    assert not temporaries(tmp_path / "modules")


def test_http_processes_killed_during_downloads(modproxy, machine, upstream, many):
    """A new one serves on the same port, so the go command may not even notice."""
    used = newest(many)[-20:]
    upstream.hold(lambda path: path == path_of(used[-1], "zip"))
    proxy = modproxy()
    here = machine(proxy).write(program(used))
    build = here.start("go", "build", "-o", "program", ".")
    upstream.wait_for_held(1)
    server = proxy.server.pid
    (http_process,) = proc(server, f"task/{server}/children").split()
    kill(int(http_process))
    upstream.release()
    _, err = build.communicate(timeout=GO_TIMEOUT_S)
    assert build.returncode == 0 or "EOF" in err or "connection reset" in err
    assert here.build() == lines_of(used)
    assert machine(proxy).write(program(used)).build() == lines_of(used)
    assert proxy.server.stop() == 0


def stored_zips(tmp_path, modules) -> list:
    """The modules whose zip is in the cache directory."""
    names = {path.name for path in (tmp_path / "modules").glob("module/*/*")}
    return [m for m in modules if sha256(path_of(m, "zip")[1:].encode()).hexdigest() in names]


# -- the real upstream -----------------------------------------------------------------------------


@pytest.fixture
def real_modproxy(go_command, processes, tmp_path):
    """real_modproxy(*flags): a ModProxy of ``go env GOPROXY`` with the default --sumdb."""
    argv = [go_command, "env", "GOPROXY"]
    found = subprocess.run(argv, capture_output=True, text=True, check=True)
    proxies = found.stdout.strip()
    if proxies.partition(",")[0] in ("off", "direct", ""):
        pytest.skip(f"go env GOPROXY is {proxies!r}, which is not a module proxy")
    network = {name: os.environ[name] for name in _NETWORK & os.environ.keys()}
    servers = []

    def real_modproxy(*flags):
        port = free_port()
        server = Server(
            [
                f"--cache-dir={tmp_path / 'real'}",
                f"--http=127.0.0.1:{port}",
                "--modproxy",
                f"--modproxy-upstream={proxies}",
                *flags,
            ],
            processes.environ(**network),
            tmp_path / f"stderr-real-{len(servers)}",
            0,
        )
        servers.append(server)
        server.says("HTTP on")
        return ModProxy(server, port)

    yield real_modproxy
    for server in servers:
        server.kill()


def skip_unless_reachable(proxy) -> None:
    """Skip the test unless upstream and its checksum database deliver a go.mod in time."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=_REACH_S)
    try:
        connection.request("GET", f"/mod/{QUOTE}/@v/{QUOTE_VERSION}.mod")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except OSError as error:
        pytest.skip(f"what go env GOPROXY names cannot be reached in {_REACH_S} s: {error}")
    finally:
        connection.close()
    if answer.status != 200:
        pytest.skip(f"what go env GOPROXY names cannot be reached: {answer.status} {text}")
    if proxy.counts().get("unverified"):
        pytest.skip(f"the checksum database cannot be reached: {proxy.server.lines[-1]}")


def test_a_real_program_from_the_real_upstream(
    go_command, go_build_cache, processes, real_modproxy, tmp_path
):
    """With the go command's default GOSUMDB; then on another machine, with upstream off."""

    def build(proxy, number):
        machine = Machine(
            go_command, processes, tmp_path / f"real-{number}", go_build_cache, GOPROXY=proxy.url
        )
        machine.write({"go.mod": "module example.com/greet\n\ngo 1.21\n", "main.go": QUOTE_MAIN})
        machine.go("get", f"{QUOTE}@{QUOTE_VERSION}")
        assert machine.build() == [PROVERB]
        return (machine.directory / "go.sum").read_text()

    proxy = real_modproxy()
    skip_unless_reachable(proxy)
    sums = build(proxy, 1)
    assert f"{QUOTE} {QUOTE_VERSION} h1:" in sums
    assert not {"unverified", "mismatch"} & proxy.counts().keys()
    assert proxy.server.stop() == 0
    proxy = real_modproxy("--modproxy-upstream=off")
    assert build(proxy, 2) == sums
    assert "upstream_request" not in proxy.counts()
    assert proxy.server.stop() == 0
