import logging

import pytest

from dfm_mlflow.console import log


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "INFO")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "true")
    monkeypatch.setenv("TQDM_DISABLE", "")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    log.start(log.NORMAL)
    root.handlers = handlers


def said(level, capsys):
    log.start(level)
    ours = logging.getLogger("dfm_mlflow.jobs.train")
    ours.info("30 pictures")
    ours.info("  ")
    ours.info("the threshold", extra={"dfm_result": True})
    ours.warning("one is odd")
    logging.getLogger("dfm_mlflow.serving.pyfunc").info("warm after 3 s")
    logging.getLogger("some.library").info("its own affairs")
    return capsys.readouterr().err.splitlines()


def test_each_fact_once_in_words(capsys):
    assert said(log.NORMAL, capsys) == ["30 pictures", "Warning: one is odd"]
    assert said(log.QUIET, capsys) == ["Warning: one is odd"]
    assert log.is_quiet()
    whole = said(log.VERBOSE, capsys)
    assert len(whole) == 6  # the empty one, too: nothing is kept back
    assert "INFO dfm_mlflow.jobs.train: the threshold" in whole[2]
