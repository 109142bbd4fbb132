#!/usr/bin/env bash
# A training run under SLURM: a Ray cluster on the nodes of the job, for as long as the job lasts.
#   sbatch docker/slurm.sh experiment=internvl3 cluster=2x8_gpu data.root=<folder> judge.url=<http://host:8000/v1> judge.model=<name>
# from the checkout, after `make setup DEVICE=gpu` there; checkout, runs and data lie on a file system that all nodes share.
# At the time limit and on preemption the run saves a checkpoint, the job is queued again, and the run goes on from it.
# Where 300 s are too few for a checkpoint, say more, twice: MRPO_NOTICE_S=1800 sbatch --signal=B:USR1@1800 docker/slurm.sh …
# The run is named after the job, which keeps its number: run_name=slurm-<number> goes on with it from another job.
# Options of sbatch before the script's name win over these: sbatch --nodes=4 --time=4:00:00 docker/slurm.sh …
#SBATCH --job-name=mrpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC2329 # functions that traps call
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
export PATH="${MRPO_BIN:-$PWD/.venv/bin}:$PATH" # of the environment that make setup made
export RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS
START_S="${MRPO_START_S:-300}" # for all nodes to join
NOTICE_S="${MRPO_NOTICE_S:-300}" # what --signal says above, or on the command line

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}" # this script runs there
ip="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet
dashboard_port=$((port + 10000))
address="$ip:$port"
echo "Ray's dashboard: ssh -L 8265:localhost:$dashboard_port $head, then http://localhost:8265"

steps=()
driver=
requeue=
leave_at= # of SECONDS: by then the job must be queued again, whether the run has ended or not

end_cluster() {
    ((${#steps[@]} > 0)) || return 0
    kill -TERM "${steps[@]}" 2>/dev/null || true
    for _ in {1..30}; do
        kill -0 "${steps[@]}" 2>/dev/null || return 0
        sleep 1
    done
    kill -KILL "${steps[@]}" 2>/dev/null || true # srun ends its tasks with it
}
trap end_cluster EXIT

# Preemption and the time limit arrive as USR1, NOTICE_S ahead; scancel --batch as TERM, and then the job is to end.
stop_run() {
    echo "stopping: $1"
    [[ -z "$driver" ]] || kill -TERM "$driver" 2>/dev/null || true
}
queue_again() {
    scontrol requeue "$SLURM_JOB_ID" || true # SLURM may have done it itself
}
leave() {
    requeue=yes
    leave_at="${leave_at:-$((SECONDS + NOTICE_S * 29 / 30))}"
    stop_run "the job is to leave its nodes; it goes on later"
}
trap leave USR1
trap 'stop_run "the job is cancelled"' TERM INT

start_node() { # node, arguments of ray start
    local node="$1"
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap --export=ALL ray start --block "$@" &
    steps+=("$!")
}

start_node "$head" --head --node-ip-address="$ip" --port="$port" --dashboard-host=127.0.0.1 \
    --dashboard-port="$dashboard_port" --temp-dir="/tmp/ray-$SLURM_JOB_ID"
deadline=$((SECONDS + START_S))
until ray health-check --address="$address" >/dev/null 2>&1; do
    kill -0 "${steps[0]}" 2>/dev/null || { echo "Ray's head ended, see above" >&2; exit 1; }
    ((SECONDS < deadline)) || { echo "no Ray head at $address within $START_S s" >&2; exit 1; }
    sleep 2
done
for node in "${nodes[@]:1}"; do
    start_node "$node" --address="$address"
done
python - "$address" "${#nodes[@]}" "$((deadline - SECONDS))" <<'PYTHON'
import sys, time
import ray

address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + seconds
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes joined Ray at {address} in time; the log names those that did not")
    time.sleep(2)
PYTHON

if [[ -z "$requeue" ]]; then
    # What "$@" says comes later and wins. Of the notice the run has a little less: 280 s of 300.
    python -m mrpo.train run_name="slurm-$SLURM_JOB_ID" checkpoint.grace_s="$((NOTICE_S * 14 / 15))" "$@" \
        cluster.address="$address" resume=auto &
    driver="$!"
fi
code=1
if [[ -n "$driver" ]]; then
    while kill -0 "$driver" 2>/dev/null; do
        # At the time limit SLURM ends the job and does not queue it again; a run that still saves then goes on from an
        # older checkpoint.
        if [[ -n "$leave_at" ]] && ((SECONDS >= leave_at)); then
            echo "the run has not ended in time; the job is queued again as it is"
            leave_at=
            queue_again
        fi
        sleep 1 || true
    done
    code=0
    wait "$driver" || code="$?"
fi

# Of a run's own ends none is tried again: 0 is done, and of 2 (a setting, a missing folder) the next try knows no more.
if [[ -n "$requeue" && "$code" != 0 && "$code" != 2 ]]; then
    queue_again
fi
exit "$code"
