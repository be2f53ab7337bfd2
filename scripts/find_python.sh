#!/bin/sh
# Prints the path of a Python >= 3.12, or one sentence on standard error and exit status 1.
# Looks on PATH, under pyenv, then asks uv. Python 3.12 and 3.13, which requirements.lock is
# tested with, are preferred wherever they are found; a later one is the second choice.

# probe INTERPRETER LOW HIGH: prints the interpreter behind any shim or virtual environment if it
# runs and its version 3.x has LOW <= x <= HIGH. Free-threaded builds and pre-releases have no wheels.
probe() {
    "$1" -c '
import sys
low, high = int(sys.argv[1]), int(sys.argv[2])
stable = sys.version_info[3] == "final" and "t" not in getattr(sys, "abiflags", "")
if not (sys.version_info[0] == 3 and low <= sys.version_info[1] <= high and stable):
    sys.exit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)
' "$2" "$3" 2>/dev/null
}

on_path() {
    for name in python3.12 python3.13 python3.14 python3 python; do
        if command -v "$name" >/dev/null 2>&1; then
            probe "$name" "$1" "$2" && return 0
        fi
    done
    return 1
}

under_pyenv() {
    versions="${PYENV_ROOT:-$HOME/.pyenv}/versions"
    [ -d "$versions" ] || return 1
    # Newest first; the names are sorted without their folder, which may hold dots itself.
    (cd "$versions" && printf '%s\n' 3.*) | sort -t. -k2,2nr -k3,3nr | {
        while read -r name; do
            probe "$versions/$name/bin/python" "$1" "$2" && exit 0
        done
        exit 1
    }
}

through_uv() {
    command -v uv >/dev/null 2>&1 || return 1
    found=$(uv python find '>=3.12' 2>/dev/null) && probe "$found" 12 99 && return 0
    echo "Installing Python 3.12 with uv ..." >&2
    uv python install 3.12 >&2 || return 1
    found=$(uv python find 3.12 2>/dev/null) && probe "$found" 12 99
}

HOME=${HOME:-/}
on_path 12 13 || under_pyenv 12 13 || on_path 14 99 || under_pyenv 14 99 || through_uv || {
    echo "No Python 3.12 or later found on PATH, under pyenv or through uv: install one" \
        "(for example 'pyenv install 3.12', or uv from https://docs.astral.sh/uv) and run make again." >&2
    exit 1
}
