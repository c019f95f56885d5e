"""Imports point one way, and what the first answer waits for is light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import cacheplugin

PACKAGE = Path(cacheplugin.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

HTTP = {"aiohttp", "prometheus_client"}
AWS = {"boto3", "botocore", "s3transfer", "urllib3"}
HEAVY = [
    "json",
    "logging",
    "typing",
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


def imports(path: Path):
    """(top-level name, module of this package or None) of every import anywhere in a module."""
    package = path.parts[:-1]
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], None
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield "cacheplugin", "/".join((*base, *node.module.split(".")))
            else:
                for alias in node.names:
                    yield "cacheplugin", "/".join((*base, alias.name))


def module_of(name: str) -> str:
    """The module that an imported dotted name stands for: itself, or its package's."""
    if (PACKAGE / f"{name}.py").exists():
        return name
    if (PACKAGE / name / "__init__.py").exists():
        return f"{name}/__init__"
    return f"{name.rpartition('/')[0]}/__init__".lstrip("/")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_the_remote_package_imports_aws(path):
    """botocore and its kind are imported below cacheplugin/remote and nowhere else."""
    found = {name for name, _ in imports(path)} & AWS
    assert not found or path.parts[0] == "remote"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_the_web_package_imports_http_servers(path):
    """aiohttp and prometheus_client are for the HTTP process alone."""
    assert not {name for name, _ in imports(path)} & HTTP or path.parts[0] == "web"


def test_this_test_sees_imports():
    """The reading of imports finds what is known to be there, also inside functions."""
    assert "botocore" in {name for name, _ in imports(Path("remote/s3.py"))}
    assert "json" in {name for name, _ in imports(Path("front/protocol.py"))}
    assert ("cacheplugin", "errors") in set(imports(Path("remote/objects.py")))


def test_imports_point_one_way():
    """No module imports, by whatever way round, a module that imports it."""
    graph = {}
    for path in MODULES:
        own = str(path.with_suffix(""))
        graph[own] = {module_of(name) for _, name in imports(path) if name is not None}
        graph[own].discard(f"{path.parent}/__init__")  # a package's own names, for its modules
    assert "front/protocol" in graph["front/session"]
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(graph)


def test_only_the_pool_uses_the_remote_package():
    """The front reaches S3 through the pool, so that a build of hits never loads botocore."""
    users = {
        str(path.with_suffix(""))
        for path in MODULES
        if path.parts[0] != "remote"
        for _, name in imports(path)
        if name is not None and name.startswith("remote")
    }
    assert users == {
        "pool/supervisor",
        "commands/prune",
        "commands/stats",
    }  # the last two for --remote, imported only then


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
    """Up to the first hit none of the costly modules is loaded; a rejected frame may load json."""
    loaded = loaded_by("""
import cacheplugin.main, cacheplugin.front.direct
from cacheplugin.front.protocol import GET, Parser, hit_answer, json_text
from cacheplugin.store.record import decode, encode
events = Parser().feed(b'{"ID":1,"Command":"get","ActionID":"AAAA"}\\n\\n')
assert events == [(GET, 1, "000000")], events
output, size, time, _ = decode("00", encode("00", "ab", 5, 7, 9))
hit_answer(1, output, size, time, json_text("/x"))
""")
    assert "cacheplugin.front.direct" in loaded
    assert not loaded & {*HEAVY, "cacheplugin.server.server", "cacheplugin.server.connect"}


def test_connect_is_light():
    """It loads no more than what hands descriptors over, and finds the scope."""
    loaded = loaded_by("import cacheplugin.main, cacheplugin.server.connect, cacheplugin.scope")
    assert "cacheplugin.server.fd_passing" in loaded
    others = {"cacheplugin.front.front", "cacheplugin.front.protocol", "collections"}
    assert not loaded & {*HEAVY, *others}
