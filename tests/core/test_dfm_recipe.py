import numpy as np
import pytest

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.errors import FitError

from .test_dfm import low_rank


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_components": 0.0}, "n_components=0.0 is out of range"),
        ({"n_components": 1.5}, "n_components=1.5 is out of range"),
        ({"n_components": 0}, "n_components=0 is out of range"),
        ({"n_components": True}, "out of range"),
        ({"n_components": 21}, "rows vary in 10 directions"),
        ({"score_type": "fft"}, "score_type='fft' is not known"),
        ({"contamination": 0.7}, "contamination=0.7 is out of range"),
        ({"n_components": 1.0, "score_type": "fre"}, "n_components=1.0 keeps all of the variance"),
        ({"n_components": 10, "score_type": "fre"}, "All directions of 10 feature"),
        ({"n_folds": 1}, "n_folds=1 is out of range: give a whole number of at least 2"),
        ({"random_state": None}, "random_state=None is out of range: give a whole number"),
        ({"noise": "none"}, "noise='none' is not known: give auto or held-out or gcv"),
        ({"solver": "magic"}, "solver='magic' is not known"),
    ],
)
def test_parameters_out_of_range(parameters, words):
    with pytest.raises(FitError, match=words) as caught:
        DFM(**parameters).fit(low_rank(40, 10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fit", ["fit", "partial_fit", "fit_batches"])
def test_fre_of_a_whole_space_is_refused_however_it_is_fitted(fit):
    """Today's rows would all have FRE 0, and predict would find no outlier, ever."""
    x = low_rank(60, 4, rank=4, scale=30)
    with pytest.raises(FitError, match="nothing to reconstruct: give a share below 1"):
        DFM(1.0, score_type="fre").fit(x)
    dfm = DFM(4, score_type="fre")
    with pytest.raises(FitError, match="All directions of 4 feature.* give a smaller n_components"):
        (
            dfm.fit_batches(lambda: [(x, None)]) if fit == "fit_batches" else getattr(dfm, fit)(x)
        ).fre(x)
    assert DFM(1.0).fit(x).subspaces_[0].n_components == 4  # NLL needs no rest


def test_a_class_without_rest_is_named():
    x = np.concatenate([low_rank(60, 3, rank=3), low_rank(60, 3, rank=1, scale=30)])
    with pytest.raises(FitError, match="The class a cannot be fitted. All directions of 3 feature"):
        DFM(0.97, score_type="fre").fit(x, np.repeat(["a", "b"], 60))
