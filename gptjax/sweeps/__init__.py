"""Arms times seeds: what is to be run, and running it here or as an array of SLURM jobs."""
