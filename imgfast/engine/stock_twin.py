"""A classifier unfused: the same weights in stock layers."""

from __future__ import annotations

from imgfast.models import Classifier, build_classifier


def stock_twin(model: Classifier) -> Classifier:
    """The same network in stock layers, in eval mode and without gradients of its weights.

    A fused layer never stores the convolution's output, here it exists; and the twin has no
    operator of imgfast's, so that other programs understand it.

    Args:
        model: the classifier, in either kind of layers; it stays as it is.
    """
    twin = build_classifier(model.config, layers="stock")
    twin.load_state_dict(model.state_dict())
    return twin.to(next(model.parameters()).device).eval().requires_grad_(False)
