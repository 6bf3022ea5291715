#!/usr/bin/env bash
# Creates the environment of this checkout, or reuses the one that is there.
#
#   scripts/make_env.sh [FOLDER]      FOLDER: default .venv in the checkout
#   PYTHON=python3.12 scripts/make_env.sh      chooses the interpreter
#   CHECK_ONLY=1 scripts/make_env.sh           says whether the environment is whole (exit 0) and changes nothing
#
# A folder is ours when it holds `.frskd_env` (written first) and whole when that file's twin `.frskd_complete` (written
# last) names the hash of the files that define it, every installed file is there and the packages import. One of ours
# that is not whole is removed and built again. Somebody else's environment is used as it is if it has what is needed,
# and is never written to or removed.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-${VENV:-.venv}}"
case "$venv" in /*) ;; *) venv="$root/$venv" ;; esac
needed_gb="${NEEDED_GB:-8}"
owner_file="$venv/.frskd_env"
complete_file="$venv/.frskd_complete"

say() { printf '[env] %s\n' "$*" >&2; }
die() {
    printf '[env] ERROR: %s\n' "$*" >&2
    exit 1
}

# ---------------------------------------------------------------------------------------------------- what is there
environment_key() {
    (cd "$root" && cat setup.cfg setup.py pyproject.toml constraints.txt scripts/make_env.sh) | cksum | tr ' ' '-'
}

is_whole() {
    [ -x "$venv/bin/python" ] || return 1
    if [ -e "$owner_file" ]; then
        if [ ! -e "$complete_file" ]; then
            say "$venv is half-made"
            return 1
        fi
        if [ "$(cat "$complete_file")" != "$key" ]; then
            say "the files that define $venv have changed since it was made"
            return 1
        fi
    fi
    "$venv/bin/python" -I "$root/scripts/check_env.py" "$root/constraints.txt" >&2
}

# May the folder be removed? Only what this script made, or a bare environment that nobody installed anything into.
is_removable() {
    [ -e "$owner_file" ] && return 0
    local entry
    for entry in "$venv"/* "$venv"/.[!.]*; do
        [ -e "$entry" ] || [ -L "$entry" ] || continue
        case "${entry##*/}" in
            bin | include | lib | lib64 | share | pyvenv.cfg | .gitignore | .frskd_complete) ;;
            *) return 1 ;;
        esac
    done
    for entry in "$venv"/lib/python*/site-packages/*; do
        [ -e "$entry" ] || continue
        case "${entry##*/}" in
            pip | pip-* | setuptools | setuptools-* | wheel | wheel-* | pkg_resources | _distutils_hack | \
                distutils-precedence.pth | __pycache__) ;;
            *) return 1 ;;
        esac
    done
}

# ---------------------------------------------------------------------------------------------------- what is needed
find_python() {
    local candidate
    local code='import sys; sys.exit(sys.version_info < (3, 10))'
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not a command. Name an interpreter of Python 3.10 or later."
        "$PYTHON" -c "$code" 2>/dev/null || die "PYTHON=$PYTHON does not run or is older than Python 3.10. Name another one."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.10 python3.13 python; do # 3.11 is the tested one
        if command -v "$candidate" >/dev/null && "$candidate" -c "$code" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.10 or later was found. Install one (Debian: apt install python3 python3-venv) or name it: PYTHON=/path/to/python3"
}

check_disk() {
    local place="$venv" free_kb
    while [ ! -d "$place" ]; do place="$(dirname "$place")"; done
    [ -w "$place" ] || die "$place cannot be written to. Choose another place: VENV=/path"
    free_kb="$(df -Pk "$place" | awk 'NR == 2 { print $4 }')"
    if [ "$free_kb" -lt $((needed_gb * 1024 * 1024)) ]; then
        die "the environment takes about $needed_gb GB (torch with CUDA), and $place has $((free_kb / 1024 / 1024)) GB free." \
            "Free some, or choose another disk: VENV=/path"
    fi
}

# ---------------------------------------------------------------------------------------------------------- building
step() {
    say "$1 ($((SECONDS / 60)) min $((SECONDS % 60)) s so far)"
}

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check -c "$root/constraints.txt" "$@" >&2 ||
        die "pip could not install: $*. The reason stands above; often it is the network or a full disk. Run the same command again."
}

build() {
    local python
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no venv module. Debian and Ubuntu: apt install python3-venv"
    check_disk
    if [ -e "$venv" ]; then
        is_removable || die "$venv has files that this script did not make, and not the packages that are needed (see above)." \
            "It is left as it is. Remove it yourself, install what is missing, or choose another place: VENV=/path"
        say "removing $venv to build it again"
        rm -rf "$venv"
    fi
    SECONDS=0
    step "1/5 a new environment in $venv, with $("$python" --version 2>&1)"
    mkdir -p "$venv"
    echo "made by scripts/make_env.sh of frskd_plugin, which may remove this folder" >"$owner_file"
    "$python" -m venv "$venv" >&2 || die "$python -m venv failed. Debian and Ubuntu: apt install python3-venv"
    # An isolated build has no torch, and so makes the mmcv without compiled operators that is tested; pip's cache may
    # hold a build with operators for another torch under the same name and version.
    unset PIP_NO_BUILD_ISOLATION PIP_TARGET PIP_PREFIX PIP_USER PYTHONPATH PYTHONHOME
    step "2/5 torch, torchvision and timm (several GB: the longest step)"
    install torch torchvision timm
    step "3/5 the OpenMMLab forks"
    install --no-cache-dir --no-binary onedl-mmcv onedl-mmengine onedl-mmcv onedl-mmsegmentation
    step "4/5 tensorboard, ONNX, Sphinx and the tools for tests and checks"
    install tensorboard pytest pytest-timeout pytest-xdist ruff mypy codespell import-linter nox pre-commit pre-commit-hooks setuptools
    install onnx onnxscript onnxruntime sphinx myst-parser furo sphinx-copybutton sphinx-gallery latex2mathml
    step "5/5 frskd_plugin itself (editable), and a look at the whole"
    link_checkout
    "$venv/bin/python" -I "$root/scripts/check_env.py" "$root/constraints.txt" >&2 ||
        die "the new environment is not whole (see above). Run the same command again; if that does not help, please report it."
    echo "$key" >"$complete_file.tmp"
    mv "$complete_file.tmp" "$complete_file"
    step "done"
}

# The environment may serve several checkouts (CI clones anew each time): the editable install follows the latest one.
# Tests and tools do not depend on it: the Makefile puts its own checkout first with PYTHONPATH.
link_checkout() {
    [ "$(cat "$venv/.frskd_checkout" 2>/dev/null)" = "$root" ] && return
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e "$root" >&2 ||
        die "pip could not install the checkout $root"
    echo "$root" >"$venv/.frskd_checkout"
}

# -------------------------------------------------------------------------------------------------------------- main
key="$(environment_key)"
if [ -n "${CHECK_ONLY:-}" ]; then
    is_whole || exit 1
    exit 0
fi
mkdir -p "$(dirname "$venv")" || die "$(dirname "$venv") cannot be made. Choose another place: VENV=/path"
if command -v flock >/dev/null; then # two builds at once would remove each other's files
    exec 9>"$venv.lock" || die "$venv.lock cannot be written. Choose another place: VENV=/path"
    if ! flock -n 9; then
        say "another process is building $venv: waiting for it"
        flock 9
    fi
fi
if is_whole; then
    [ -e "$owner_file" ] && link_checkout
    say "using $venv"
else
    build
fi
