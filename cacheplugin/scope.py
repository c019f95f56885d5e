"""The scope of a session: the name under which its working set is saved and prefetched.

Which entries a build uses depends on the main module, the platform and the branch, so a scope is
the line ``<module> <goos>/<goarch> <branch>``. They come from files and variables only; neither git
nor go is run. --scope replaces the whole line.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .options import Options

_READ_BYTES = 65536
_MAX_SCOPE_BYTES = 1024

# Where CI systems name the branch that is built. In a pull request this is the source branch, so
# its variables come before those of the branch or commit that it is merged into.
_BRANCH_VARIABLES = (
    "GITHUB_HEAD_REF",
    "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME",
    "CI_COMMIT_BRANCH",
    "CHANGE_BRANCH",
    "BRANCH_NAME",
    "BUILDKITE_BRANCH",
    "CIRCLE_BRANCH",
    "BITBUCKET_BRANCH",
    "DRONE_SOURCE_BRANCH",
    "DRONE_BRANCH",
    "SEMAPHORE_GIT_PR_BRANCH",
    "SEMAPHORE_GIT_BRANCH",
    "TRAVIS_PULL_REQUEST_BRANCH",
    "TRAVIS_BRANCH",
    "APPVEYOR_PULL_REQUEST_HEAD_REPO_BRANCH",
    "APPVEYOR_REPO_BRANCH",
    "SYSTEM_PULLREQUEST_SOURCEBRANCH",
    "BUILD_SOURCEBRANCH",
    "CIRRUS_BRANCH",
    "GIT_BRANCH",
)
# Where CI systems name the target branch of a pull request, or the repository's default branch.
_DEFAULT_VARIABLES = (
    "GITHUB_BASE_REF",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME",
    "CI_DEFAULT_BRANCH",
    "CHANGE_TARGET",
    "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
    "BUILDKITE_PIPELINE_DEFAULT_BRANCH",
    "DRONE_TARGET_BRANCH",
    "DRONE_REPO_BRANCH",
    "SYSTEM_PULLREQUEST_TARGETBRANCH",
    "CIRRUS_BASE_BRANCH",
    "CIRRUS_DEFAULT_BRANCH",
)
_USUAL_DEFAULTS = ("main", "master")

_ARCHITECTURES = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "loongarch64": "loong64",
}


def find(
    options: "Options", environ: "Mapping[str, str]", directory: "str | None" = None
) -> "list[str]":
    """The scopes of a session: its own first, then those of the default branch.

    ``environ`` and ``directory`` are the environment and the working directory of the go command;
    the default for ``directory`` is that of this process. Files that cannot be read are ignored.
    """
    if options.scope:
        return [_clean(options.scope)]
    if directory is None:
        try:
            directory = os.getcwd()
        except OSError:
            directory = "/"  # the working directory was deleted
    base = f"{_module(environ, directory)} {_platform(environ)}"
    git = _git_directory(directory)
    defaults = _default_branches(environ, git)
    branch = _branch(environ, git) or defaults[0]
    return [_clean(f"{base} {name}") for name in dict.fromkeys((branch, *defaults))]


def _clean(text: str) -> str:
    """A text as one line of valid UTF-8, cut to the maximum length of a scope."""
    text = " ".join(text.split())
    return text.encode(errors="replace")[:_MAX_SCOPE_BYTES].decode(errors="ignore")


def _platform(environ: "Mapping[str, str]") -> str:
    machine = os.uname()
    goos = environ.get("GOOS") or machine.sysname.lower()
    return f"{goos}/{environ.get('GOARCH') or _ARCHITECTURES.get(machine.machine, machine.machine)}"


# -- the main module -------------------------------------------------------------------------------


def _module(environ: "Mapping[str, str]", directory: str) -> str:
    """The path of the main module; in a workspace that of its root module, or of the first used.

    "-" if there is no module.
    """
    work: str | None = environ.get("GOWORK", "")
    if work != "off":
        work = work or _find_upwards(directory, "go.work")
        if work:
            return _module_path(f"{os.path.dirname(work)}/go.mod") or _first_used(work) or "-"
    return _module_path(_find_upwards(directory, "go.mod")) or "-"


def _find_upwards(directory: str, name: str) -> "str | None":
    """The path of ``name`` in ``directory`` or in the nearest parent that has it; None if none."""
    while True:
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            return path
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def _module_path(go_mod: "str | None") -> str:
    """The module path that a go.mod declares; "" if it declares none."""
    for words in _lines(go_mod):
        if words[0] == "module" and len(words) > 1:
            return words[1].strip('"`')
    return ""


def _first_used(go_work: str) -> str:
    """The path of the first module that a go.work uses; "" if there is none."""
    in_block = False
    for words in _lines(go_work):
        if words[0] == "use":
            words = words[1:]
            in_block = words[:1] == ["("]
        elif not in_block or words[0] == ")":
            in_block = False
            continue
        if words and words[0] != "(":
            directory = os.path.join(os.path.dirname(go_work), words[0].strip('"`'))
            return _module_path(os.path.join(directory, "go.mod"))
    return ""


def _lines(path: "str | None") -> "Iterator[list[str]]":
    """The words of each line of a go.mod or go.work, without comments and empty lines."""
    for line in _read(path).splitlines():
        words = line.partition("//")[0].split()
        if words:
            yield words


# -- the branch ------------------------------------------------------------------------------------


def _branch(environ: "Mapping[str, str]", git: str) -> str:
    """The branch that is built; "" if it is not known. ``git``: the git directory, or ""."""
    if environ.get("GITHUB_REF_TYPE") == "branch" and not environ.get("GITHUB_HEAD_REF"):
        return _branch_name(environ.get("GITHUB_REF_NAME", ""))
    for variable in _BRANCH_VARIABLES:
        if environ.get(variable):
            return _branch_name(environ[variable])
    name = _symbolic_ref(f"{git}/HEAD", "refs/heads/") if git else ""
    # git writes .invalid where refs are not stored as files (reftable).
    return "" if name == ".invalid" else name


def _default_branches(environ: "Mapping[str, str]", git: str) -> "tuple[str, ...]":
    """The target or default branch; both usual names if it is not known."""
    for variable in _DEFAULT_VARIABLES:
        if environ.get(variable):
            return (_branch_name(environ[variable]),)
    if git:
        common = _read(f"{git}/commondir").strip()  # only a worktree has this file
        git = os.path.join(git, common) if common else git
        branch = _symbolic_ref(f"{git}/refs/remotes/origin/HEAD", "refs/remotes/origin/")
        if branch:
            return (branch,)
    return _USUAL_DEFAULTS


def _branch_name(text: str) -> str:
    """A branch without the prefix that Jenkins (origin/) or Azure (refs/heads/) puts before it."""
    return text.removeprefix("refs/heads/").removeprefix("origin/")


def _git_directory(directory: str) -> str:
    """The git directory of the repository, worktree or submodule at ``directory``; "" if none."""
    path = _find_upwards(directory, ".git")
    if not path or os.path.isdir(path):
        return path or ""
    pointer = _read(path).strip()  # worktrees and submodules have a file that names the directory
    if not pointer.startswith("gitdir:"):
        return ""
    return os.path.join(os.path.dirname(path), pointer.removeprefix("gitdir:").strip())


def _symbolic_ref(path: str, prefix: str) -> str:
    """The name, without ``prefix``, of the ref that a file such as HEAD points to; "" if none."""
    text = _read(path).strip()
    name = text.removeprefix("ref:").strip()
    return name.removeprefix(prefix) if text.startswith("ref:") and name.startswith(prefix) else ""


def _read(path: "str | None") -> str:
    """The first 64 KiB of a file; "" if it cannot be read or ``path`` is None.

    O_NONBLOCK, because a FIFO would block.
    """
    if path is None:
        return ""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(fd, _READ_BYTES).decode(errors="replace")
        finally:
            os.close(fd)
    except (OSError, ValueError):  # ValueError: the path has a NUL
        return ""
