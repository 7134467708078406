"""The MLflow flavor ``dfm``."""
