#!/usr/bin/env bash
# One command of ltrp-pipeline on the machines of a Slurm job, with a Ray cluster of its own:
#     sbatch --nodes=2 --gpus-per-node=4 docker/slurm.sh score --shards /scratch/shards \
#         --mae /scratch/mae_visualize_vit_base.pth --views 4 --out /scratch/cache
# The environment with ltrp-pipeline is active when the job is submitted, and on a disk that all share.
#SBATCH --job-name=ltrp
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=48
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: sbatch [OPTIONS] $0 STAGE ..." >&2; exit 2; }

# Read whole: `| head` would end scontrol by a broken pipe now and then, and pipefail the job.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]:?scontrol names no host of this job}
# Of this job alone, so that two jobs on one machine do not meet.
port=$((20000 + SLURM_JOB_ID % 10000))

# A token of this job, in a file that others cannot read, on the shared disk; never in the environment.
folder=$(mktemp -d "$HOME/.ltrp-job-$SLURM_JOB_ID-XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3

# Ray's processes run as steps of the job; --block keeps each step alive as long as its Ray. In the
# background: srun takes the place of the shell, so that a signal reaches it.
cpus=${SLURM_CPUS_PER_TASK:-1}
on_host() {
    exec srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$1" --overlap "${@:2}"
}
ray_pids=()
# shellcheck disable=SC2329 # by the trap
end() {
    kill "${ray_pids[@]}" 2>/dev/null || true
    wait
    rm -rf "$folder"
}
trap end EXIT

on_host "$head" ray start --head --block --port="$port" --include-dashboard=false \
    --node-ip-address="$head" --num-cpus="$cpus" &
ray_pids+=($!)
for host in "${hosts[@]:1}"; do
    # Started again when Ray has ended: a link that was cut for long looks like a lost machine.
    (
        trap 'kill "${step:-}" 2>/dev/null; wait; exit' TERM
        while true; do
            on_host "$host" ray start --block --address="$head:$port" --num-cpus="$cpus" &
            step=$!
            wait "$step" && break
            sleep 5
        done
    ) &
    ray_pids+=($!)
done

for _ in $(seq 60); do
    ray health-check --address "$head:$port" >/dev/null 2>&1 && break
    sleep 2
done

# It takes the machines as they join; its exit status is the job's.
# Slurm's TERM (120 s before the end of the time, or when the machines are taken) is handed on:
# shards in flight are dropped, and the same job, requeued, goes on from there.
ltrp-pipeline "$@" --ray-address "$head:$port" &
stage=$!
trap 'kill -TERM "$stage"' TERM
while true; do
    status=0
    wait "$stage" || status=$?
    kill -0 "$stage" 2>/dev/null || break
done
exit "$status"
