import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from dfm_mlflow.core.dfm import DFM
from dfm_mlflow.errors import DfmError, FitError

from .test_dfm import low_rank


def test_rows_that_cannot_be_used():
    x = low_rank(20, 10)
    nan = x.copy()
    nan[3, 4] = np.inf
    for bad, y, words in (
        (nan, None, "NaN or infinite"),
        (np.ones((5, 4)), None, "All rows of features are equal"),
        (x, np.zeros(19), r"y has shape \(19,\) and X has 20 rows"),
        (x[:1], None, "1 sample"),
        (x[0], None, "1D array"),
    ):
        with pytest.raises(DfmError, match=words) as caught:
            DFM().fit(bad, y)
        assert "\n" not in str(caught.value)
    dfm = DFM().fit(x)
    for rows in (x[:, :9], torch.tensor(x[:, :9])):
        with pytest.raises(FitError, match="expecting 10 features"):
            dfm.fre(rows)
    with pytest.raises(FitError, match="NaN or infinite"):
        dfm.nll(nan)
    with pytest.raises(FitError, match="NaN or infinite"):
        dfm.nll(torch.tensor(nan))
    whole = torch.tensor(x.round()).to(torch.int64)
    np.testing.assert_allclose(dfm.fre(whole).numpy(), dfm.fre(x.round()), rtol=1e-9)
    np.testing.assert_allclose(DFM().fit(torch.tensor(x)).fre(x), dfm.fre(x))
    with pytest.raises(FitError, match="at most 10 directions"):
        DFM(50).fit_batches(lambda: [(x, None)])
    with pytest.raises(FitError, match="one label for each row"):
        DFM().fit_batches(lambda: [(x, np.zeros(3))])
    with pytest.raises(FitError, match=r"features: give those of at least one class"):
        DFM.from_moments({})
    with pytest.raises(NotFittedError):
        DFM().predict(x)
