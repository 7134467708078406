import numpy as np
import pytest
import torch

from dfm_mlflow.core.dfm import DFM

from .test_dfm import three_classes


def test_torch_tensors_give_the_same_numbers():
    x, y = three_classes()
    dfm = DFM(0.9, score_type="fre").fit(x, y)
    t = torch.tensor(x)
    for name in ("fre", "nll", "score_samples", "decision_function", "predict"):
        ours = getattr(dfm, name)(t)
        assert isinstance(ours, torch.Tensor)
        np.testing.assert_allclose(ours.numpy(), getattr(dfm, name)(x), rtol=1e-9, atol=1e-9)
    assert (dfm.predict_class(t) == y).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_stay_on_their_device():
    x, y = three_classes()
    dfm = DFM(0.9).fit(x, y)
    scores = dfm.score_samples(torch.tensor(x, device="cuda"))
    assert scores.device.type == "cuda"
    np.testing.assert_allclose(scores.cpu().numpy(), dfm.score_samples(x), rtol=1e-9)
