"""What a job does with a run, and with a server that fails."""
