"""Imports go from higher parts of the program to lower ones, and the first answer loads little."""

import ast
import fnmatch
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import cacheplugin
from cacheplugin import cli

PACKAGE = Path(cacheplugin.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# What each part may import besides itself. "ground" is the modules beside the folders.
ALLOWED = {
    "ground": set(),
    "ipc": {"ground"},
    "store": {"ground"},
    "web": {"ground", "ipc", "store"},
    "remote": {"ground", "ipc", "store"},
    "pool": {"ground", "ipc", "store", "remote"},
    "front": {"ground", "ipc", "store", "pool"},
    "server": {"ground", "ipc", "store", "pool", "front", "web"},
    "commands": {"ground", "ipc", "store", "pool", "remote"},
    "top": {"ground", "store", "front", "server", "commands"},
}
TOP = {"main", "cli", "__main__"}
# All that server may import of web: it parses settings, and loads no HTTP library.
OF_WEB_FOR_SERVER = {"web.__init__", "web.modproxy.__init__", "web.modproxy.goproxy"}

HTTP = {"aiohttp", "prometheus_client"}
AWS = {"boto3", "botocore", "s3transfer", "urllib3"}
HEAVY = [
    "json",
    "logging",
    "typing",
    "__future__",
    "re",
    "socket",
    "subprocess",
    "docopt",
    "hashlib",
    "xxhash",
    "pybase64",
    "botocore",
    "boto3",
    "s3transfer",
    "multiprocessing",
    "enum",
    "dataclasses",
    "threading",
    "selectors",
    "tempfile",
    "argparse",
]
# Modules that can be loaded before or while a go command is served.
HOT = [
    *(
        "main",
        "options",
        "option_values",
        "errors",
        "console",
        "tuples",
        "log",
        "loop",
        "metrics",
        "breaker",
    ),
    *("scope", "store.*", "front.*", "ipc.*", "pool.client", "pool.uploader"),
    *("server.connect", "server.fd_passing"),
]
HINTS_ONLY = {"typing", "typing_extensions", "collections.abc", "__future__"}


class Import(NamedTuple):
    """One imported name: a module of another package, or one of this package without its name."""

    name: str
    is_own: bool


def is_type_checking(node) -> bool:
    """Whether a node is ``if TYPE_CHECKING:``, whose body never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(node, at_run_time):
    """A node and all below it; ``at_run_time``: without what only type checkers see."""
    if at_run_time and is_type_checking(node):
        for below in node.orelse:
            yield from nodes(below, at_run_time)
        return
    yield node
    for below in ast.iter_child_nodes(node):
        yield from nodes(below, at_run_time)


def imports_in(source: str, package: tuple, at_run_time=True):
    """The Imports anywhere in a source; ``package``: the folders that its module is in."""
    for node in nodes(ast.parse(source), at_run_time):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, False)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield Import(node.module, False)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                dotted = (*base, *(node.module or "").split("."), alias.name)
                yield Import(".".join(filter(None, dotted)), True)


def imports(module: str, at_run_time=True):
    return imports_in(MODULES[module].read_text(), tuple(module.split(".")[:-1]), at_run_time)


def module_of(name: str) -> str:
    """The module that an imported dotted name is, or is defined in."""
    for found in (name, f"{name}.__init__", name.rpartition(".")[0]):
        if found in MODULES:
            return found
    return f"{name.rpartition('.')[0]}.__init__".lstrip(".")


def run_time_graph() -> dict:
    """{module: the modules of this package that it imports}, those of cli.COMMANDS included.

    A module imports the packages that it is in.
    """
    graph = {}
    for module in MODULES:
        found = {module_of(entry.name) for entry in imports(module) if entry.is_own}
        if module == "cli":
            found |= set(cli.COMMANDS.values())
        folders = module.split(".")[:-1]
        found |= {".".join((*folders[:depth], "__init__")) for depth in range(len(folders) + 1)}
        graph[module] = found - {module}
    return graph


GRAPH = run_time_graph()


def part_of(module: str) -> str:
    """The key of ALLOWED that a module belongs to."""
    if module in TOP:
        return "top"
    return module.partition(".")[0] if "." in module else "ground"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_remote_package_imports_aws(module):
    """botocore and its like are imported in cacheplugin/remote only."""
    found = {entry.name.partition(".")[0] for entry in imports(module, at_run_time=False)} & AWS
    assert not found or part_of(module) == "remote"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_web_package_imports_http_servers(module):
    """aiohttp and prometheus_client are imported by the HTTP process only."""
    found = {entry.name.partition(".")[0] for entry in imports(module, at_run_time=False)} & HTTP
    assert not found or part_of(module) == "web"


def test_this_test_sees_imports():
    """The imports that are read from the source are complete, also those inside functions."""
    assert "botocore" in {entry.name.partition(".")[0] for entry in imports("remote.s3")}
    assert Import("json", False) in set(imports("front.protocol"))
    assert "errors" in GRAPH["remote.objects"] and "front.protocol" in GRAPH["front.session"]
    assert "server.serve" in GRAPH["cli"] and "server.connect" in GRAPH["main"]
    assert "remote.__init__" in GRAPH["remote.s3"] and "__init__" in GRAPH["cli"]


def test_this_test_knows_type_checking():
    """Imports under ``if TYPE_CHECKING:`` count for type checkers only, those in its else do."""
    source = "if TYPE_CHECKING:\n import a\nelse:\n import b\nif typing.TYPE_CHECKING:\n import c\n"
    assert [entry.name for entry in imports_in(source, ())] == ["b"]
    assert [entry.name for entry in imports_in(source, (), False)] == ["a", "b", "c"]
    assert not is_type_checking(ast.parse("if x:\n pass").body[0])


def test_no_cycles():
    """No module imports, directly or through others, a module that imports it."""
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_parts_import_only_lower_parts(module):
    """Each part of the program imports only the parts that ALLOWED has for it."""
    part = part_of(module)
    allowed = {part, *ALLOWED[part]}
    wrong = {name for name in GRAPH[module] if part_of(name) not in allowed}
    if part == "server":
        wrong |= {name for name in GRAPH[module] if part_of(name) == "web"} - OF_WEB_FOR_SERVER
    assert not wrong


def test_parts_are_the_folders():
    """A new folder needs an entry in ALLOWED."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(ALLOWED) == {*folders, "ground", "top"}


def test_allowed_parts_have_an_order():
    """ALLOWED itself has no cycle."""
    assert set(graphlib.TopologicalSorter(ALLOWED).static_order()) == set(ALLOWED)


def test_commands_are_modules_with_run():
    """Every entry of cli.COMMANDS names a module that has ``run``."""
    for name in cli.COMMANDS.values():
        assert name in MODULES
        assert callable(importlib.import_module(f"cacheplugin.{name}").run)


def spawned_modules() -> dict:
    """{module name given to spawn or spawn_apart: the module that calls it}"""
    found = {}
    for module in set(MODULES) - {"ipc.spawn"}:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func).rpartition(".")[2]
                if function in ("spawn", "spawn_apart"):
                    found[ast.literal_eval(node.args[0])] = module
    return found


