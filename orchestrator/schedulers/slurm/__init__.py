"""Jobs of Slurm, which submitit submits."""
