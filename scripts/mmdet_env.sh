#!/usr/bin/env bash
# scripts/mmdet_env.sh PYTHON: prints a folder with mmdetection, and with an mmcv that has compiled operators for the
# torch of PYTHON, the interpreter of the main environment. First on PYTHONPATH, it makes that environment one with mmdet:
#
#   PYTHONPATH="$(scripts/mmdet_env.sh .venv/bin/python)" .venv/bin/python tools/train.py configs/frskd_coco_...py
#
# The main environment is read and never written to. scripts/mmcv_operators.sh compiles the operators, which takes minutes.
# The folder is kept beside its wheel in ~/.cache/frskd_plugin (XDG_CACHE_HOME moves it), named after the versions of torch,
# Python and mmcv and the files that define it. It is tried before it is used, and made again where it does not work.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -eq 1 ] || {
    echo "usage: scripts/mmdet_env.sh PYTHON" >&2
    exit 2
}
python="$1"
cache="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/frskd_plugin"
requirements="$root/scripts/mmdet_requirements.txt"

say() { printf '[mmdet] %s\n' "$*" >&2; }
die() {
    printf '[mmdet] ERROR: %s\n' "$*" >&2
    exit 1
}
works() { "$python" -I "$root/scripts/check_mmdet.py" "$@" >&2; }
pip() { "$python" -m pip --disable-pip-version-check "$@" >&2; }

# ------------------------------------------------------------------------------------------------- what it is made for
describe_stack() {
    "$python" -I - <<'CODE'
import importlib.metadata, sys, sysconfig
import torch
mmcv = importlib.metadata.version("onedl-mmcv")
print(mmcv, f"mmcv-{mmcv}_torch-{torch.__version__}_{sys.implementation.cache_tag}_{sysconfig.get_platform()}")
CODE
}

files_key() {
    (cd "$root/scripts" && cat mmdet_requirements.txt mmdet_env.sh mmcv_operators.sh check_mmdet.py) | cksum | cut -d' ' -f1
}

# ---------------------------------------------------------------------------------------------------------- the folder
build() {
    SECONDS=0
    rm -rf "$cache"/building-mmdet-* # what a killed one left behind; the lock says that none is at work
    work="$(mktemp -d "$cache/building-mmdet-XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 143' HUP INT TERM
    wheel="$("$root/scripts/mmcv_operators.sh" "$python" "onedl-mmcv==$mmcv_version")" || exit 1
    pip install --quiet --no-deps --target "$work/site" "$wheel" || die "pip could not install $wheel (see above)."
    pip install --quiet --no-deps --target "$work/site" -r "$requirements" ||
        die "pip could not install what $requirements names. The reason stands above; often it is the network."
    works "$work/site" --mmdet || die "the new folder does not work (see above). Please report it."
    rm -rf "$folder"
    mv "$work/site" "$folder"
    say "made $folder in $SECONDS s"
}

# ---------------------------------------------------------------------------------------------------------------- main
# a pip that is told elsewhere where to install, or to isolate its build, would do something else than is meant here
unset PIP_NO_BUILD_ISOLATION PIP_TARGET PIP_PREFIX PIP_USER PYTHONPATH PYTHONHOME
stack="$(describe_stack)" || die "$python has no torch or no onedl-mmcv (see above): make the main environment first (make env)"
read -r mmcv_version key <<<"$stack"
folder="$cache/mmdet_${key}_$(files_key)"
mkdir -p "$cache" || die "$cache cannot be made. Choose another place: XDG_CACHE_HOME=/path"
if command -v flock >/dev/null; then # two builds at once would do the work twice
    exec 9>"$cache/mmdet.lock"
    if ! flock -n 9; then
        say "another process makes such a folder: waiting for it"
        flock 9
    fi
fi
if [ -d "$folder" ] && works "$folder" --mmdet; then
    say "using $folder"
else
    build
fi
echo "$folder"