def test_spawned_modules_have_main():
    """Every module name given to ``spawn`` is that of a module with ``main``."""
    names = spawned_modules()
    assert "cacheplugin.pool.supervisor" in names and len(names) >= 4
    for name in names:
        package, _, module = name.partition(".")
        assert package == "cacheplugin" and module in MODULES
        source = ast.parse(MODULES[module].read_text())
        assert "main" in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}


def test_modules_are_imported_by_name_in_cli_and_spawn_only():
    """Only cli and spawn import a module whose name is a value; tests above check these names."""
    users = {
        module
        for module in MODULES
        if {"importlib", "runpy", "pkgutil"} & {entry.name for entry in imports(module)}
        or "__import__" in MODULES[module].read_text()
    }
    assert users == {"cli", "ipc.spawn"}


def test_only_the_pool_uses_the_remote_package():
    """The front reaches S3 through the pool, so that a build of hits never loads botocore."""
    users = {
        module
        for module in GRAPH
        if part_of(module) != "remote" and "remote" in map(part_of, GRAPH[module])
    }
    assert users == {
        "pool.supervisor",
        "commands.prune",
        "commands.stats",
    }  # the last two for --remote, imported only then


def hot_modules() -> list:
    """The modules that match HOT, without those that only type checkers import."""
    imported = set().union(*GRAPH.values(), {"main"})
    return [
        module
        for module in MODULES
        if module in imported and any(fnmatch.fnmatch(module, pattern) for pattern in HOT)
    ]


@pytest.mark.parametrize("module", hot_modules())
def test_hot_modules_do_not_import_for_hints(module):
    """Modules that a go command waits for import nothing for the sake of type hints."""
    assert not {entry.name for entry in imports(module)} & HINTS_ONLY


def loaded_by(code) -> set:
    """The modules that code loads in a process of its own."""
    text = f"""
import sys
before = set(sys.modules)
sys.path.insert(0, {str(PACKAGE.parent)!r})
{code}
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_start_is_light():
    """Up to the first hit no slow module is loaded; only a rejected frame may load json."""
    loaded = loaded_by("""
import cacheplugin.main, cacheplugin.front.direct
from cacheplugin.front.protocol import GET, Parser, hit_answer, json_text
from cacheplugin.store.record import decode, encode
events = Parser().feed(b'{"ID":1,"Command":"get","ActionID":"AAAA"}\\n\\n')
assert events == [(GET, 1, "000000")], events
output, size, time, _ = decode("00", encode("00", "ab" * 32, 5, 7, 9))
hit_answer(1, output, size, time, json_text("/x"))
""")
    assert "cacheplugin.front.direct" in loaded
    assert not loaded & {*HEAVY, "cacheplugin.server.server", "cacheplugin.server.connect"}


def test_connect_is_light():
    """connect loads no more than it needs to pass descriptors and to find the scope."""
    loaded = loaded_by("import cacheplugin.main, cacheplugin.server.connect, cacheplugin.scope")
    assert "cacheplugin.server.fd_passing" in loaded
    others = {"cacheplugin.front.front", "cacheplugin.front.protocol", "collections"}
    assert not loaded & {*HEAVY, *others}
