"""The scope of a session: whose working sets it restores, and for whom it leaves its own.

A working set depends on the main module, the platform and the branch, so a scope is one line of
text, ``<module> <goos>/<goarch> <branch>``. All of it is read from files and variables: no git or
go command is run. --scope replaces all three.
"""

import os

_READ_BYTES = 65536
_SCOPE_BYTES = 1024  # a longer one is cut

# The branch that is built, as CI systems tell it, the one of a pull request before the merged one.
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
# The branch that this one starts from, or the repository's default.
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


def find(options, environ, directory: str = None) -> list:
    """The scopes to look in, the session's own first, then those of the default branch.

    ``environ`` is that of the go command, ``directory`` where it runs, by default this process's.
    Nothing is raised: what cannot be read is left out.
    """
    if options.scope:
        return [_clean(options.scope)]
    if directory is None:
        try:
            directory = os.getcwd()
        except OSError:
            directory = "/"  # it is gone, and whatever was in it
    base = f"{_module(environ, directory)} {_platform(environ)}"
    git = _git_directory(directory)
    defaults = _default_branches(environ, git)
    branch = _branch(environ, git) or defaults[0]
    return [_clean(f"{base} {name}") for name in dict.fromkeys((branch, *defaults))]


def _clean(text: str) -> str:
    """One line of valid UTF-8, of bounded length."""
    text = " ".join(text.split())
    return text.encode(errors="replace")[:_SCOPE_BYTES].decode(errors="ignore")


def _platform(environ) -> str:
    machine = os.uname()
    goos = environ.get("GOOS") or machine.sysname.lower()
    return f"{goos}/{environ.get('GOARCH') or _ARCHITECTURES.get(machine.machine, machine.machine)}"


# -- the main module ---------------------------------------------------------------------------------


def _module(environ, directory) -> str:
    """The main module's path; that of the first module of a workspace; "-" outside of any."""
    work = environ.get("GOWORK", "")
    if work != "off":
        work = work or _upwards(directory, "go.work")
        if work:
            return _module_path(f"{os.path.dirname(work)}/go.mod") or _first_used(work) or "-"
    return _module_path(_upwards(directory, "go.mod")) or "-"


def _upwards(directory, name):
    """The path of ``name`` in ``directory`` or the nearest above; None where there is none."""
    while True:
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            return path
        above = os.path.dirname(directory)
        if above == directory:
            return None
        directory = above


def _module_path(go_mod) -> str:
    for words in _lines(go_mod):
        if words[0] == "module" and len(words) > 1:
            return words[1].strip('"`')
    return ""


def _first_used(go_work) -> str:
    """The path of the first module that a workspace uses."""
    in_block = False
    for words in _lines(go_work):
        if words[0] == "use":
            words = words[1:]
            in_block = words[:1] == ["("]
        elif not in_block or words[0] == ")":
            in_block = False
            continue
        if words and words[0] != "(":
            place = os.path.join(os.path.dirname(go_work), words[0].strip('"`'))
            return _module_path(os.path.join(place, "go.mod"))
    return ""


def _lines(path):
    """The words of each line of a go.mod or go.work that has any, without comments."""
    for line in _read(path).splitlines():
        words = line.partition("//")[0].split()
        if words:
            yield words


# -- the branch --------------------------------------------------------------------------------------


def _branch(environ, git) -> str:
    if environ.get("GITHUB_REF_TYPE") == "branch" and not environ.get("GITHUB_HEAD_REF"):
        return _branch_name(environ.get("GITHUB_REF_NAME", ""))
    for variable in _BRANCH_VARIABLES:
        if environ.get(variable):
            return _branch_name(environ[variable])
    name = _symbolic_ref(f"{git}/HEAD", "refs/heads/") if git else ""
    return "" if name == ".invalid" else name  # a repository whose refs are no files


def _default_branches(environ, git) -> tuple:
    for variable in _DEFAULT_VARIABLES:
        if environ.get(variable):
            return (_branch_name(environ[variable]),)
    if git:
        common = _read(f"{git}/commondir").strip()  # a worktree's
        git = os.path.join(git, common) if common else git
        branch = _symbolic_ref(f"{git}/refs/remotes/origin/HEAD", "refs/remotes/origin/")
        if branch:
            return (branch,)
    return _USUAL_DEFAULTS


def _branch_name(text) -> str:
    """Jenkins says origin/main, Azure refs/heads/main."""
    return text.removeprefix("refs/heads/").removeprefix("origin/")


def _git_directory(directory) -> str:
    path = _upwards(directory, ".git")
    if not path or os.path.isdir(path):
        return path or ""
    pointer = _read(path).strip()  # a worktree's or submodule's
    if not pointer.startswith("gitdir:"):
        return ""
    return os.path.join(os.path.dirname(path), pointer.removeprefix("gitdir:").strip())


def _symbolic_ref(path, prefix) -> str:
    text = _read(path).strip()
    name = text.removeprefix("ref:").strip()
    return name.removeprefix(prefix) if text.startswith("ref:") and name.startswith(prefix) else ""


def _read(path) -> str:
    """The beginning of a small file; "" where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(fd, _READ_BYTES).decode(errors="replace")
        finally:
            os.close(fd)
    except (OSError, TypeError, ValueError):  # None, and what has a NUL, among paths
        return ""
