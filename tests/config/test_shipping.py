import pytest

from dfm_mlflow.config import BundleOptions, ExportOptions, RollbackOptions
from dfm_mlflow.errors import ConfigError


def test_a_registered_model_by_name_or_address():
    assert RollbackOptions.parse({"model": "models:/dfm-caps"}).name == "dfm-caps"
    assert RollbackOptions.parse({"model": "dfm-caps"}).name == "dfm-caps"
    with pytest.raises(ConfigError, match="a registered model's name"):
        RollbackOptions.parse({"model": "models:/dfm-caps/3"})


def test_outputs_are_checked():
    with pytest.raises(ConfigError, match="ends in .onnx"):
        ExportOptions.parse({"model": "m", "output": "m.bin"})
    with pytest.raises(ConfigError, match="not a local folder"):
        BundleOptions.parse({"model": "m", "output": "s3://bucket/m"})
