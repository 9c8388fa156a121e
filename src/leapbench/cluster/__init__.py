"""Many runs: on this machine one after the other, or on a Slurm cluster."""
