"""The public functions run on the emulated kernels while these are installed, and not after."""

import functools

import emulated_operators
import torch

import imgfast
from imgfast.ops import conv_relu_pool_route
from imgfast.ops import linear_cross_entropy_route as route


def test_public_functions_run_on_them_until_they_are_removed(monkeypatch):
    monkeypatch.setattr(route, "SMALL", 0)  # logits from which on there are tiles
    called = set()

    def recorded(operator):
        @functools.wraps(operator)
        def run(*arguments):
            called.add(operator.__name__)
            return operator(*arguments)

        return run

    operators = [recorded(operator) for operator in emulated_operators.OPERATORS]
    monkeypatch.setattr(emulated_operators, "OPERATORS", operators)

    def gradients(algorithms):
        called.clear()
        logits, target = torch.linspace(-2, 2, 15).view(3, 5).requires_grad_(), torch.arange(3)
        x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4).requires_grad_()
        weight = torch.linspace(-1, 1, 54).view(2, 3, 3, 3).requires_grad_()
        total = imgfast.cross_entropy(logits, target, reduction="none").sum()
        total = total + imgfast.cross_entropy(logits, target, grad_in_forward=True)
        total = total + imgfast.linear_cross_entropy(logits, logits, target)
        y = imgfast.upsample_conv_relu(x, weight, algorithm="direct")
        total = total + y.square().sum()
        for algorithm in algorithms:
            y = imgfast.conv_relu_pool(x, weight, algorithm=algorithm)
            total = total + y.square().sum()
        return torch.autograd.grad(total, (logits, x, weight))

    with monkeypatch.context() as patch, emulated_operators.installed():
        patch.setattr(conv_relu_pool_route, "EPILOGUE_DEVICES", ("cpu",))
        emulated = gradients(["direct", "epilogue"])
        assert called == {operator.__name__ for operator in operators}
    of_cpu = gradients(["direct", "direct"])
    assert not called
    torch.testing.assert_close(emulated, of_cpu)
