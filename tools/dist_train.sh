#!/usr/bin/env bash
# Train with N processes a machine: tools/dist_train.sh CONFIG N [options of tools/train.py]
#
# N GPUs (NCCL), or N CPU processes (gloo) where there is no GPU. Several machines: start it on each of them with
# NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR (the first machine) and PORT set. PYTHON chooses the interpreter.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: [NNODES=.. NODE_RANK=.. MASTER_ADDR=.. PORT=..] $0 CONFIG N [options of tools/train.py]" >&2
    exit 2
fi

CONFIG=$1
PROCESSES=$2
shift 2
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
PORT=${PORT:-29500}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
TOOLS=$(cd "$(dirname "$0")" && pwd)

case $PROCESSES in
    '' | *[!0-9]* | 0)
        echo "$0: N must be a number of processes, 1 or more; got '$PROCESSES'" >&2
        exit 2
        ;;
esac

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$NNODES" \
    --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" \
    --master_port="$PORT" \
    --nproc_per_node="$PROCESSES" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "$@"
