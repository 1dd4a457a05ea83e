"""What a network costs: its parameters, and the multiply-adds of one picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from imgfast.models.classifier import Classifier, ClassifierConfig


@dataclass(frozen=True)
class Cost:
    """Size and work of a network.

    Args:
        parameters: numbers that training changes.
        multiply_adds: of convolutions and the linear layer, for one picture in inference; a
            training step takes about three times as many. Algorithms that need fewer, such as
            Winograd's, are not counted as such.
    """

    parameters: int
    multiply_adds: int


def cost(config: ClassifierConfig) -> Cost:
    """Count what a configuration builds; nothing is allocated or computed."""
    with torch.device("meta"):
        model = Classifier(config, "stock").eval()
        x = torch.empty(1, config.channels, config.image_size, config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    trained = (value.numel() for value in model.parameters() if value.requires_grad)
    return Cost(sum(trained), counter.get_total_flops() // 2)
