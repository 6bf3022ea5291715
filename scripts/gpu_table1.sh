#!/usr/bin/env bash
# scripts/gpu_table1.sh [MINUTES [DATA]]: rows of Table 1 on CIFAR-100, by priority, as many as fit into MINUTES (12).
#
# WRN-16-2 comes first (baseline, FRSKD and FRSKD\F, seed by seed), then ResNet18, then the other methods. DATA (data)
# holds `cifar100`. A run that is stopped by the limit leaves a checkpoint; the same call goes on. Tables, records and logs
# land in $OUT (work_dirs/gpu_table1). PYTHON chooses the interpreter, SIDE_BY_SIDE (3) the runs in a process; EXTRA holds
# further options of `reproduce`, such as --dry-run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

minutes="${1:-12}"
data="${2:-data}"
out="${OUT:-work_dirs/gpu_table1}"
python="${PYTHON:-python}"
begin=$(date +%s)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# rows MODEL METHOD...: what is left of the time goes to these
rows() {
    local model="$1" left=$((minutes - ($(date +%s) - begin) / 60))
    shift
    [ "$left" -ge 1 ] || return 0
    "$python" -m frskd_plugin reproduce table1 --data "$data" --datasets cifar100 --models "$model" --methods "$@" \
        --amp-dtype bf16 --channels-last --side-by-side "${SIDE_BY_SIDE:-3}" --minutes "$left" --no-cost \
        --work-dir "$out" --out "$out/results" ${EXTRA:-}
}

rows wrn_16_2 baseline frskd frskd_f
rows resnet18_cifar baseline frskd
rows wrn_16_2 frskd_sla sla_sd one byot ddgsd sad cs_kd
