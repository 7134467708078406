"""Scored pictures: their metrics, and folders of parts."""
