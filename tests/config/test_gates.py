"""The gates have one set of options, whichever verb promotes."""

import pytest

from dfm_mlflow.config import PromoteOptions, UpdateOptions
from dfm_mlflow.config.gates import GateOptions, check_reason
from dfm_mlflow.errors import ConfigError


def test_promote_and_update_ask_for_the_same():
    given = {"min_recall": "0.2", "max_growth": "3", "force": True, "reason": "few pictures"}
    promoted = PromoteOptions.parse({"model": "models:/m/2", "alias": "production", **given})
    updated = UpdateOptions.parse(
        {"model": "models:/m/1", "verdicts": "v.csv", "promote": "production", **given}
    )
    assert updated.gates == {name: getattr(promoted, name) for name in GateOptions.model_fields}
    assert updated.gates["min_recall"] == 0.2
    assert updated.gates["force"] is True
    fields = [model.model_fields for model in (PromoteOptions, UpdateOptions)]
    for name in GateOptions.model_fields:
        assert fields[0][name].default == fields[1][name].default
        assert fields[0][name].description == fields[1][name].description


def test_force_needs_a_reason():
    check_reason(True, "a new camera", "x")
    check_reason(False, "none", "x")
    with pytest.raises(ConfigError, match="needs a reason for the record: give one, such as"):
        check_reason(True, " None", "a new camera")
