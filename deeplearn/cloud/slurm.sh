#!/usr/bin/env bash
# A run on a SLURM cluster: sbatch deeplearn/cloud/slurm.sh train --config=experiments/mnist_cnn.py --workdir=DIR
# DIR lies on a disk that every node sees. Nodes, GPUs and time are changed on the command line: sbatch --nodes=4 ...
#SBATCH --job-name=deeplearn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Preempted or on a node that failed: in the queue again under the same number, and the run goes on from its checkpoint.
#SBATCH --requeue
# Two minutes before the time is up, to this shell alone, which has the run save and queues again.
#SBATCH --signal=B:USR1@120
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ] || [ "$#" = 0 ]; then
  echo "usage: sbatch $0 train --config=FILE --workdir=DIR" >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR" # the project, with its environment in .venv

# By this token the processes of a run know each other. It is new at each start, and also when the job is queued again,
# unless you set one. srun passes the environment on, even if sbatch had --export=NONE; its command line would show the
# token to every user of the nodes.
if [ -z "${DEEPLEARN_TOKEN:-}" ]; then
  DEEPLEARN_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
fi
export DEEPLEARN_TOKEN SLURM_EXPORT_ENV=ALL

# One process a node, which has all of its GPUs. JAX finds the others by what srun puts in each one's environment
# (SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID and SLURM_LOCALID); the port follows from the job's
# number. --kill-on-bad-exit: when one fails, the others would wait for it for ever. --cpus-per-task: srun no longer
# takes it from the job. scancel, as srun makes SIGKILL of a SIGTERM of its own.
stopped=
status=0
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" .venv/bin/python -m deeplearn "$@" &
step=$!
wait "$step" || status=$?
if [ -n "$stopped" ]; then
  wait "$step" || true # the first wait ended with the signal, the run goes on saving
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
