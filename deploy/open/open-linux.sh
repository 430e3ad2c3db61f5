#!/bin/sh
# Double-click this (or "Run as a program"): it makes the environment once and opens the page.
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
        fail "Python is missing: install python3 and python3-venv, version 3.11 or newer"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed, $python is older"
    say "Setting up, once. This takes some minutes and 2 GB or more of disk."
    "$python" -m venv "$environment/venv" || fail "python3-venv is missing: install it with your package manager"
    torch=""
    command -v nvidia-smi >/dev/null 2>&1 || torch="--extra-index-url https://download.pytorch.org/whl/cpu"
    # shellcheck disable=SC2086 # two words, or none
    "$environment/venv/bin/python" -m pip install --disable-pip-version-check \
        --constraint "$here/constraints.txt" $torch "$here" ||
        fail "the installation did not succeed: the lines above say why"
fi
cd "$environment"
"$environment/venv/bin/mos-client" open "$@" || fail "the page ended: the lines above say why"
