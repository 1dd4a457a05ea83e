"""Optimizers, the learning-rate cycle and the moving average, against their formulas."""

import math

import pytest
import torch
from torch import nn

from imgfast.engine import TrainConfig
from imgfast.engine.optimizer import (
    MovingAverage,
    build_optimizers,
    clip_gradients,
    one_cycle,
    optimizer_tensors,
    restore_optimizers,
    straight_cycle,
)
from imgfast.models import build_classifier, classifier_config
from imgfast.ops.muon import muon_stock_

CONFIG = classifier_config("tiny", ("coat", "dress", "shoe"), 1, 28, (0.3,), (0.35,))


def test_one_cycle():
    assert one_cycle(0.0, 0.25) == 0 and one_cycle(0.125, 0.25) == 0.5
    assert one_cycle(0.25, 0.25) == 1
    assert one_cycle(0.625, 0.25) == pytest.approx(0.5)  # half of the way down
    assert one_cycle(1.0, 0.25) == pytest.approx(0)


def test_straight_cycle():
    shares = [straight_cycle(progress, 0.25) for progress in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert shares == [0.0, 0.5, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_is_for_filters_and_adamw_for_the_rest(layout, layers):
    config = TrainConfig(optimizer="muon", lr=0.01, weight_decay=0.1, layers=layers)
    model = build_classifier(CONFIG).to(memory_format=layout)
    values = list(model.parameters())
    expected = [value.detach().clone().requires_grad_() for value in values]
    filters = [value for value in expected if value.ndim == 4]
    averages = [torch.zeros_like(value) for value in filters]
    other = torch.optim.AdamW([v for v in expected if v.ndim != 4], lr=0.01, weight_decay=0.1)
    optimizers = build_optimizers(model, config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for value, twin in zip(values, expected, strict=True):
            value.grad = twin.grad = torch.randn(value.shape, generator=generator)
        for optimizer in (*optimizers, other):
            optimizer.step()
        with torch.no_grad():
            muon_stock_(filters, [value.grad for value in filters], averages, 0.01, 0.1)
    for value, twin in zip(values, expected, strict=True):
        torch.testing.assert_close(value, twin, rtol=0, atol=1e-5)
    start = build_classifier(CONFIG).stages.conv2.weight
    assert (model.stages.conv2.weight - start).abs().mean() > 2e-3  # and it did move


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_restored_optimizers_go_on_with_the_same_bits(name):
    config = TrainConfig(optimizer=name)

    def steps(model, optimizers, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            for value in model.parameters():
                value.grad = torch.empty_like(value).copy_(
                    torch.randn(value.shape, generator=generator)
                )
            for optimizer in optimizers:
                optimizer.step()

    model = build_classifier(CONFIG).to(memory_format=torch.channels_last)
    optimizers = build_optimizers(model, config)
    steps(model, optimizers, 0)
    again = build_classifier(CONFIG).to(memory_format=torch.channels_last)
    again.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    kept = {key: value.clone().contiguous() for key, value in optimizer_tensors(optimizers)}
    restored = build_optimizers(again, config)
    restore_optimizers(restored, kept)
    assert {key for key, _ in optimizer_tensors(restored)} == set(kept)
    for pair in ((model, optimizers), (again, restored)):
        steps(*pair, 1)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for wrong in ("0.99.step", "9.0.step", "x", "0.y.step"):
        with pytest.raises(ValueError, match="must belong to a parameter"):
            restore_optimizers(restored, {wrong: torch.zeros(())})
    with pytest.raises(ValueError, match="or a number"):
        restore_optimizers(restored, {"0.0.exp_avg": torch.zeros(7)})


def test_the_moving_average_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = MovingAverage(model, decay=0.5)
    expected = math.nan
    for count, weight in enumerate((1.0, 2.0, -3.0, 8.0, 1.0, 6.0, 0.0, 4.0, 5.0, 2.0)):
        with torch.no_grad():
            model[0].weight.fill_(weight)
        model[1].running_mean.fill_(weight)
        model[1].num_batches_tracked.fill_(count)
        average.update()
        keep = min(0.5, (1 + count) / (10 + count))
        expected = weight if count == 0 else keep * expected + (1 - keep) * weight
        assert average.module[0].weight.item() == pytest.approx(expected, rel=1e-5)
        # Batch norm's buffers are copied, not averaged.
        assert average.module[1].running_mean.item() == weight
        assert average.module[1].num_batches_tracked.item() == count


@pytest.mark.parametrize("largest", [1e-3, 1e3, math.nan])
def test_clipped_gradients_are_torchs(largest):
    model, other = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    for weight, twin in zip(model.parameters(), other.parameters(), strict=True):
        weight.grad = torch.randn_like(weight)
        twin.grad = weight.grad.clone()
    if math.isnan(largest):
        model.bias.grad[1] = other.bias.grad[1] = largest
        largest = 1.0
    clip_gradients(list(model.parameters()), largest)
    nn.utils.clip_grad_norm_(other.parameters(), largest)
    for weight, twin in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, twin.grad, equal_nan=True)
