"""The feed-forward half of a block, in either kind of layers; the operator has tests of its own."""

import pytest
import torch

from imgfast.models.feed_forward import FeedForward


@pytest.mark.parametrize("residual", [False, True])
def test_value_and_gradients_are_those_of_stock_layers(residual):
    torch.manual_seed(0)
    ours, stock = FeedForward(8, 0.3).double(), FeedForward(8, 0.3, "stock").double()
    torch.nn.init.normal_(ours.down.weight, std=0.1)
    stock.load_state_dict(ours.state_dict())
    x, other = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    found = []
    for model in (ours, stock):
        leaves = [x.clone().requires_grad_(), *([other.clone().requires_grad_()] * residual)]
        y = model(*leaves)
        y.backward(x.cos())
        grads = [leaf.grad for leaf in leaves]
        found.append((y, *grads, model.up.weight.grad, model.down.weight.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
def test_a_new_one_gives_the_residual_or_zeros(layers):
    x, residual = torch.randn(2, 3, 8)
    model = FeedForward(8, 0.0, layers)
    assert not model(x).any()
    assert torch.equal(model(x, residual), residual)
