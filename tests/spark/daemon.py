"""PySpark's daemon, having imported what each of its workers would spend seconds on."""

from pyspark.daemon import manager

import dfm_mlflow.spark.fit
import dfm_mlflow.spark.score  # noqa: F401

if __name__ == "__main__":
    manager()
