"""Options: names, types, defaults, presets and what an error says."""

from dfm_mlflow.config.base import StrictOptions
from dfm_mlflow.config.learning import ReviewOptions, UpdateOptions
from dfm_mlflow.config.sweep import SweepOptions, refuse_spark
from dfm_mlflow.config.train import PRESETS, Options
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
    "CompareOptions",
    "EvaluateOptions",
    "Options",
    "PromoteOptions",
    "RecalibrateOptions",
    "ReviewOptions",
    "ScoreOptions",
    "StrictOptions",
    "SweepOptions",
    "UpdateOptions",
    "UpgradeOptions",
    "refuse_spark",
]
