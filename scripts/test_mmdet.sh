#!/usr/bin/env bash
# scripts/test_mmdet.sh PYTHON [pytest arguments]: the tests that need mmdetection, with the main environment's PYTHON
# and the folder that scripts/mmdet_env.sh lays over it. Ends with pytest's closing line and status.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[ $# -ge 1 ] || {
    echo "usage: scripts/test_mmdet.sh PYTHON [pytest arguments]" >&2
    exit 2
}
python="$1"
shift
folder="$(scripts/mmdet_env.sh "$python")" || exit 1
# what `import frskd_plugin` loads is looked at here too, where there is an mmdet that it could load
tests=(tests/mmdet frskd_plugin/mmdet tests/packaging/test_imports.py)
for argument in "$@"; do
    [ ! -e "${argument%%::*}" ] || tests=() # files or folders of the caller's choice
done
export PYTHONPATH="$PWD:$folder"
exec scripts/run_tests.sh "$python" ${tests[@]+"${tests[@]}"} "$@"
