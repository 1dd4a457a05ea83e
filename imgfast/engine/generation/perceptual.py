"""How alike two pictures look: the distance of what a classifier of our own makes of them.

Squared pixel errors alone give blurred pictures, as a blur is the mean of what might be there. The
features of a classifier tell an edge from a blur.

Source: J. Johnson, A. Alahi and L. Fei-Fei, "Perceptual losses", 2016, arXiv:1603.08155; R. Zhang
et al., "The unreasonable effectiveness of deep features", 2018, arXiv:1801.03924.
"""

from __future__ import annotations

import torch
from torch import nn

from imgfast.models import Classifier


class PerceptualLoss(nn.Module):
    """``sum over stages of mean (f(y) - f(x))^2 / mean f(x)^2``, f a stage's output: of a
    convolution with what belongs to it, activation and pool.

    Args:
        model: a trained classifier without norm, in either kind of layers; it is kept without
            gradients of its weights.
        stages: how many of its stages count.
    """

    def __init__(self, model: Classifier, stages: int = 3) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_by_convolution(model)[:stages])
        self.eval().requires_grad_(False)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The distance of pictures ``y`` from ``x``, float ``[N, C, S, S]``, normalised; only ``y``
        gets a gradient."""
        with torch.no_grad():
            targets = self._features(x)
        loss = y.new_zeros(())
        for found, target in zip(self._features(y), targets, strict=True):
            loss = loss + _RelativeDistance.apply(found, target)
        return loss

    def _features(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class _RelativeDistance(torch.autograd.Function):
    """``mean (f - t)^2 / mean t^2``, in one pass of its gradient, which lies in memory as f does:
    torch's losses have one in rows of pixels, which the layers below would have to turn around."""

    @staticmethod
    def forward(ctx, found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        away = found - target
        ctx.length = torch.linalg.vector_norm(target, dtype=torch.float32).square()
        ctx.save_for_backward(away)
        return torch.linalg.vector_norm(away, dtype=torch.float32).square() / ctx.length

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (away,) = ctx.saved_tensors
        return (away * (2 * grad / ctx.length)).to(away.dtype), None


def _by_convolution(model: Classifier) -> list[nn.Sequential]:
    """Its stages; one is one module of fused layers, and several of stock ones."""
    stages: list[nn.Sequential] = []
    for module in model.stages:
        if isinstance(module, nn.Conv2d):
            stages.append(nn.Sequential())
        stages[-1].append(module)
    return stages
