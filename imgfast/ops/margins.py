"""Margins on the angle theta between a row's features and the weight vector of its class.

Sources: J. Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (2019),
eq. 3; H. Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition" (2018), eq. 4.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

EPS = 1e-12  # as in torch.nn.functional.normalize: shorter vectors are divided by it


class Margin(NamedTuple):
    name: str  # "arcface" or "cosface"
    size: float  # m
    scale: float

    def logits(self, cosine):
        """scale cos(theta + m) for ArcFace, scale (cos(theta) - m) for CosFace; differentiable.

        Beyond theta = pi - m, where cos(theta + m) would rise again, ArcFace goes on with
        scale (cos(theta) - m sin(m)).
        """
        if self.name == "cosface":
            return self.scale * (cosine - self.size)
        sine, _ = _sine(cosine)
        turned = cosine * math.cos(self.size) - sine * math.sin(self.size)
        beyond = cosine - self.size * math.sin(self.size)
        return self.scale * torch.where(self._turns(cosine), turned, beyond)

    def slope(self, cosine):
        """The derivative of :meth:`logits` by scale cos(theta)."""
        if self.name == "cosface":
            return torch.ones_like(cosine)
        sine, there = _sine(cosine)
        cotangent = torch.where(there, cosine / sine, 0)
        turned = math.cos(self.size) + cotangent * math.sin(self.size)
        return torch.where(self._turns(cosine), turned, 1)

    def _turns(self, cosine):
        return cosine > -math.cos(self.size)


def _sine(cosine):
    """sin(theta), and where its derivative is finite: it is taken for 0 where cos(theta) is 1."""
    squared = 1 - cosine * cosine
    there = squared > 0
    return torch.where(there, torch.where(there, squared, 1).sqrt(), 0), there


def normalize(vectors, scale=1.0):
    """The rows with norm ``scale``; and the norms they had, ``[n, 1]``."""
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(EPS)
    return vectors * (scale / norm), norm


def through_normalize_(grad, vectors, norm, scale=1.0):
    """Turns the gradient at ``normalize(vectors, scale)`` into that at vectors, in place."""
    unit = vectors.to(grad.dtype) / norm
    along = (grad * unit).sum(1, keepdim=True)
    along = torch.where(norm > EPS, along, 0)  # a constant was divided by
    return grad.addcmul_(unit, along, value=-1).mul_(scale / norm)


def margin_logits(input, linear_weight, target, margin):
    """All logits ``[N, C]``, as a composition of torch's operators.

    Targets that are no class change nothing.
    """
    cosines = F.linear(F.normalize(input), F.normalize(linear_weight))
    is_class = (target >= 0) & (target < linear_weight.shape[0])
    at = torch.where(is_class, target, 0).unsqueeze(1)
    logits = margin.scale * cosines
    own = torch.where(
        is_class.unsqueeze(1), margin.logits(cosines.gather(1, at)), logits.gather(1, at)
    )
    return logits.scatter(1, at, own)
