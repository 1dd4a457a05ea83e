"""Networks built from the fused layers, each with a twin of the same keys in stock layers."""

from imgfast.models.classifier import (
    ACTIVATIONS,
    LAYERS,
    MONOTONE,
    NORMS,
    POOLS,
    PRESETS,
    Classifier,
    ClassifierConfig,
    build_classifier,
    classifier_config,
)
from imgfast.models.cost import Cost, GeneratorCost, cost, generator_cost
from imgfast.models.generator import (
    GUIDANCE,
    Generator,
    GeneratorConfig,
    build_generator,
    generator_config,
    usual_temperature,
)

__all__ = [
    "ACTIVATIONS",
    "GUIDANCE",
    "LAYERS",
    "MONOTONE",
    "NORMS",
    "POOLS",
    "PRESETS",
    "Classifier",
    "ClassifierConfig",
    "Cost",
    "Generator",
    "GeneratorConfig",
    "GeneratorCost",
    "build_classifier",
    "build_generator",
    "classifier_config",
    "cost",
    "generator_config",
    "generator_cost",
    "usual_temperature",
]
