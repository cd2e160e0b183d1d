#!/bin/bash
# Stage pretrain of one recipe on several nodes under Slurm: sbatch experiments/launch/slurm.sh experiments/quickstart.yaml
#
# The earlier stages must be finished in the workspace (feeb run shard RECIPE), which all nodes must see under the same path.
# When stopped by the time limit or scancel, it saves a checkpoint; submit it again to resume.
# This is an example; it has not been run on a cluster by the project.

#SBATCH --job-name=feeb
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue

set -euo pipefail
recipe=${1:?usage: sbatch slurm.sh RECIPE}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 0 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
  -m feebcore.run.launch "$recipe" --stage pretrain --set pretrain.parallel.strategy=fsdp
