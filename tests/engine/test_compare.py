"""The comparison with stock PyTorch checks its two sides before it times them."""

import dataclasses

import pytest
import torch

from imgfast.engine import compare
from imgfast.models import Classifier, classifier_config

CONFIG = classifier_config("tiny", ("a", "b", "c"), 1, 28, (0.3,), (0.35,))


@pytest.mark.parametrize("change", [{}, {"norm": "batch", "convolutions": 2, "widths": (8, 16)}])
def test_both_tasks_are_timed_on_both_sides(change):
    found = compare(dataclasses.replace(CONFIG, **change), batch_size=16, seconds=0.1)
    assert [item.task for item in found] == ["inference", "training step"]
    for item in found:
        assert item.imgfast > 0 and item.stock > 0
        assert item.ratio == item.imgfast / item.stock
        assert item.to_dict()["ratio"] == item.ratio
    # A training step holds an inference.
    assert found[0].stock > found[1].stock


def test_sides_that_disagree_are_not_timed(monkeypatch):
    forward = Classifier.forward

    def wrong(self, x):
        fused = "relu1" not in dict(self.stages.named_children())
        return forward(self, x) + (0.1 if fused else 0.0)

    monkeypatch.setattr(Classifier, "forward", wrong)
    with pytest.raises(AssertionError, match="not close"):
        compare(CONFIG, batch_size=4, seconds=0.1)
    assert torch.is_grad_enabled()
