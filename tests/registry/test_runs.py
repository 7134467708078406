import mlflow
import pytest

from dfm_mlflow.errors import ArtifactError, ConfigError, DataError

from ..jobs.test_compare import ask, log, scored, table


def test_a_run_has_several_names(store):
    a = log("cap-old", table(scored(1.0, 1)))
    b = log("it's new", table(scored(2.5, 2)))
    for first in (a, "cap-old", f"runs:/{a}/model"):
        for second in (b, "it's new"):
            assert [r.run.info.run_id for r in ask(first, second).runs] == [a, b]
    log("cap-old", table(scored(1.0, 3)))
    with pytest.raises(ConfigError, match=f"Several runs are called cap-old.*{a}"):
        ask("cap-old", b)
    with pytest.raises(ConfigError, match="No run has the id or the name cap-none"):
        ask(a, "cap-none")
    with pytest.raises(ConfigError, match="not in this tracking server"):
        ask(a, f"runs:/{'0' * 32}")
    with pytest.raises(ArtifactError, match="names no model"):
        ask(a, "models:/dfm-none@production")
    with pytest.raises(ConfigError, match="was named already"):
        ask(a, b, f"runs:/{a}/model")
    with pytest.raises(ConfigError, match="give at least two runs"):
        ask(a)
    with mlflow.start_run(run_name="empty"):
        pass
    with pytest.raises(DataError, match=r"empty .* has no scores.parquet"):
        ask(a, "empty")
    log("flat", table(scored(1.0, 1)).assign(label="unlabelled", defective=None))
    with pytest.raises(DataError, match=r"flat .* has no labelled pictures"):
        ask(a, "flat")
