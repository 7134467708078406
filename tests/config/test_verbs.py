import pytest

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.errors import ConfigError


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("to", "latest", "alias='latest'"),
        ("to", "V2", "other than latest"),
        ("to", "a.b", "letters"),
        ("version", "one", "number of a version"),
        ("force", "maybe", "true or false"),
        ("margin", "-1", "from 0 to 1"),
        ("max_growth", "inf", "above 0"),
        ("reason", " ", "a text"),
        ("alias", "none", "name the one to set"),
        ("version", "auto", "names no version"),
        ("model", "runs:/1/model", "models:/NAME/VERSION"),
        ("min_images", "0", "at least 1"),
    ],
)
def test_bad_options_get_one_sentence(option, value, words):
    given = {"model": "dfm-x", "version": "1", "alias": "production"}
    given = {k: v for k, v in given.items() if (k, option) != ("alias", "to")} | {option: value}
    with pytest.raises(ConfigError, match=words):
        PromoteOptions.parse(given)
