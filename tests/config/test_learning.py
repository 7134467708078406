import pytest

from dfm_mlflow.config import ReviewOptions, UpdateOptions
from dfm_mlflow.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"verdicts": "v.txt"}, "none or a .csv"),
        ({"verdicts": "v.csv", "promote": "a.b"}, "an alias of letters"),
        (
            {"verdicts": "v.csv", "promote": "production", "registered_model": "none"},
            "registers none",
        ),
        ({"verdicts": "v.csv", "min_recall": "0.2"}, "is for a promotion, and promote=none"),
        ({"verdicts": "v.csv", "promote": "production", "min_recall": "2"}, "from 0 to 1"),
        (
            {"verdicts": "v.csv", "promote": "production", "force": True},
            "force=true needs a reason",
        ),
        ({"verdicts": "v.csv", "bogus": "1"}, "no option 'bogus'"),
    ],
)
def test_bad_options_of_an_update_get_one_sentence(given, words):
    with pytest.raises(ConfigError, match=words):
        UpdateOptions.parse({"model": "models:/m/1", **given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"most": "0"}, "from 1 to 1000"),
        ({"output": "page.txt"}, "ends in .html"),
        ({"verdicts": "s3://bucket/v.csv"}, "local name"),
        ({"port": "99999999"}, "1 to 65535"),
    ],
)
def test_bad_options_of_a_review_get_one_sentence(given, words):
    with pytest.raises(ConfigError, match=words):
        ReviewOptions.parse({"scores": "s.parquet", **given})
