# Sourced by the other scripts: the project's own virtual environment in .venv, made and filled when first needed.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bin=$root/.venv/bin

say() { echo "$*" >&2; }
fail() { say "$(basename "$0"): $1"; exit "${2:-5}"; }

# environment EXTRA...: .venv holds the project (editable) and these extras. Costs nothing where nothing has changed.
environment() {
    local extras stamp
    extras=$(printf '%s\n' "$@" | sort | paste -sd,)
    stamp=.venv/installed-$extras-$(sha256sum pyproject.toml | cut -c1-16)
    [ -e "$stamp" ] && return
    "$bin/python" -m pip --version > /dev/null 2>&1 || new_environment
    say "installing the project and what '$(basename "$0")' needs into .venv"
    "$bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" >&2 \
        || fail "the installation failed"
    rm -f ".venv/installed-$extras-"*
    : > "$stamp"
}

new_environment() {
    local python
    for python in python3.11 python3 none; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break
    done
    [ "$python" = none ] && fail "Python 3.11 or newer is needed"
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || fail "no virtual environment can be made; on Debian: apt-get install python3-venv"
}
