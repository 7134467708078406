"""A served model: requests, batches, limits, threads."""
