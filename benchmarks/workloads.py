"""The code that is built: the standard library, a generated monorepo, or any directory."""

import os
import random
import shutil
import subprocess

PACKAGES, SEED = 500, 1
_STD = ("errors", "fmt", "io", "os", "sort", "strconv", "strings", "sync", "time")
_RARE_STD = (
    "encoding/json",
    "net/http",
    "regexp",
    "text/template",
    "crypto/sha256",
    "database/sql",
)
_WRITTEN_S = 1_700_000_000
_LAYERS = 12  # the depth of imports


class Workload:
    """Code to build: ``pattern`` is built in ``directory``; ``change`` edits one package."""

    def __init__(self, name: str, directory: str, pattern: str, edited: str) -> None:
        self.name, self.directory, self.pattern = name, directory, pattern
        self._edited = edited  # the path of the file that change() edits
        with open(edited) as file:
            self._source = file.read()

    def change(self, text: str) -> None:
        """Edit one package, so that it and the packages that import it are built again."""
        name = "".join(filter(str.isalnum, text))
        write(self._edited, f"{self._source}\n// {text}\nconst BenchChange{name} = {len(text)}\n")

    def reset(self) -> None:
        """Undo all changes."""
        write(self._edited, self._source)


def make(text: str, work: str, seed: int = SEED) -> Workload:
    """A Workload in a new directory below ``work``.

    ``text`` is ``std``, ``std:PATTERN``, ``monorepo``, ``monorepo:N`` or a directory. Raises
    ValueError.
    """
    kind, _, detail = text.partition(":")
    if kind == "std":
        return _std(os.path.join(work, "workload"), detail or "std")
    if kind == "monorepo":
        if detail and not (detail.isdigit() and 0 < int(detail) <= 100_000):
            raise ValueError(f"{text!r}: {detail!r} is not a number of packages up to 100000")
        return _monorepo(os.path.join(work, "workload"), int(detail or PACKAGES), seed)
    if not os.path.exists(os.path.join(text, "go.mod")):
        raise ValueError(f"{text!r} is not std, monorepo or a directory with a go.mod")
    return _copy(text, os.path.join(work, "workload"))


def write(path: str, text: str) -> None:
    """Write a source file with a fixed, old mtime: the go command indexes only old files."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.utime(path, (_WRITTEN_S, _WRITTEN_S))


def _std(directory: str, pattern: str) -> Workload:
    """A module that imports all importable packages of a pattern, and one package of its own."""
    listed = subprocess.run(
        ["go", "list", pattern],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    hidden = {"internal", "vendor", "main", "cmd"}
    imports = "".join(f'\t_ "{path}"\n' for path in listed if hidden.isdisjoint(path.split("/")))
    leaf = os.path.join(directory, "leaf", "leaf.go")
    write(os.path.join(directory, "go.mod"), "module bench.example/module\n\ngo 1.24\n")
    write(leaf, 'package leaf\n\nfunc Text() string { return "leaf" }\n')
    write(
        os.path.join(directory, "module.go"),
        f'package module\n\nimport (\n\t"bench.example/module/leaf"\n\n{imports})\n\n'
        "var Text = leaf.Text()\n",
    )
    return Workload(pattern if pattern == "std" else f"std:{pattern}", directory, "./...", leaf)


def _monorepo(directory: str, packages: int, seed: int) -> Workload:
    """A module of packages in layers; each imports some packages of lower layers and of std."""
    source = random.Random(seed)
    module = "bench.example/mono"
    write(os.path.join(directory, "go.mod"), f"module {module}\n\ngo 1.24\n")
    layers = min(_LAYERS, max(1, packages // 2))
    names = [f"layer{at * layers // packages:02}/pkg{at:04}" for at in range(packages)]
    first_file = {}
    for at, name in enumerate(names):
        layer = at * layers // packages
        below = names[: layer * packages // layers]
        imports = source.sample(below, min(len(below), 1 + int(source.expovariate(0.4))))
        for part in range(1 + int(source.expovariate(0.8))):
            path = os.path.join(directory, name, f"part{part}.go")
            write(path, _part(source, module, name, part, imports if part == 0 else ()))
            first_file.setdefault(name, path)
    edited = names[packages * 2 // 3]  # some packages import it, most do not
    return Workload(f"monorepo:{packages}", directory, "./...", first_file[edited])


def _part(source, module: str, name: str, part: int, imports) -> str:
    """The source of one file: functions with loops, branches, maps and strings."""
    std = source.sample(_STD, 2) + (source.sample(_RARE_STD, 1) if source.random() < 0.2 else [])
    lines = [f"package {os.path.basename(name)}", "", "import ("]
    lines += [f'\t_ "{path}"' for path in sorted(set(std) - {"strings", "fmt"})]
    lines += ['\t"fmt"', '\t"strings"', ""]
    lines += [f'\t"{module}/{path}"' for path in imports]
    lines += [")", ""]
    calls = "".join(f" + {os.path.basename(path)}.Count(n)" for path in imports)
    if part == 0:
        lines += [
            "// Count is what others call.",
            "func Count(n int) int {",
            f"\treturn n{calls}",
            "}",
            "",
        ]
    for number in range(2 + int(source.expovariate(0.08))):
        kind = f"type{part}x{number}"
        lines += [
            f"type {kind} struct {{",
            "\tname   string",
            "\tvalues map[string]int",
            "\titems  []int",
            "}",
            "",
            f"func (t *{kind}) add(text string) (int, error) {{",
            "\tfor at, word := range strings.Fields(text) {",
            f"\t\tif len(word) > {source.randrange(2, 40)} {{",
            '\t\t\treturn at, fmt.Errorf("%s: word %d is too long: %q", t.name, at, word)',
            "\t\t}",
            "\t\tt.values[strings.ToLower(word)]++",
            f"\t\tt.items = append(t.items, len(word)*{source.randrange(1, 99)})",
            "\t}",
            "\treturn len(t.items), nil",
            "}",
            "",
        ]
    return "\n".join(lines)


def _copy(original: str, directory: str) -> Workload:
    """A copy of a directory, because ``change`` edits a file."""
    shutil.copytree(original, directory, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    sources = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(directory)
        for name in names
        if name.endswith(".go") and not name.endswith("_test.go") and "/vendor/" not in parent
    )
    if not sources:
        raise ValueError(f"{original!r} has no Go sources")
    return Workload(os.path.basename(os.path.abspath(original)), directory, "./...", sources[-1])
