"""The mathematics: subspaces, densities, calibration, metrics. No torch, no MLflow, no files."""
