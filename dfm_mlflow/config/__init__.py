"""Options: names, types, defaults, presets and what an error says."""

from dfm_mlflow.config.base import StrictOptions
from dfm_mlflow.config.learning import ReviewOptions, UpdateOptions
from dfm_mlflow.config.presets import PRESETS
from dfm_mlflow.config.shipping import (
    BundleOptions,
    DescribeOptions,
    ExportOptions,
    RollbackOptions,
)
from dfm_mlflow.config.sweep import SweepOptions, refuse_spark
from dfm_mlflow.config.train import Options
from dfm_mlflow.config.verbs import (
    CompareOptions,
    EvaluateOptions,
    PromoteOptions,
    RecalibrateOptions,
    ScoreOptions,
    UpgradeOptions,
)

__all__ = [
    "PRESETS",
    "BundleOptions",
    "CompareOptions",
    "DescribeOptions",
    "EvaluateOptions",
    "ExportOptions",
    "Options",
    "PromoteOptions",
    "RecalibrateOptions",
    "ReviewOptions",
    "RollbackOptions",
    "ScoreOptions",
    "StrictOptions",
    "SweepOptions",
    "UpdateOptions",
    "UpgradeOptions",
    "refuse_spark",
]
