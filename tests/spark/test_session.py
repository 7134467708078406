import pytest

from dfm_mlflow.errors import DataError, SparkError


def test_a_missing_pyspark_or_java_is_one_sentence(monkeypatch):
    from dfm_mlflow.spark.session import session_of

    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pyspark.sql", None)
        with pytest.raises(SparkError, match=r"pip install 'dfm-mlflow\[spark\]'"), session_of():
            pass
    pytest.importorskip("pyspark")
    from pyspark.sql import SparkSession

    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(SparkError, match="apt-get install default-jre-headless"), session_of():
        pass


@pytest.mark.parametrize(
    ("told", "kind", "sentence"),
    [
        (
            "Traceback\n  File x\ndfm_mlflow.errors.DataError: s3://a/b changed.\n at org.Foo",
            DataError,
            "s3://a/b changed.",
        ),
        (
            "Traceback\nModuleNotFoundError: No module named 'dfm_mlflow.spark'",
            SparkError,
            "The executors lack the Python package dfm_mlflow: install",
        ),
        ("Job aborted.\nmore", SparkError, r"The Spark job failed \(Job aborted\)"),
    ],
)
def test_errors_of_tasks_keep_their_sentence(told, kind, sentence):
    from dfm_mlflow.spark.session import task_error

    error = task_error(told)
    assert type(error) is kind
    assert str(error).startswith(sentence.replace("\\", ""))


def test_a_task_has_the_threads_that_spark_counts_for_it(spark):
    def threads(_):
        import torch
        from threadpoolctl import threadpool_info

        from dfm_mlflow.spark import session

        session._limit_threads.cache_clear()  # the process may have had tasks before
        torch.set_num_threads(2)
        session.keep_to_processors()
        return {torch.get_num_threads(), *(one["num_threads"] for one in threadpool_info())}

    assert spark.sparkContext.parallelize(range(2), 2).map(threads).collect() == [{1}, {1}]
