#!/usr/bin/env bash
# scripts/gpu_check.sh [DATA_ROOT]: checks and times training on one GPU, in under 4 minutes on an H100 or H200.
#
# Runs tests/gpu, then scripts/gpu_check.py: milliseconds of a step of `frskd train` with and without a CUDA graph for
# both CIFAR networks, and three epochs of FRSKD on CIFAR-100 (on noise, where DATA_ROOT is not given). Everything lands
# in $OUT (work_dirs/gpu_check): tests.xml, gpu_check.json, and a log of each part. PYTHON chooses the interpreter,
# MINUTES (3.8) the time limit; what did not fit is named in the JSON.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

out="${OUT:-work_dirs/gpu_check}"
python="${PYTHON:-python}"
minutes="${MINUTES:-3.8}"
begin=$(date +%s)
mkdir -p "$out" || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

timeout 100 "$python" -m pytest tests/gpu -q -W ignore --junitxml="$out/tests.xml" >"$out/tests.log" 2>&1
tests=$?
tail -n 3 "$out/tests.log"
"$python" scripts/gpu_check.py --out "$out" --begin "$begin" --minutes "$minutes" ${1:+--data-root "$1"} \
    >"$out/train.log" 2>&1
trained=$?
grep -a '^gpu_check: ' "$out/train.log"
echo "tests: $tests, times: $trained; see $out"
[ "$tests" -eq 0 ] && [ "$trained" -eq 0 ]
