"""Scoring, fitting and the decision; ``AnomalyDetector`` has the only ``score``."""
