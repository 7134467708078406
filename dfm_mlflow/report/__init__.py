"""Results in, HTML and pictures out."""
