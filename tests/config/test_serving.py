import pytest

from dfm_mlflow.config.serving import ServingSettings
from dfm_mlflow.errors import ConfigError
from dfm_mlflow.mlflow_plugin.flavor import MODEL_CONFIG


def test_every_key_is_stored_with_its_default_and_has_a_variable():
    assert ServingSettings().model_dump() == MODEL_CONFIG
    assert not ServingSettings.parse(MODEL_CONFIG).watches
    given = {
        "device": "cpu",
        "precision": "bf16",
        "batch_size": 3,
        "max_wait_ms": 7.5,
        "queue_size": 9,
        "threads": 2,
        "max_pictures": 5,
        "max_megabytes": 6,
        "metrics_port": 9100,
        "metrics_host": "0.0.0.0",
        "log_to": "s3://bucket/log",
        "log_megabytes": 11,
        "keep": "retest",
        "keep_megabytes": 12,
        "drift_alarm": 0.01,
        "expected_flagged": 0.05,
        "alarm_webhook": "https://example.com/x",
        "follow": "models:/screws@production",
        "follow_seconds": 5.0,
    }
    assert set(given) == set(MODEL_CONFIG)
    environment = {f"DFM_{key.upper()}": str(value) for key, value in given.items()}
    for config in (None, MODEL_CONFIG, {"batch_size": 77, "keep": "none"}):
        assert ServingSettings.parse(config, environment).model_dump() == given
    assert ServingSettings.parse(given).model_dump() == given


def test_a_variable_has_the_last_word_and_none_is_the_default():
    config = {"batch_size": 4, "log_to": "/log", "queue_size": 8}
    environment = {"DFM_BATCH_SIZE": "5", "DFM_LOG_TO": "none", "DFM_QUEUE_SIZE": " "}
    found = ServingSettings.parse(config, environment)
    assert (found.batch_size, found.log_to, found.queue_size) == (5, None, 8)
    assert ServingSettings.parse(config).batch_size == 4  # the environment is not looked at unasked


@pytest.mark.parametrize(
    ("config", "environment", "words"),
    [
        ({"keep": "flagged"}, {}, "keep needs log_to"),
        ({}, {"DFM_EXPECTED_FLAGGED": "0.1"}, "expected_flagged needs drift_alarm"),
        ({"alarm_webhook": "https://a/b"}, {}, "alarm_webhook needs drift_alarm"),
        ({"follow": "models:/screws/3"}, {}, "model_config follow='models:/screws/3' is refused"),
        ({"log_to": "gs://a/b"}, {}, "give a folder or s3://bucket/prefix"),
        ({"log_to": "s3:///"}, {}, "give a folder or s3://bucket/prefix"),
        ({}, {"DFM_METRICS_PORT": "http"}, "DFM_METRICS_PORT='http' is refused"),
        ({"drift_alarm": 1.0}, {}, "model_config drift_alarm=1.0 is refused"),
        ({"keep": "some"}, {}, "'none', 'flagged', 'retest' or 'all'"),
    ],
)
def test_what_cannot_be_is_one_sentence(config, environment, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ServingSettings.parse(config, environment)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    "address",
    ["http://example.com/s3cret", "https://user:s3cret@example.com/", "ftp://a/s3cret", "s3cret"],
)
def test_an_address_that_is_refused_is_not_repeated(address):
    for given in ({"alarm_webhook": address}, None):
        environment = {} if given else {"DFM_ALARM_WEBHOOK": address}
        with pytest.raises(ConfigError, match="give https://HOST") as caught:
            ServingSettings.parse({"drift_alarm": 0.1, **(given or {})}, environment)
        assert "s3cret" not in str(caught.value)
    local = ServingSettings.parse({"drift_alarm": 0.1, "alarm_webhook": "http://127.0.0.1:80/x"})
    assert local.alarm_webhook == "http://127.0.0.1:80/x"
