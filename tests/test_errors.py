import inspect
import pickle

import pytest

import dfm_mlflow
from dfm_mlflow import errors
from dfm_mlflow.errors import DfmError, ServerError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_one_root_and_crosses_processes(kind):
    assert issubclass(kind, DfmError)
    back = pickle.loads(pickle.dumps(kind("a sentence.")))
    assert (type(back), str(back)) == (kind, "a sentence.")


def test_the_status_of_a_server_crosses_processes():
    assert pickle.loads(pickle.dumps(ServerError("busy.", 503))).status == 503
    assert ServerError("away.").status is None


def test_the_root_is_public():
    assert dfm_mlflow.DfmError is DfmError
