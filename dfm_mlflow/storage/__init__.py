"""Disk and S3 with one face, whole files, bounded caches, and what a path may be."""
