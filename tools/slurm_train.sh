#!/usr/bin/env bash
# Train on a slurm cluster: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# GPUS (all), GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS are read from the environment; GPUS_PER_NODE=0 trains on CPUs
# with GPUS processes (gloo). PYTHON chooses the interpreter.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: [GPUS=.. GPUS_PER_NODE=.. CPUS_PER_TASK=.. SRUN_ARGS=..] $0 PARTITION JOB_NAME CONFIG [options]" >&2
    exit 2
fi

PARTITION=$1
JOB_NAME=$2
CONFIG=$3
shift 3
GPUS=${GPUS:-4}
GPUS_PER_NODE=${GPUS_PER_NODE:-4}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
TOOLS=$(cd "$(dirname "$0")" && pwd)

RESOURCES=()
if [ "$GPUS_PER_NODE" -gt 0 ]; then
    RESOURCES=(--gres="gpu:$GPUS_PER_NODE" --ntasks-per-node="$GPUS_PER_NODE")
fi

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
# SRUN_ARGS is a list of options: it is split on purpose.
# shellcheck disable=SC2086
exec srun -p "$PARTITION" --job-name="$JOB_NAME" --ntasks="$GPUS" "${RESOURCES[@]}" \
    --cpus-per-task="$CPUS_PER_TASK" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "$@"
