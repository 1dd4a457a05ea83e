"""Pictures a second of a generator's parts beside the same networks in stock PyTorch.

As :mod:`imgfast.engine.compare`: equal weights, checked to give equal pictures and losses, both
layouts, interleaved, medians. Training steps are those of training, with losses and optimizer; the
features of the perceptual loss come from an untrained classifier, which takes the same time.
"""

from __future__ import annotations

import torch

from imgfast.data import ImageSet
from imgfast.engine.compare import LAYOUTS, Comparison, compare_task
from imgfast.engine.generation.perceptual import PerceptualLoss
from imgfast.engine.generation.prior_step import PriorStep
from imgfast.engine.generation.tokenizer_step import TokenizerStep
from imgfast.engine.generation.train import feature_recipe
from imgfast.engine.generation.train_config import GeneratorTrainConfig
from imgfast.models import LAYERS, GeneratorConfig, build_classifier, build_generator

_SECONDS_PER_TASK = 6.0


def compare_generator(
    config: GeneratorConfig, batch_size: int = 128, seconds: float = _SECONDS_PER_TASK
) -> list[Comparison]:
    """Time decoding, a training step of the tokenizer and one of the prior, on the CPU.

    Args:
        config: the network.
        batch_size: pictures in one call.
        seconds: about how long each task is timed, all variants together.

    Raises:
        AssertionError: the two sides do not compute the same.
    """
    sides = {
        (layers, layout): _Side(config, layers, layout, batch_size)
        for layers in LAYERS
        for layout in LAYOUTS
    }
    reference = sides["stock", "NCHW"].decode()
    for side in sides.values():
        torch.testing.assert_close(side.decode(), reference, rtol=1e-3, atol=1e-3)
    losses = {key: side.losses() for key, side in sides.items()}
    for found in losses.values():
        torch.testing.assert_close(found, losses["stock", "NCHW"], rtol=1e-2, atol=0)
    results = []
    for task in ("decoding", "tokenizer step", "prior step"):
        calls = {
            key: {
                "decoding": side.decode,
                "tokenizer step": side.tokenizer_step,
                "prior step": side.prior_step,
            }[task]
            for key, side in sides.items()
        }
        results.append(compare_task(task, calls, batch_size, seconds))
    return results


class _Side:
    """One generator in one kind of layers and one layout, with everything its steps need."""

    def __init__(self, config: GeneratorConfig, layers: str, layout: str, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, config.channels, config.image_size, config.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, len(config.classes), (batch,), generator=generator)
        self.codes = torch.randint(
            0, config.codes, (batch, config.side, config.side), generator=generator
        )
        data = ImageSet("random", images, labels, config.classes, config.mean, config.std)
        recipe = GeneratorTrainConfig(
            epochs=1, layers=layers, batch_size=batch, prior_batch_size=batch
        )
        self.model = build_generator(config, layers).to(memory_format=LAYOUTS[layout])
        perceptual = None
        if len(config.classes) > 1:
            network = feature_recipe(recipe, data)[1]
            perceptual = PerceptualLoss(build_classifier(network, layers))
            perceptual.to(memory_format=LAYOUTS[layout])
        self.trained = build_generator(config, layers).to(memory_format=LAYOUTS[layout])
        self.tokenizer = TokenizerStep(recipe, self.trained.tokenizer, data, perceptual)
        self.prior = PriorStep(recipe, self.trained.prior, self.codes, labels)
        with torch.random.fork_rng(devices=[]):
            (self.batch,) = self.tokenizer.begin_epoch(1)
            self.prior.begin_epoch(1)

    @torch.inference_mode()
    def decode(self) -> torch.Tensor:
        return self.model.eval().tokenizer.decode(self.codes)

    def tokenizer_step(self, rate: float = 1e-3) -> torch.Tensor:
        return self.tokenizer.run(self.batch, rate)

    def prior_step(self, rate: float = 1e-3) -> torch.Tensor:
        return self.prior.run(self.batch, rate)

    def losses(self) -> torch.Tensor:
        """Of a step of each kind that changes nothing but the codes, which start with the first."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.stack([self.tokenizer_step(0.0), self.prior_step(0.0)])
