#!/bin/bash
# A verb of iet-agc on two machines without a scheduler: start this on both, with the name of the first one.
#
#   bash examples/cluster/two_hosts.sh first-host audit --train train.npy --samples samples.npy \
#       --held-out held-out.npy --extractor sscd.pt --cache features --out audits/a
#   bash examples/cluster/two_hosts.sh first-host train cifar10-iet-agc --out runs/cifar10
#
# Images, --out and --cache lie on a file system that both share, at the same path. PROCESSES is how many each machine
# starts, by default its GPUs, or one without; HOSTS is how many machines there are, PORT where the first one listens.
# After a kill the same again goes on.

set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "give the first host, a verb and its options, such as: bash $0 first-host train cifar10-iet-agc --out runs/a" >&2
    exit 2
fi

first=$1
shift

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / processes))}

exec torchrun \
    --nnodes="${HOSTS:-2}" \
    --nproc-per-node="$processes" \
    --rdzv-id=iet-agc \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$first:${PORT:-29500}" \
    -m iet_agc "$@"
