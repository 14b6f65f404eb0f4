"""What keeps jobs whole on shared machines: checkpoints, leases, locks, GPUs, Slurm."""
