import threading

import pytest
import torch
from torch import nn

from dfm_mlflow.errors import BackboneError
from dfm_mlflow.network import backbones
from dfm_mlflow.network.backbones import build_backbone
from dfm_mlflow.network.tracing import running, tracing

SIZE = (64, 64)


@torch.inference_mode()
def test_a_tensor_made_by_the_code_is_not_asked_of_the_weights(monkeypatch):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) * torch.tensor([0.5])

    monkeypatch.setattr(backbones, "_architecture", lambda name, size: Network())
    state = Network().state_dict()

    def give(needed):
        assert needed == set(state)
        return state

    first = build_backbone("network", ("mul",), SIZE, give)
    again = build_backbone("network", ("mul",), SIZE, folded=first.state())
    x = torch.randn(1, 3, *SIZE)
    expected = nn.functional.conv2d(x, state["conv.weight"], state["conv.bias"]) * 0.5
    torch.testing.assert_close(first.module(x)["mul"], expected)
    assert torch.equal(again.module(x)["mul"], first.module(x)["mul"])


def test_a_network_that_cannot_be_traced_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(BackboneError, match=r"levit_128 gives no grid of tokens.*convolutional"):
        build_backbone("timm:levit_128", ("stride:16",), SIZE)  # its attention caches a tensor


def test_a_trace_waits_for_forward_passes_and_they_wait_for_it():
    order, entered, go = [], threading.Event(), threading.Event()

    def trace():
        with tracing():
            order.append("trace")
            entered.set()
            assert go.wait(20)
            order.append("traced")

    def forward():
        with running():
            order.append("forward")

    with running(), running():  # forward passes do not wait for each other
        tracer = threading.Thread(target=trace)
        tracer.start()
        assert not entered.wait(0.1)
    assert entered.wait(20)
    second = threading.Thread(target=forward)
    second.start()
    second.join(0.1)
    assert order == ["trace"]
    go.set()
    for thread in (tracer, second):
        thread.join(20)
    assert order == ["trace", "traced", "forward"]


def test_a_failure_lets_the_others_on():
    for context in (tracing, running):
        with pytest.raises(ZeroDivisionError), context():
            raise ZeroDivisionError
    with tracing():
        pass
    with running():
        pass
