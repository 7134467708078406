import pytest
import torch

from dfm_mlflow.errors import DeviceError
from dfm_mlflow.network.device import choose_device, choose_precision, half_precision

from .conftest import CPU


def test_devices(monkeypatch):
    monkeypatch.delenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(DeviceError, match="0 CUDA devices"):
        choose_device("cuda:3")
    with pytest.raises(DeviceError, match="not known"):
        choose_device("tpu")
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cuda")
    with pytest.raises(DeviceError, match="CUDA devices"):
        choose_device(None)
    assert choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match="fp16 needs a CUDA device"):
        choose_precision("fp16", CPU)


def test_half_precision_of_a_processor_is_what_it_computes_natively(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert half_precision(CPU) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert half_precision(CPU) == "bf16"
    cuda = torch.device("cuda:0")
    for capability, name in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        assert half_precision(cuda) == name
