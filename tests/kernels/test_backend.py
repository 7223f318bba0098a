"""The backend of a forward is that of its backward, whatever thread autograd runs it in."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import fastscore
from fastscore import use_backend
from fastscore.ops import _dispatch


class Network(nn.Module):
    """Not one that is recognised."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(self.linear(x)).sin()


def hutchinson(net, x, chunk_size=None, probe="rademacher"):
    return fastscore.implicit_score_matching(
        net, x, trace="hutchinson", n_probes=2, probe=probe, seed=0, chunk_size=chunk_size
    )


LOSSES = {
    "contraction": (Network, hutchinson),
    "contraction in pieces": (Network, lambda net, x: hutchinson(net, x, 4)),
    "contraction in pieces, normal": (Network, lambda net, x: hutchinson(net, x, 4, "normal")),
    "loss": (lambda: fastscore.ScoreMLP(3, 8), fastscore.implicit_score_matching),
    "terms": (lambda: fastscore.ScoreMLP(3, 8), lambda net, x: fastscore.divergence(net, x).trace.square().sum()),
    "denoising": (
        lambda: fastscore.ScoreMLP(3, 8),
        lambda net, x: fastscore.denoising_score_matching(net, x, sigma=0.1, seed=0),
    ),
    "step": (
        lambda: fastscore.ScoreMLP(3, 8),
        lambda net, x: fastscore.langevin_step(x, net(x), step_size=0.1, seed=0, step=0).square().sum(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_backward_of_another_thread(name, device, monkeypatch):
    """As that of a GPU is, which knows of no `with` block: under "torch" it launches nothing, and is right."""
    make, loss = LOSSES[name]
    torch.manual_seed(0)
    net, x = make().to(device), torch.randn(8, 3).to(device)
    parameters = list(net.parameters())
    launched, find = [], _dispatch.kernels

    def watched(*given):
        if (found := find(*given)) is not None:
            launched.append(given)
        return found

    monkeypatch.setattr(_dispatch, "kernels", watched)
    found, errors = [], []

    def backward(value):
        try:
            with use_backend("triton"):
                found.append(torch.autograd.grad(value, parameters, allow_unused=True))
        except Exception as error:
            errors.append(error)

    with use_backend("torch"):
        value = loss(net, x)
        true = torch.autograd.grad(loss(net, x), parameters, allow_unused=True)
        thread = threading.Thread(target=backward, args=(value,))
        thread.start()
        thread.join()
    assert not errors and not launched
    for got, wanted in zip(found[0], true, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
