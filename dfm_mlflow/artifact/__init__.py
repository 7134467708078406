"""The model on disk: record, statistics, files."""
