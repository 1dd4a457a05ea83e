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
from imgfast.models.cost import Cost, cost

__all__ = [
    "ACTIVATIONS",
    "LAYERS",
    "MONOTONE",
    "NORMS",
    "POOLS",
    "PRESETS",
    "Classifier",
    "ClassifierConfig",
    "Cost",
    "build_classifier",
    "classifier_config",
    "cost",
]
