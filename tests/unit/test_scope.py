"""scope.py: the scopes of a session, from files and variables."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin import scope
from cacheplugin.options import Options

PLATFORM = {"GOOS": "linux", "GOARCH": "arm64"}


@pytest.fixture
def tree(tmp_path):
    """A function that writes files, {path: text}, below a directory and returns the directory."""

    def write(files) -> str:
        for path, text in files.items():
            path = tmp_path / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path)

    return write


def find(directory, **environ) -> list:
    return scope.find(Options(), PLATFORM | environ, str(directory))


def parts(directory, **environ):
    """(module, [branches]) of the scopes, which differ in their branches only."""
    found = [text.split(" ") for text in find(directory, **environ)]
    ((name, platform),) = {(words[0], words[1]) for words in found}
    assert platform == "linux/arm64" and {len(words) for words in found} == {3}
    return name, [words[2] for words in found]


def module(directory, **environ) -> str:
    return parts(directory, **environ)[0]


def branches(directory, **environ) -> list:
    return parts(directory, **environ)[1]


# -- all parts -------------------------------------------------------------------------------------


def test_scopes(tree):
    """The session's own scope comes first, then that of the default branch."""
    root = tree(
        {
            "go.mod": "module example.com/a\n",
            ".git/HEAD": "ref: refs/heads/feature/x\n",
            ".git/refs/remotes/origin/HEAD": "ref: refs/remotes/origin/trunk\n",
        }
    )
    assert find(root) == [
        "example.com/a linux/arm64 feature/x",
        "example.com/a linux/arm64 trunk",
    ]


def test_empty_directory(tree):
    """Without module, repository and variables the scope has "-" and the usual branches."""
    assert find(tree({})) == ["- linux/arm64 main", "- linux/arm64 master"]


def test_default_directory(tree, monkeypatch):
    """The default is the working directory; it is no error if that was deleted."""
    directory = os.path.join(tree({"gone/go.mod": "module example.com/gone\n"}), "gone")
    monkeypatch.chdir(directory)
    assert scope.find(Options(), PLATFORM)[0].startswith("example.com/gone linux/arm64 ")
    os.unlink("go.mod")
    os.rmdir(directory)
    assert len(scope.find(Options(), PLATFORM)[0].split()) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nightly", "nightly"),
        ("a  b\n\tc ", "a b c"),
        ("x" * 5000, "x" * 1024),
        ("ä" * 1000, "ä" * 512),
        ("a\udcff", "a?"),
    ],
)
def test_scope_option(tree, given, expected):
    """--scope replaces the whole scope; it is made one line and cut to 1024 bytes."""
    root = tree({"go.mod": "module example.com/a\n", ".git/HEAD": "ref: refs/heads/main\n"})
    environ = {"GITHUB_BASE_REF": "trunk"}
    assert scope.find(Options(scope=given), environ, root) == [expected]


