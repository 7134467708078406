"""Choosing a configuration without a label."""
