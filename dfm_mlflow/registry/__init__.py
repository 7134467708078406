"""Registered versions: gates, aliases, records."""
