"""What a sweep writes down: a child for each configuration and category, and its tables."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from dfm_mlflow.config import Options

PARENT, _CHILD = "dfm.sweep", "dfm.sweep.child"


class SweepChildren:
    """The children of a sweep, and those that an interrupted one of the same options left."""

    def __init__(self, parent: Run, key: str):
        self._client, self._parent = MlflowClient(), parent.info
        self.n_resumed = 0
        self._known: dict[str, Run] = {}
        for earlier in self._search(f"tags.`{PARENT}` = '{key}'"):
            if earlier.info.run_id == self._parent.run_id or earlier.info.status == "FINISHED":
                continue
            for child in self._search(
                f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{earlier.info.run_id}' "
                "and attributes.status = 'FINISHED'"
            ):
                self._known[child.data.tags.get(_CHILD, "")] = child

    def finished(self, key: str) -> dict[str, float] | None:
        """Take over the finished child of a `key`, and give its metrics; None if there is none."""
        child = self._known.get(key)
        if child is None:
            return None
        self._client.set_tag(child.info.run_id, MLFLOW_PARENT_RUN_ID, self._parent.run_id)
        self.n_resumed += 1
        return child.data.metrics

    def log(
        self,
        options: Options,
        configuration: Mapping[str, str],
        key: str,
        metrics: Mapping[str, float],
    ) -> None:
        """Log one child in few requests."""
        child, now = self._create(options, configuration), int(time.time() * 1000)
        self._client.log_batch(
            child,
            metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()],
            params=[Param(f"resolved_{k}", str(v)) for k, v in options.model_dump().items()],
        )
        self._client.set_tag(child, _CHILD, key)
        self._client.set_terminated(child)

    def fail(
        self,
        given: Sequence[Options],
        configurations: Sequence[Mapping[str, str]],
        why: str,
        done: set[int],
    ) -> None:
        """Log the children of a category that are not there, with the reason."""
        for i, (options, configuration) in enumerate(zip(given, configurations, strict=True)):
            if i in done:
                continue
            child = self._create(options, configuration)
            self._client.set_tag(child, "dfm.failed", why[:5000])
            self._client.set_terminated(child, "FAILED")

    def _create(self, options: Options, configuration: Mapping[str, str]) -> str:
        tags = {
            MLFLOW_PARENT_RUN_ID: self._parent.run_id,
            MLFLOW_RUN_NAME: f"{options.category}, {label_of(configuration)}"[:250],
            "dfm.job": "sweep-child",
            "dfm.category": options.category,
            "dfm.preset": options.preset,
        }
        run = self._client.create_run(self._parent.experiment_id, tags=tags)
        run_id: str = run.info.run_id
        return run_id

    def _search(self, query: str) -> list[Run]:
        return self._client.search_runs([self._parent.experiment_id], query, max_results=5000)


def label_of(configuration: Mapping[str, str]) -> str:
    """Name a `configuration` by what it differs in from the preset."""
    return ", ".join(f"{name}={value}" for name, value in configuration.items()) or "preset"


def table_of(
    found: Mapping[tuple[str, int], Mapping[str, float]],
    categories: Sequence[str],
    configurations: Sequence[Mapping[str, str]],
    metric: str,
) -> pd.DataFrame:
    """Lay out one metric: a row a configuration, the average first and then a column a category."""
    rows = {}
    for i, configuration in enumerate(configurations):
        values = [found.get((c, i), {}).get(metric, np.nan) for c in categories]
        rows[label_of(configuration)] = [
            float(np.nanmean(values)) if not np.isnan(values).all() else np.nan,
            *values,
        ]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["Avg", *categories])
    table.index.name = "configuration"
    return table
