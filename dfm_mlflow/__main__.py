"""``python -m dfm_mlflow``."""

from dfm_mlflow.cli import main

main()
