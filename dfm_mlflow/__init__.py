"""Image anomaly detection by Deep Feature Modeling, as an MLflow plugin with a flavor ``dfm``.

Importing the package is light: torch and MLflow load with the first function that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker and an editor see; the rest of this file loads them late
    from dfm_mlflow import client as client
    from dfm_mlflow.config import Options as Options
    from dfm_mlflow.config import UpdateOptions as UpdateOptions
    from dfm_mlflow.core.dfm import DFM as DFM
    from dfm_mlflow.data.catalog import load_catalog as load_catalog
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector as AnomalyDetector
    from dfm_mlflow.errors import DfmError as DfmError
    from dfm_mlflow.images.overlay import overlay as overlay
    from dfm_mlflow.jobs.train import train as train
    from dfm_mlflow.jobs.update import update as update
    from dfm_mlflow.mlflow_plugin.flavor import FLAVOR_NAME as FLAVOR_NAME
    from dfm_mlflow.mlflow_plugin.flavor import get_default_conda_env as get_default_conda_env
    from dfm_mlflow.mlflow_plugin.flavor import (
        get_default_pip_requirements as get_default_pip_requirements,
    )
    from dfm_mlflow.mlflow_plugin.flavor import load_model as load_model
    from dfm_mlflow.mlflow_plugin.flavor import log_model as log_model
    from dfm_mlflow.mlflow_plugin.flavor import save_model as save_model

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
