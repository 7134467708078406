import pytest

from ..detectors import fit


@pytest.fixture(scope="module")
def detector():
    return fit()
