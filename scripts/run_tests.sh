#!/usr/bin/env bash
# scripts/run_tests.sh PYTHON [pytest arguments]: runs pytest and exits with its status.
#
# make turns every failure into its own status 2, and prints a line of its own behind pytest's. With STATUS_FILE=path
# pytest's status is written there instead, and this script exits with 0: so .ci/run can hand it on.
set -uo pipefail

python="$1"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# One process per core and one thread per process; a file stays in one process, so that its fixtures are made once.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
JOBS="${JOBS:-2}"
workers=()
[ "$JOBS" -gt 1 ] && workers=(-n "$JOBS" --dist loadfile)

"$python" -m pytest ${workers[@]+"${workers[@]}"} "$@"
status=$?
if [ -n "${STATUS_FILE:-}" ]; then
    echo "$status" >"$STATUS_FILE"
    exit 0
fi
exit "$status"
