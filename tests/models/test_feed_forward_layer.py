"""The feed-forward half of a block: the kernel gives what the layers give."""

import pytest
import torch

from imgfast.models.feed_forward import FeedForward


def twins(width, threshold=0.3):
    torch.manual_seed(0)
    ours, stock = FeedForward(width, threshold), FeedForward(width, threshold, "stock")
    torch.nn.init.normal_(ours.down.weight, std=0.1)
    stock.load_state_dict(ours.state_dict())
    return ours.double(), stock.double()


@pytest.mark.parametrize("shape", [(5, 7, 8), (1, 8), (0, 8), (3, 0, 8), (2, 3, 11, 8)])
def test_value_and_gradients_are_those_of_the_layers(shape):
    ours, stock = twins(8)
    x = torch.randn(shape, dtype=torch.float64)
    found = []
    for model in (ours, stock):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.backward(x.cos())
        found.append((y, leaf.grad, model.up.weight.grad, model.down.weight.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_strides_of_the_caller():
    ours, stock = twins(8)
    x = torch.randn(8, 6, 5, dtype=torch.float64).permute(1, 2, 0)
    torch.testing.assert_close(ours(x), stock(x))


def test_autocast_takes_the_layers():
    ours, _ = twins(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.float()(torch.randn(3, 8)).dtype == torch.bfloat16


def test_a_new_one_gives_zeros():
    assert not FeedForward(8, 0.0)(torch.randn(3, 8)).any()
