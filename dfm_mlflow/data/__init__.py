"""Which pictures there are, and what they are."""
