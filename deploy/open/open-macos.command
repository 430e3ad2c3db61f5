#!/bin/sh
# Double-click this: it makes the environment once and opens the page. Not tried on a Mac.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
environment="${MOS_HOME:-$HOME/mix-of-show}"
say() { printf '%s\n' "$*"; }
fail() {
    say "error: $*" >&2
    # The window of a double click closes when this ends: leave time to read.
    if [ -t 0 ]; then
        printf 'Press Enter to close. '
        read -r _ || true
    fi
    exit 1
}

mkdir -p "$environment"
if [ ! -x "$environment/venv/bin/mos-client" ]; then
    python=$(command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3) ||
        fail "Python is missing: install Python 3.11 or newer from python.org"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed, $python is older"
    say "Setting up, once. This takes some minutes and 2 GB or more of disk."
    "$python" -m venv "$environment/venv" || fail "the environment could not be made: the lines above say why"
    "$environment/venv/bin/python" -m pip install --disable-pip-version-check \
        --constraint "$here/constraints.txt" "$here" ||
        fail "the installation did not succeed: the lines above say why"
fi
cd "$environment"
"$environment/venv/bin/mos-client" open "$@" || fail "the page ended: the lines above say why"
