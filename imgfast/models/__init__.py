"""Networks built from the fused layers, each with a twin of the same keys in stock layers."""

from imgfast.models.classifier import (
    LAYERS,
    PRESETS,
    Classifier,
    ClassifierConfig,
    build_classifier,
    classifier_config,
)

__all__ = [
    "LAYERS",
    "PRESETS",
    "Classifier",
    "ClassifierConfig",
    "build_classifier",
    "classifier_config",
]
