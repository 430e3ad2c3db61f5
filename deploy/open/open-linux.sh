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
made_from="$here $(cat "$here/constraints.txt" "$here/pyproject.toml" "$here/common/mos_common/release.py" | cksum)"
if [ "$(cat "$environment/made-from" 2>/dev/null || true)" != "$made_from" ]; then
    python=""
    for each in python3 python3.13 python3.12 python3.11; do # the first one that runs and is new enough
        if "$each" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$each
            break
        fi
    done
    [ -n "$python" ] || fail "Python is missing: install python3 and python3-venv, version 3.11 or newer"
    say "Setting up, once for this release. This takes some minutes and 2 GB or more of disk."
    "$python" -m venv "$environment/venv" || fail "python3-venv is missing: install it with your package manager"
    torch=""
    command -v nvidia-smi >/dev/null 2>&1 || torch="--extra-index-url https://download.pytorch.org/whl/cpu"
    # shellcheck disable=SC2086 # two words, or none
    "$environment/venv/bin/python" -m pip install --disable-pip-version-check \
        --constraint "$here/constraints.txt" $torch "$here" ||
        fail "the installation did not succeed: the lines above say why"
    printf "%s\n" "$made_from" >"$environment/made-from"
fi
cd "$environment"
"$environment/venv/bin/mos-client" open "$@" || fail "the page ended: the lines above say why"
