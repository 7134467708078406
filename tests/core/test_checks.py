import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_mlflow.core.checks import check_n_components
from dfm_mlflow.errors import FitError


@given(st.floats(0, 1, exclude_min=True) | st.integers(1, 10**6))
def test_a_share_is_a_float_and_a_number_is_whole(n_components):
    check_n_components(n_components)
    check_n_components(np.asarray(n_components)[()])  # NumPy's scalars as well


@pytest.mark.parametrize("n_components", [0, -1, 0.0, 1.5, -0.5, float("nan"), True, "0.9", None])
def test_anything_else_is_refused(n_components):
    with pytest.raises(FitError, match=r"^n_components=.* is out of range") as caught:
        check_n_components(n_components)
    assert repr(n_components) in str(caught.value)
