"""Which pixels speak for a class: Grad-CAM, integrated gradients and occlusion, by captum.

Every method gives one heat map a picture, ``[N, S, S]``: above zero speaks for the class, below
zero against it, and zero is the mean picture's share. Where a method needs a picture without
information, that is the mean picture of the training set, all zeros after normalisation.

Everything is deterministic: the same pictures, class and checkpoint give the same maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from imgfast.data import normalise
from imgfast.engine.stock_twin import stock_twin
from imgfast.models import Classifier

METHODS = ("grad-cam", "integrated-gradients", "occlusion")

# Pictures that go through the network at once: as many as have this many pixels together.
_PIXELS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Completeness:
    """The check of integrated gradients: the attributions of a picture sum to the difference of
    the class's logit between the picture and the mean picture.

    Args:
        total: sum of the attributions, float32 ``[N]``.
        difference: of the two logits, float32 ``[N]``.
    """

    total: torch.Tensor
    difference: torch.Tensor

    @property
    def error(self) -> torch.Tensor:
        """``|total - difference| / max(|difference|, 1)``, float32 ``[N]``.

        Below a logit of 1 the error is absolute: a difference near zero says nothing about the
        quality of the integral.
        """
        return (self.total - self.difference).abs() / self.difference.abs().clamp(min=1)


def last_feature_map(twin: nn.Module) -> nn.Module:
    """The module whose output is the last convolution's after its activation.

    Args:
        twin: a network in stock layers, whose modules are registered in the order they run in.

    Raises:
        ValueError: it has no convolution.
    """
    leaves = [module for module in twin.modules() if not any(module.children())]
    places = [place for place, module in enumerate(leaves) if isinstance(module, nn.Conv2d)]
    if not places:
        raise ValueError("explain: grad-cam needs a network with a convolution, this has none")
    behind = leaves[places[-1] :]
    activations = nn.modules.activation.__name__
    return next((leaf for leaf in behind if type(leaf).__module__ == activations), behind[0])


def grad_cam(model: Classifier, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``relu(sum_k mean(d logit / d A_k) A_k)`` of the last feature map A, resized to the picture.

    The map is taken from :func:`stock_twin`, behind the last convolution's activation: before the
    pooling, where it is finest, unless the network pools between the two.

    Args:
        model: the classifier, in either kind of layers.
        images: uint8 ``[N, C, S, S]``.
        target: int64 ``[N]``, the class to explain in each picture.

    Returns:
        float32 ``[N, S, S]``, at least 0.

    Source:
        Selvaraju et al., Grad-CAM, 2017, arXiv:1610.02391, equations 1 and 2.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    twin = stock_twin(model)
    method = LayerGradCam(twin, last_feature_map(twin))
    size = tuple(images.shape[-2:])
    maps = []
    for x, classes in _batches(model, images, target):
        coarse = method.attribute(x.requires_grad_(), classes, relu_attributions=True)
        maps.append(LayerAttribution.interpolate(coarse, size, "bilinear")[:, 0].detach())
    return _joined(maps, images)


def integrated_gradients(
    model: Classifier, images: torch.Tensor, target: torch.Tensor, steps: int = 64
) -> tuple[torch.Tensor, Completeness]:
    """``x * integral over a in [0, 1] of d logit / dx at a x``, summed over the channels.

    ``x`` is the normalised picture, so that the path starts at the mean picture.

    Args:
        model, images, target: as in :func:`grad_cam`.
        steps: points of the Gauss-Legendre quadrature.

    Returns:
        float32 ``[N, S, S]``, and how well they sum to the difference of logits.

    Source:
        Sundararajan et al., Axiomatic attribution, 2017, arXiv:1703.01365, equation 1 and
        proposition 1.
    """
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model.eval())
    maps, totals, differences = [], [], []
    for x, classes in _batches(model, images, target):
        values, delta = method.attribute(
            x.requires_grad_(),
            target=classes,
            n_steps=steps,
            internal_batch_size=max(len(x), _at_once(images)),
            return_convergence_delta=True,
        )
        values = values.detach()
        maps.append(values.sum(1))
        totals.append(values.flatten(1).sum(1))
        differences.append(totals[-1] - delta.float())
    return _joined(maps, images), Completeness(_joined(totals), _joined(differences))


def occlusion(model: Classifier, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How far the class's log-probability falls when a patch shows the mean picture.

    The patch, a seventh of the picture wide, moves by half its width; a pixel gets the mean over
    the patches that cover it.

    Args:
        model, images, target: as in :func:`grad_cam`.

    Returns:
        float32 ``[N, S, S]``, in nats.

    Source:
        Zeiler and Fergus, Visualizing and understanding convolutional networks, 2014, section
        4.2, with the logarithm of the probability: the probability itself saturates near 1.
    """
    from captum.attr import Occlusion

    channels, size = images.shape[1], images.shape[-1]
    side = max(1, round(size / 7))
    method = Occlusion(lambda x: model(x).float().log_softmax(1))
    model.eval()
    maps = []
    for x, classes in _batches(model, images, target):
        with torch.no_grad():
            values = method.attribute(
                x,
                sliding_window_shapes=(channels, side, side),
                strides=(channels, max(1, side // 2), max(1, side // 2)),
                target=classes,
                perturbations_per_eval=max(1, _at_once(images) // len(x)),
            )
        maps.append(values[:, 0])  # a patch covers all channels, so that they are all alike
    return _joined(maps, images)


def _batches(model: Classifier, images: torch.Tensor, target: torch.Tensor):
    """Normalised pictures and their classes, few enough for one pass on the model's device."""
    device = next(model.parameters()).device
    count = min(64, _at_once(images))
    for pixels, classes in zip(images.split(count), target.split(count), strict=True):
        if len(pixels):
            x = normalise(pixels.to(device), model.config.mean, model.config.std)
            yield x, classes.to(device)


def _at_once(images: torch.Tensor) -> int:
    return max(1, _PIXELS_AT_ONCE // images[0].numel()) if len(images) else 1


def _joined(parts: list[torch.Tensor], images: torch.Tensor | None = None) -> torch.Tensor:
    if parts:
        return torch.cat(parts).float().cpu()
    return torch.zeros(0) if images is None else torch.zeros(0, *images.shape[-2:])
