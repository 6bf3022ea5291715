#!/usr/bin/env bash
# scripts/mmcv_operators.sh PYTHON REQUIREMENT: prints the path of a wheel of mmcv with compiled operators for the torch
# of PYTHON, such as for `onedl-mmcv==2.3.6` or `mmcv==2.1.0`.
#
# Compiling takes minutes (with a precompiled header about 5 on two idle cores, without one about 25), so the wheel is
# kept in ~/.cache/frskd_plugin (XDG_CACHE_HOME moves it), named after the versions of mmcv, torch and Python. It is tried
# before it is kept and before it is handed out, and made again where it does not work. A C++ compiler is needed; MAX_JOBS
# limits its processes.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -eq 2 ] || {
    echo "usage: scripts/mmcv_operators.sh PYTHON REQUIREMENT" >&2
    exit 2
}
python="$1"
requirement="$2"
cache="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/frskd_plugin"
needed_gb="${NEEDED_GB:-2}"

say() { printf '[mmcv] %s\n' "$*" >&2; }
die() {
    printf '[mmcv] ERROR: %s\n' "$*" >&2
    exit 1
}
pip() { "$python" -m pip --disable-pip-version-check "$@" >&2; }

stack_key() {
    "$python" -I -c 'import sys, sysconfig, torch
print(f"torch-{torch.__version__}_{sys.implementation.cache_tag}_{sysconfig.get_platform()}")'
}

check_compiler() {
    local header free_kb
    command -v "${CXX:-c++}" >/dev/null ||
        die "no C++ compiler (${CXX:-c++}) was found, and mmcv's operators must be compiled. Debian and Ubuntu: apt install g++"
    header="$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
    [ -e "$header" ] || die "$header is missing, which a compiler needs. Debian and Ubuntu: apt install python3-dev"
    free_kb="$(df -Pk "$cache" | awk 'NR == 2 { print $4 }')"
    [ "$free_kb" -ge $((needed_gb * 1024 * 1024)) ] ||
        die "compiling takes about $needed_gb GB, and $cache has $((free_kb / 1024 / 1024)) GB free. Choose another disk: XDG_CACHE_HOME=/path"
}

# Nearly all the time goes into torch's headers, which every file includes. Only the CPU's operators are built, on all
# machines alike, so CUDA is hidden. CFLAGS replaces the defaults, so -O2 and -DNDEBUG are named.
flags="-g0 -O2 -DNDEBUG"

# A compiler that cannot use the header of a folder (other flags, other version) reads the text beside it.
precompile_header() {
    local includes
    mkdir "$1"
    printf '#include <%s>\n' torch/types.h cassert functional map type_traits vector >"$1/frskd_torch.hpp"
    includes="$("$python" -I -c 'if True:
        import sysconfig
        from torch.utils.cpp_extension import include_paths
        print(*(f"-I{path}" for path in [*include_paths(), sysconfig.get_path("include")]))')"
    # the flags must be those that torch's build adds for each file
    # shellcheck disable=SC2086
    "${CXX:-c++}" $flags -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext $includes \
        -x c++-header "$1/frskd_torch.hpp" -o "$1/frskd_torch.hpp.gch" >&2
}

# A process for each core, as far as memory allows: one takes up to 1.5 GB.
jobs() {
    local cores free_kb
    cores="$(getconf _NPROCESSORS_ONLN)"
    free_kb="$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo 2>/dev/null || true)"
    awk -v cores="$cores" -v kb="${free_kb:-$((cores * 2000000))}" \
        'BEGIN { n = int(kb / 1500000); print n < 1 ? 1 : n < cores ? n : cores }'
}

works() { # FOLDER: installs the wheel that it holds, and runs one of its operators
    compgen -G "$1/*.whl" >/dev/null || return 1
    rm -rf "$work/tried"
    pip install --quiet --no-deps --target "$work/tried" "$1"/*.whl || return 1
    "$python" -I "$root/scripts/check_mmdet.py" "$work/tried" >&2
}

compile() { # FLAGS: builds the wheel into $work/wheel, and tries it
    rm -rf "$work/wheel"
    # pip's isolated build would have no torch, and its cache does not tell wheels with operators from those without
    CFLAGS="$1" CUDA_VISIBLE_DEVICES="" FORCE_CUDA=0 MMCV_WITH_OPS=1 TMPDIR="$work/tmp" \
        MAX_JOBS="${MAX_JOBS:-$(jobs)}" \
        pip wheel --quiet --no-cache-dir --no-build-isolation --no-deps --no-binary "${requirement%%=*}" \
        --wheel-dir "$work/wheel" "$requirement" || return 1
    works "$work/wheel"
}

build() {
    check_compiler
    if ! command -v ninja >/dev/null; then # without it torch compiles one file after the other
        pip install --quiet --no-deps --target "$work/ninja" ninja && PATH="$work/ninja/bin:$PATH"
    fi
    SECONDS=0
    say "compiling the operators of $requirement, once for this torch (minutes)"
    if precompile_header "$work/header" && compile "$flags -I$work/header -include frskd_torch.hpp"; then
        say "compiled in $SECONDS s, with a precompiled header"
    else
        say "the precompiled header is of no use here (see above): compiling without it (about 25 minutes on two cores)"
        compile "$flags" || die "the operators of $requirement could not be compiled. The reason stands above."
        say "compiled in $SECONDS s, without a precompiled header"
    fi
    rm -rf "$wheels"
    mkdir -p "$(dirname "$wheels")"
    mv "$work/wheel" "$wheels"
}

# a pip that is told elsewhere where to install, or to isolate its build, would do something else than is meant here
unset PIP_NO_BUILD_ISOLATION PIP_TARGET PIP_PREFIX PIP_USER PYTHONPATH PYTHONHOME
key="$(stack_key)" || die "$python has no torch (see above)"
wheels="$cache/mmcv-operators/${requirement/==/-}_$key"
mkdir -p "$cache" || die "$cache cannot be made. Choose another place: XDG_CACHE_HOME=/path"
if command -v flock >/dev/null; then # two builds at once would do the work twice
    exec 8>"$cache/mmcv-operators.lock"
    if ! flock -n 8; then
        say "another process compiles operators: waiting for it"
        flock 8
    fi
fi
rm -rf "$cache"/compiling-mmcv-* # what a killed one left behind; the lock says that none is at work
work="$(mktemp -d "$cache/compiling-mmcv-XXXXXX")"
trap 'rm -rf "$work"' EXIT
trap 'exit 143' HUP INT TERM
mkdir "$work/tmp"
works "$wheels" || build
compgen -G "$wheels/*.whl"
