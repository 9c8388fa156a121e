"""Many runs: one after the other on this machine, or on a Slurm cluster."""
