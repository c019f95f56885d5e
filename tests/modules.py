"""Go modules for tests: the files that a GOPROXY serves, and their hashes in go.sum.

Formats: https://go.dev/ref/mod (module proxy, module zip files) and golang.org/x/mod/sumdb/dirhash.
"""

import base64
import hashlib
import io
import json
import random
import re
import warnings
import zipfile

_FILE = """\
// Package {package} was made for tests.
package {package}

import ({imports}
)

// Uses names the modules this one was built with.
var Uses = []string{{{uses}}}

// Version returns this module's path and version.
func Version() string {{ return "{path} {version}" }}
"""
_MAIN = """\
package main

import ({imports}
)

func main() {{
{prints}}}
"""
# Beginnings of generated paths; one of them has an upper-case letter, which is escaped in URLs.
_OWNERS = ("example.com/tools", "example.org/x", "git.example.net/Azure/sdk", "example.com/data")


class Module:
    """A version of a module: ``info``, ``mod`` and ``zip`` are the bytes that a GOPROXY serves.

    ``files``: {name in the module: text or bytes}. ``mod`` is ``go_mod`` if given, else the go.mod
    among the files, else the one that the go command generates. ``requires``: the modules that it
    depends on. A test may assign ``info``, ``mod`` and ``zip``: the hashes follow.
    """

    def __init__(
        self, path, version, files, time="2024-01-02T03:04:05Z", go_mod=None, requires=()
    ) -> None:
        self.path, self.version, self.requires = path, version, tuple(requires)
        self.files = {name: _bytes(content) for name, content in files.items()}
        self.info = json.dumps({"Version": version, "Time": time}).encode()
        made_up = self.files.get("go.mod", f"module {path}\n")
        self.mod = _bytes(made_up if go_mod is None else go_mod)
        prefix = f"{path}@{version}/"
        self.zip = zip_bytes([(prefix + name, body) for name, body in sorted(self.files.items())])

    @property
    def escaped(self) -> str:
        return escape(self.path)

    @property
    def escaped_version(self) -> str:
        return escape(self.version)

    @property
    def zip_hash(self) -> str:
        with zipfile.ZipFile(io.BytesIO(self.zip)) as archive:
            return hash1((name, archive.read(name)) for name in archive.namelist())

    @property
    def mod_hash(self) -> str:
        return hash1([("go.mod", self.mod)])

    def url_path(self, extension: str) -> str:
        """The path under which a GOPROXY serves the ".info", ".mod" or ".zip"."""
        return f"/{self.escaped}/@v/{self.escaped_version}{extension}"

    def __repr__(self) -> str:
        return f"{self.path}@{self.version}"


def hash1(entries) -> str:
    """The "h1:" hash of [(name, contents)]."""
    lines = (f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in sorted(entries))
    return "h1:" + base64.b64encode(hashlib.sha256("".join(lines).encode()).digest()).decode()


def escape(text: str) -> str:
    """A path or version as in a URL: each upper-case letter is ``!`` and its lower-case form."""
    return re.sub("[A-Z]", lambda found: "!" + found[0].lower(), text)


def unescape(text: str) -> str:
    return re.sub("!([a-z])", lambda found: found[1].upper(), text)


def order(version: str):
    """A sort key for versions, in the order of semver."""
    core, _, before = version.removeprefix("v").partition("+")[0].partition("-")
    parts = [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in before.split(".")]
    return tuple(map(int, core.split("."))), not before, parts


def zip_bytes(entries) -> bytes:
    """A zip of [(name, contents)]: the same bytes for the same entries. Any names are allowed.

    A name may be a ZipInfo. Sizes follow each body, as in a zip that the go command writes.
    """
    stream = _Stream()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for name, body in entries:
            if not isinstance(name, zipfile.ZipInfo):
                name = zipfile.ZipInfo(name)
                name.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(name, body)
    return b"".join(stream.parts)