@pytest.mark.parametrize(
    ("machine", "system", "expected"),
    [
        ("x86_64", "Linux", "linux/amd64"),
        ("aarch64", "Linux", "linux/arm64"),
        ("arm64", "Darwin", "darwin/arm64"),
        ("i686", "Linux", "linux/386"),
        ("armv7l", "Linux", "linux/arm"),
        ("riscv64", "Linux", "linux/riscv64"),
    ],
)
def test_platform_of_the_machine(tree, monkeypatch, machine, system, expected):
    """GOOS and GOARCH each replace one half of the machine's platform, which has Go's names."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((system, "host", "1", "1", machine)))
    root = tree({})

    def platform(**environ) -> str:
        return scope.find(Options(), environ, root)[0].split()[1]

    goos, goarch = expected.split("/")
    assert platform() == platform(GOOS="", GOARCH="") == expected
    assert platform(GOOS="plan9") == f"plan9/{goarch}"
    assert platform(GOARCH="wasm") == f"{goos}/wasm"


# -- the main module -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "module example.com/a",
        "module example.com/a\r\n\r\ngo 1.24\r\n",
        'module "example.com/a"\n',
        "module `example.com/a`\n",
        "// module example.com/b\n\nmodule example.com/a // a comment\n",
        "go 1.24\n  module\texample.com/a\n",
        "\nmodule\nmodule example.com/a\n",
        b"\xff\xfe\nmodule example.com/a\n",
        "module example.com/a\n" + "// x\n" * 100_000,
    ],
)
def test_go_mod(tree, text):
    """The module path is found in every syntax of go.mod."""
    assert module(tree({"go.mod": text})) == "example.com/a"


def test_nearest_go_mod(tree):
    """The main module is that of the nearest go.mod in the directory or its parents."""
    root = tree(
        {
            "go.mod": "module example.com/a\n",
            "nested/go.mod": "module example.com/b\n",
            "nested/x/y/z.go": "",
            "x/y/z.go": "",
        }
    )
    assert module(f"{root}/x/y") == "example.com/a"
    assert module(f"{root}/nested/x/y") == "example.com/b"


@pytest.mark.parametrize(
    "text", ["", "module", "go 1.24\n", "//module a\n", b"\0" * 500, b"\xff" * 9]
)
def test_go_mod_without_a_module(tree, text):
    """A go.mod that declares no module counts as missing."""
    assert module(tree({"go.mod": text})) == "-"


def test_go_mod_that_is_not_a_regular_file(tree):
    """A directory, a FIFO and a broken link count as a go.mod without module."""
    root = tree({"dir/go.mod/x": "", "fifo/x": "", "link/x": ""})
    os.mkfifo(f"{root}/fifo/go.mod")
    os.symlink("go.mod", f"{root}/link/go.mod")
    for name in "dir", "fifo", "link":
        assert module(f"{root}/{name}") == "-"


WORKS = {
    "single": "go 1.24\nuse ./b\nuse ./c\n",
    "block": "go 1.24\n\nuse (\n\t./b // first\n\t./c\n)\n",
    "quoted": 'use "./b"\n',
    "block of quoted": "use (\n  // ./c\n  `b`\n)\n",
    "empty block first": "use (\n)\nreplace (\n  ./c => ./d\n)\nuse ./b\n",
    "other block first": "replace (\n  example.com/x => ./c\n)\nuse (\n./b\n)\n",
}


@pytest.mark.parametrize("text", WORKS.values(), ids=WORKS)
def test_go_work(tree, text):
    """In a workspace it is the first module that go.work uses, from every directory."""
    root = tree(
        {
            "go.work": text,
            "b/go.mod": "module example.com/b\n",
            "c/go.mod": "module example.com/c\n",
        }
    )
    assert module(root) == module(f"{root}/b") == module(f"{root}/c") == "example.com/b"
    assert module(f"{root}/c", GOWORK="off") == "example.com/c"
    assert module(root, GOWORK="off") == "-"


def test_go_work_beside_go_mod(tree):
    """A module in the directory of go.work comes before those that it uses."""
    root = tree(
        {
            "go.work": "use ./b\nuse .\n",
            "go.mod": "module example.com/a\n",
            "b/go.mod": "module example.com/b\n",
        }
    )
    assert module(f"{root}/b") == "example.com/a"


def test_gowork_variable(tree):
    """GOWORK can name a go.work in any directory."""
    root = tree(
        {
            "elsewhere/go.work": "use ../b\n",
            "b/go.mod": "module example.com/b\n",
            "c/go.mod": "module example.com/c\n",
        }
    )
    assert module(f"{root}/c", GOWORK=f"{root}/elsewhere/go.work") == "example.com/b"
    assert module(f"{root}/c", GOWORK="") == "example.com/c"


@pytest.mark.parametrize(
    "text", ["", "use", "use (", "use (\n", "use ./none", "use \0\n", b"\xff" * 99]
)
def test_go_work_that_uses_nothing(tree, text):
    """A go.work without a module that exists gives "-"."""
    assert module(tree({"go.work": text})) == "-"


# -- the branch ------------------------------------------------------------------------------------

# What CI systems set: for a push to the branch "work", and for a pull request of it to "trunk".
SYSTEMS = {
    "GitHub": (
        {"GITHUB_REF_TYPE": "branch", "GITHUB_REF_NAME": "work", "GITHUB_HEAD_REF": ""},
        {
            "GITHUB_REF_TYPE": "branch",
            "GITHUB_REF_NAME": "7/merge",
            "GITHUB_HEAD_REF": "work",
            "GITHUB_BASE_REF": "trunk",
        },
    ),
    "GitLab": (
        {"CI_COMMIT_BRANCH": "work", "CI_DEFAULT_BRANCH": "trunk"},
        {
            "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "work",
            "CI_DEFAULT_BRANCH": "main",
            "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "trunk",
        },
    ),
    "Jenkins": (
        {"GIT_BRANCH": "origin/work"},
        {"BRANCH_NAME": "PR-7", "CHANGE_BRANCH": "work", "CHANGE_TARGET": "trunk"},
    ),
    "Jenkins multibranch": ({"BRANCH_NAME": "work", "GIT_BRANCH": "work"}, {}),
    "Buildkite": (
        {
            "BUILDKITE_BRANCH": "work",
            "BUILDKITE_PIPELINE_DEFAULT_BRANCH": "trunk",
            "BUILDKITE_PULL_REQUEST_BASE_BRANCH": "",
        },
        {
            "BUILDKITE_BRANCH": "work",
            "BUILDKITE_PIPELINE_DEFAULT_BRANCH": "main",
            "BUILDKITE_PULL_REQUEST_BASE_BRANCH": "trunk",
        },
    ),
    "CircleCI": ({"CIRCLE_BRANCH": "work"}, {}),
    "Bitbucket": ({"BITBUCKET_BRANCH": "work"}, {}),
    "Drone": (
        {"DRONE_BRANCH": "work", "DRONE_REPO_BRANCH": "trunk"},
        {
            "DRONE_BRANCH": "trunk",
            "DRONE_SOURCE_BRANCH": "work",
            "DRONE_TARGET_BRANCH": "trunk",
            "DRONE_REPO_BRANCH": "main",
        },
    ),
    "Semaphore": (
        {"SEMAPHORE_GIT_BRANCH": "work"},
        {"SEMAPHORE_GIT_BRANCH": "trunk", "SEMAPHORE_GIT_PR_BRANCH": "work"},
    ),
    "Travis": (
        {"TRAVIS_BRANCH": "work", "TRAVIS_PULL_REQUEST_BRANCH": ""},
        {"TRAVIS_BRANCH": "trunk", "TRAVIS_PULL_REQUEST_BRANCH": "work"},
    ),
    "AppVeyor": (
        {"APPVEYOR_REPO_BRANCH": "work"},
        {"APPVEYOR_REPO_BRANCH": "trunk", "APPVEYOR_PULL_REQUEST_HEAD_REPO_BRANCH": "work"},
    ),
    "Azure": (
        {"BUILD_SOURCEBRANCH": "refs/heads/work"},
        {
            "BUILD_SOURCEBRANCH": "refs/pull/7/merge",
            "SYSTEM_PULLREQUEST_SOURCEBRANCH": "refs/heads/work",
            "SYSTEM_PULLREQUEST_TARGETBRANCH": "refs/heads/trunk",
        },
    ),
    "Cirrus": (
        {"CIRRUS_BRANCH": "work", "CIRRUS_DEFAULT_BRANCH": "trunk"},
        {"CIRRUS_BRANCH": "work", "CIRRUS_BASE_BRANCH": "trunk", "CIRRUS_DEFAULT_BRANCH": "main"},
    ),
}


def test_reftable_repository(tree):
    """The HEAD file of a repository with reftable names no branch."""
    root = tree({".git/HEAD": "ref: refs/heads/.invalid\n"})
    assert branches(root) == ["main", "master"]


@pytest.mark.parametrize("of_push", [pushed for pushed, _ in SYSTEMS.values()], ids=SYSTEMS)
def test_branch_in_ci(tree, of_push):
    """The branch in the variables of a CI system beats the branch that is checked out."""
    root = tree({".git/HEAD": "ref: refs/heads/other\n"})
    found = branches(root, **of_push)
    assert found[0] == "work"
    assert found[1:] in (["trunk"], ["main", "master"])


REQUESTS = {name: request for name, (_, request) in SYSTEMS.items() if request}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_pull_request_in_ci(tree, request_):
    """In a pull request the branch is the source branch, and the default its target branch."""
    found = branches(tree({".git/HEAD": "0" * 40}), **request_)
    assert found[0] == "work"
    told = set(request_) & set(scope._DEFAULT_VARIABLES)
    assert found[1:] == (["trunk"] if told else ["main", "master"])


def test_every_variable_is_tested():
    """SYSTEMS has an example of every variable that scope.py reads."""
    known = {name for pair in SYSTEMS.values() for environ in pair for name in environ}
    assert {*scope._BRANCH_VARIABLES, *scope._DEFAULT_VARIABLES} <= known


def test_tag_in_ci(tree):
    """The build of a tag has the scope of the default branch."""
    tag = {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v1.0.0", "CI_DEFAULT_BRANCH": "trunk"}
    assert branches(tree({".git/HEAD": "0" * 40}), **tag) == ["trunk"]


def test_default_branch_itself(tree):
    """On the default branch it is not listed twice."""
    root = tree({".git/HEAD": "ref: refs/heads/trunk\n"})
    assert branches(root, CI_DEFAULT_BRANCH="trunk") == ["trunk"]
    assert branches(root, GITHUB_REF_TYPE="branch", GITHUB_REF_NAME="main") == ["main", "master"]


def test_branch_of_a_repository(tree):
    """Outside of CI the branch is the one checked out, in all directories of the repository."""
    root = tree({".git/HEAD": "ref: refs/heads/feature/x\n", "a/b/c.go": ""})
    assert branches(f"{root}/a/b") == ["feature/x", "main", "master"]


@pytest.mark.parametrize(
    "head", ["1" * 40, "", "ref: refs/tags/v1", "ref:", b"\0" * 99, b"\xff\xfe", "ref: refs/heads/"]
)
def test_no_branch(tree, head):
    """Without a branch in HEAD, the scope is that of the default branch."""
    assert branches(tree({".git/HEAD": head})) == ["main", "master"]


def test_worktree(tree):
    """A worktree has its own branch, and the default branch of its repository."""
    root = tree(
        {
            "repo/.git/HEAD": "ref: refs/heads/main\n",
            "repo/.git/refs/remotes/origin/HEAD": "ref: refs/remotes/origin/trunk\n",
            "repo/.git/worktrees/w/HEAD": "ref: refs/heads/work\n",
            "repo/.git/worktrees/w/commondir": "../..\n",
            "relative/.git": "gitdir: ../repo/.git/worktrees/w\n",
            "relative/a/b.go": "",
        }
    )
    tree({"absolute/.git": f"gitdir: {root}/repo/.git/worktrees/w\n"})
    assert branches(f"{root}/relative/a") == branches(f"{root}/absolute") == ["work", "trunk"]
    assert branches(f"{root}/repo") == ["main", "trunk"]


@pytest.mark.parametrize(
    "pointer",
    [
        "",
        "gitdir:",
        "gitdir: /nonexistent",
        "x",
        "gitdir: \0",
        b"\xff" * 99,
        "gitdir: .git",
    ],
)
def test_git_file_with_a_wrong_path(tree, pointer):
    """A .git file that names no git directory counts as missing."""
    assert branches(tree({".git": pointer})) == ["main", "master"]


@pytest.mark.parametrize("common", ["", "nowhere", "\0", b"\xff", "/", "x" * 70_000])
def test_wrong_common_directory(tree, common):
    """The branch of a worktree is found also if its repository is not."""
    root = tree({".git/HEAD": "ref: refs/heads/work\n", ".git/commondir": common})
    assert branches(root) == ["work", "main", "master"]


# -- any input ------------------------------------------------------------------------------------

NOISE = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            [
                b"module ",
                b"use ",
                b"(",
                b")",
                b"\n",
                b"\r",
                b'"',
                b"`",
                b"//",
                b"ref: ",
                b"refs/heads/",
                b"gitdir: ",
                b"..",
                b"/",
                b"\0",
                b"\xff",
                "\u2028ä ".encode(),
                b"x" * 2000,
            ]
        ),
        max_size=9,
    ).map(b"".join),
)
TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=20)


VARIABLES = ["GOOS", "GOWORK", "GITHUB_REF_TYPE", "GITHUB_REF_NAME", "CI_COMMIT_BRANCH"]


@given(
    st.lists(NOISE, min_size=5, max_size=5),
    st.dictionaries(st.sampled_from(VARIABLES), TEXTS),
    TEXTS,
)
def test_any_input(tmp_path_factory, noise, environ, given):
    """With any files and variables, each scope is one line of UTF-8 of at most 1024 bytes."""
    root = tmp_path_factory.mktemp("tree")
    (root / ".git").mkdir()
    for name, data in zip(("go.mod", "go.work", ".git/HEAD", ".git/commondir"), noise):
        (root / name).write_bytes(data)
    (root / "worktree").mkdir()
    (root / "worktree/.git").write_bytes(b"gitdir: " + noise[4])
    found = scope.find(Options(scope=given), environ, str(root))
    found += scope.find(Options(), environ, str(root / "worktree"))
    for text in found:
        assert len(text.encode()) <= 1024
        assert text.splitlines() in ([text], [])
