import pytest

from dfm_mlflow.config import EvaluateOptions, Options, RecalibrateOptions, SweepOptions
from dfm_mlflow.data.chosen import (
    located,
    pictures_to_calibrate,
    pictures_to_fit,
    pictures_to_judge,
)
from dfm_mlflow.errors import ConfigError, DataError

from ..trees import counts, plant


@pytest.fixture
def screws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return plant(tmp_path / "screws", "pass/{0..9}.png", "returns/{0..2}.png")


NAMED = {"data": "screws", "good": "pass", "bad": "returns"}


def test_options_learn_their_category_and_place(screws):
    options = located(Options.parse(NAMED))
    assert (options.category, options.data) == ("screws", str(screws))
    assert options.model_name == "dfm-screws"
    assert counts(pictures_to_fit(options)) == {"train good": 8, "test good": 2, "test returns": 3}
    sweep = located(SweepOptions.parse({**NAMED, "grid": "pca_level=0.9,0.97"}))
    assert isinstance(sweep, SweepOptions)
    assert sweep.category_names == ("screws",)


def test_no_name_is_made_up():
    with pytest.raises(DataError, match="give category=<name>, such as category=bottle"):
        located(Options.parse({}))
    assert located(Options.parse({"category": "bottle"})).data == "auto"  # MVTec AD, as ever


def test_a_class_that_no_category_can_be_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,split,label,class\n0.png,train,good,a/b\n")
    with pytest.raises(ConfigError, match="category='a/b' is not valid"):
        located(Options.parse({"data": str(tmp_path / "a.csv")}))


def test_a_model_s_own_data_are_dealt_as_they_were(screws, tmp_path):
    model = located(Options.parse(NAMED))
    fitted = pictures_to_fit(model)
    for data in ("auto", str(screws), "screws"):
        options = EvaluateOptions.parse({"model": "m", "data": data})
        assert pictures_to_judge(options, model, ("screws",)).digest == fitted.digest
    plant(tmp_path / "june", "good/{0..4}.png", "bad/0.png")
    options = EvaluateOptions.parse({"model": "m", "data": str(tmp_path / "june")})
    new = pictures_to_judge(options, model, ("screws",))
    assert counts(new) == {"test good": 5, "test bad": 1}


def test_a_calibration_takes_named_folders(screws):
    options = RecalibrateOptions.parse({"model": "m", "images": str(screws), "good": "pass"})
    with pytest.raises(DataError, match="returns"):  # nobody has said what they are
        pictures_to_calibrate(options.model_copy(update={"good": "auto"}), "screws")
    assert counts(pictures_to_calibrate(options, "screws")) == {"train good": 10}
