"""Image anomaly detection by Deep Feature Modeling, as an MLflow plugin with a flavor ``dfm``.

Importing the package is light: torch and MLflow load with the first function that needs them.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "FLAVOR_NAME": "mlflow_plugin.flavor",
    "save_model": "mlflow_plugin.flavor",
    "log_model": "mlflow_plugin.flavor",
    "load_model": "mlflow_plugin.flavor",
    "get_default_pip_requirements": "mlflow_plugin.flavor",
    "get_default_conda_env": "mlflow_plugin.flavor",
    "_load_pyfunc": "serving.pyfunc",
    "AnomalyDetector": "detector.anomaly_detector",
    "DFM": "core.dfm",
    "Options": "config",
    "load_catalog": "data.catalog",
    "overlay": "images.overlay",
    "train": "jobs.train",
    "update": "jobs.update",
    "UpdateOptions": "config",
    "DfmError": "errors",
}

__all__ = ["__version__", "client", *(name for name in _EXPORTS if not name.startswith("_"))]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that holds it, on first use (PEP 562)."""
    if name == "client":
        return importlib.import_module(f"{__name__}.client")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_EXPORTS[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
