"""Campaigns against a hostile world, longer than a test suite can be: see SECURITY.md.

The suite runs a small share of each (``tests/test_campaigns.py``).
"""