class _Stream:
    """A file that cannot seek, so that zipfile writes the sizes after the bodies."""

    def __init__(self) -> None:
        self.parts = []

    def write(self, data) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass


def go_module(path, version, requires=(), body=None, **files) -> Module:
    """A module that compiles: its package has Version(), and imports the packages of ``requires``.

    ``body``: more Go declarations for the package's file. ``files``: more files; go.mod and the
    package's file (the package's name with .go) can be replaced by them.
    """
    requires = tuple(requires)
    package = _package(path)
    source = _FILE.format(
        package=package,
        path=path,
        version=version,
        imports=_imports(requires),
        uses=", ".join(f"d{number}.Version()" for number in range(len(requires))),
    )
    made = {"go.mod": _go_mod(path, requires), f"{package}.go": source + (body or "")}
    return Module(path, version, {**made, **files}, requires=requires)


def program(requires, path="example.com/program") -> dict:
    """{name: text} of a program that prints the Version() of each of ``requires`` to stderr."""
    requires = tuple(requires)
    prints = "".join(f"\tprintln(d{number}.Version())\n" for number in range(len(requires)))
    source = _MAIN.format(imports=_imports(requires), prints=prints)
    return {"go.mod": _go_mod(path, requires), "main.go": source}


def many_modules(n: int, seed=0) -> list:
    """``n`` modules that require earlier ones of the list; the same for the same arguments.

    A few are required by most, as in real graphs; one in six is another version of the module
    before it. Sizes are log-normal: the median is 20 kB before compression, the maximum 2 MB.
    """
    rng = random.Random(seed)
    modules, versions = [], {}  # {path: its modules}
    popular = []  # each path, once and once more for each module that requires it
    path = None
    while len(modules) < n:
        if path is None or rng.random() > 1 / 6:
            number = len(versions)
            major = rng.choice((1, 1, 1, 1, 0, 2))
            path = f"{rng.choice(_OWNERS)}/m{number:04}" + ("/v2" if major == 2 else "")
            allowed, versions[path] = list(popular), []
            popular.append(path)
            minor = 0
        minor += rng.randint(1, 5)
        # Only earlier paths, so that no choice of versions makes an import cycle.
        wanted = {rng.choice(allowed) for _ in range(rng.randint(0, 6))} if allowed else set()
        popular += sorted(wanted)
        requires = [rng.choice(versions[required]) for required in sorted(wanted)]
        bulk = rng.randbytes(min(int(rng.lognormvariate(9.2, 1.3)), 1 << 20)).hex()
        module = go_module(
            path,
            f"v{major}.{minor}.{rng.randint(0, 9)}",
            requires,
            **{"LICENSE": "Made for tests.\n", "testdata/bulk.txt": bulk},
        )
        versions[path].append(module)
        modules.append(module)
    return modules


def newest(modules) -> list:
    """The highest version of each path among ``modules``, sorted by path."""
    found = {}
    for module in modules:
        kept = found.setdefault(module.path, module)
        if order(module.version) > order(kept.version):
            found[module.path] = module
    return [found[path] for path in sorted(found)]


def _go_mod(path, requires) -> str:
    """A tidy go.mod, which also lists indirect requirements."""
    direct = {module.path for module in requires}
    seen, left = set(), list(requires)
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left += module.requires
    lines = [
        f"\t{m.path} {m.version}{'' if m.path in direct else ' // indirect'}\n"
        for m in newest(seen)
    ]
    return f"module {path}\n\ngo 1.21\n" + (f"\nrequire (\n{''.join(lines)})\n" if lines else "")


def _package(path) -> str:
    """The name of a module's root package."""
    last = re.sub(r"/v\d+$", "", path).rpartition("/")[2]
    return re.sub(r"^(?=\d)", "m", re.sub(r"\W", "", last).lower())


def _imports(requires) -> str:
    return "".join(f'\n\td{number} "{module.path}"' for number, module in enumerate(requires))


def _bytes(content) -> bytes:
    return content.encode() if isinstance(content, str) else content
