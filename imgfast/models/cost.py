"""What a network costs: its parameters, and the multiply-adds of one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from imgfast.models.classifier import Classifier, ClassifierConfig
from imgfast.models.generator import Generator, GeneratorConfig


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
    return _counted(model, lambda: model(x))


@dataclass(frozen=True)
class GeneratorCost:
    """Size and work of a generator's two parts.

    Args:
        tokenizer, prior: of each; multiply-adds are of one picture that goes through encoder,
            codes and decoder, and of one pass of the prior over all of a picture's codes. Sampling
            takes as many, or twice as many with guidance.
    """

    tokenizer: Cost
    prior: Cost

    @property
    def parameters(self) -> int:
        """Of both."""
        return self.tokenizer.parameters + self.prior.parameters


def generator_cost(config: GeneratorConfig) -> GeneratorCost:
    """Count what a configuration builds; nothing is allocated or computed."""
    with torch.device("meta"):
        model = Generator(config, "stock").eval()
        x = torch.empty(1, config.channels, config.image_size, config.image_size)
        codes = torch.empty(1, config.side**2, dtype=torch.int64)
        label = torch.empty(1, dtype=torch.int64)
    return GeneratorCost(
        _counted(model.tokenizer, lambda: model.tokenizer(x)),
        _counted(model.prior, lambda: model.prior.logits(codes, label)),
    )


def _counted(part: nn.Module, run: Callable[[], object]) -> Cost:
    """Of a network on the meta device, and of what ``run`` runs of it."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    trained = sum(value.numel() for value in part.parameters() if value.requires_grad)
    return Cost(trained, counter.get_total_flops() // 2)
