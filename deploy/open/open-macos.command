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
made_from="$here $(cat "$here/constraints.txt" "$here/pyproject.toml" "$here/common/mos_common/release.py" | cksum)"
if [ "$(cat "$environment/made-from" 2>/dev/null || true)" != "$made_from" ]; then
    python=""
    for each in python3 python3.13 python3.12 python3.11; do # the first one that runs and is new enough
        if "$each" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$each
            break
        fi
    done
    [ -n "$python" ] || fail "Python is missing: install Python 3.11 or newer from python.org"
    say "Setting up, once for this release. This takes some minutes and 2 GB or more of disk."
    "$python" -m venv "$environment/venv" || fail "the environment could not be made: the lines above say why"
    "$environment/venv/bin/python" -m pip install --disable-pip-version-check \
        --constraint "$here/constraints.txt" "$here" ||
        fail "the installation did not succeed: the lines above say why"
    printf "%s\n" "$made_from" >"$environment/made-from"
fi
cd "$environment"
"$environment/venv/bin/mos-client" open "$@" || fail "the page ended: the lines above say why"
