from pathlib import Path

import pytest
from pydantic import ValidationError

from dfm_mlflow.config import Options
from dfm_mlflow.config.base import StrictOptions, option
from dfm_mlflow.errors import ConfigError


class Given(StrictOptions):
    name: str = option(..., "A name.", "letters", r"^[a-z]+$")
    share: float = option(0.5, "A share.", "a number from 0 to 1", ge=0, le=1)


def test_text_of_a_command_line_and_values_of_json_are_the_same():
    assert Given.parse({"name": "a", "share": "0.25"}) == Given.parse({"name": "a", "share": 0.25})
    assert Given.parse({"name": "a"}).share == 0.5


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "A1"}, "name='A1' is not valid: give letters."),
        ({"name": "a", "share": "2"}, "share='2' is not valid: give a number from 0 to 1."),
        ({"name": "a", "shares": 1}, "There is no option 'shares': the options are name, share."),
    ],
)
def test_an_error_names_option_value_and_what_was_expected(values, sentence):
    with pytest.raises(ConfigError) as caught:
        Given.parse(values)
    assert str(caught.value) == sentence
    assert caught.value.__cause__ is None  # nobody has to read pydantic's own words


def test_a_missing_option_is_named():
    with pytest.raises(ConfigError, match=r"^name=.* give letters\.$"):
        Given.parse({})


def test_options_do_not_change_after_they_were_checked():
    options = Given.parse({"name": "a"})
    with pytest.raises(ValidationError):
        options.share = 7.0
    assert options.share == 0.5


def test_values_of_python_are_written_as_on_the_command_line():
    options = Options.of(
        data=Path("/pictures"),
        image_size=384,
        pca_level=0.9,
        layers=["layer2", "layer3"],
        tile=None,
        retest=0.2,
        fpr=0.1,
        cache=False,
    )
    assert (options.data, options.image_size, options.pca_level) == ("/pictures", "384", "0.9")
    assert (options.layers, options.tile, options.retest) == ("layer2,layer3", "none", "0.2")
    assert options.cache is False
    with pytest.raises(ConfigError, match="There is no option 'fprr'"):
        Options.of(fprr=0.1)
    with pytest.raises(ConfigError, match="fpr=2 is not valid"):
        Options.of(fpr=2)
