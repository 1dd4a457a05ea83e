"""Optimizers, the learning-rate cycle and the moving average, against their formulas."""

import math

import pytest
import torch
from torch import nn

from imgfast.engine import TrainConfig
from imgfast.engine.optimizer import (
    build_optimizers,
    moving_average,
    one_cycle,
    optimizer_tensors,
    restore_optimizers,
)
from imgfast.models import build_classifier, classifier_config

CONFIG = classifier_config("tiny", ("coat", "dress", "shoe"), 1, 28, (0.3,), (0.35,))


def test_one_cycle():
    assert one_cycle(0.0, 0.25) == 0 and one_cycle(0.125, 0.25) == 0.5
    assert one_cycle(0.25, 0.25) == 1
    assert one_cycle(0.625, 0.25) == pytest.approx(0.5)  # half of the way down
    assert one_cycle(1.0, 0.25) == pytest.approx(0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_filters_to_a_half_orthogonal_matrix(layout):
    """Torch's Muon of the flattened weights, in either layout; AdamW for all else."""
    config = TrainConfig(optimizer="muon", lr=0.01, weight_decay=0.1)
    model = build_classifier(CONFIG).to(memory_format=layout)
    # As Muon is defined: on a matrix of its own.
    matrices = {
        name: nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format).flatten(1))
        for name, value in model.named_parameters()
        if value.ndim == 4
    }
    reference = torch.optim.Muon(
        matrices.values(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = [
        nn.Parameter(value.detach().clone()) for value in model.parameters() if value.ndim != 4
    ]
    other = torch.optim.AdamW(adamw, lr=0.01, weight_decay=0.1)
    optimizers = build_optimizers(model, config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        rest = iter(adamw)
        for name, value in model.named_parameters():
            value.grad = torch.randn(value.shape, generator=generator)
            if value.ndim == 4:
                matrices[name].grad = value.grad.flatten(1)
            else:
                next(rest).grad = value.grad
        for optimizer in (*optimizers, reference, other):
            optimizer.step()
    rest = iter(adamw)
    for name, value in model.named_parameters():
        if value.ndim == 4:
            # Torch's iteration runs in bfloat16, ours in float32.
            torch.testing.assert_close(value.flatten(1), matrices[name], rtol=0, atol=1e-3)
        else:
            torch.testing.assert_close(value, next(rest))
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
    average = moving_average(model, decay=0.5)
    expected = math.nan
    for count, weight in enumerate((1.0, 2.0, -3.0, 8.0, 1.0, 6.0, 0.0, 4.0, 5.0, 2.0)):
        with torch.no_grad():
            model[0].weight.fill_(weight)
        model[1].running_mean.fill_(weight)
        model[1].num_batches_tracked.fill_(count)
        average.update_parameters(model)
        keep = min(0.5, (1 + count) / (10 + count))
        expected = weight if count == 0 else keep * expected + (1 - keep) * weight
        assert average.module[0].weight.item() == pytest.approx(expected, rel=1e-5)
        # Batch norm's buffers are copied, not averaged.
        assert average.module[1].running_mean.item() == weight
        assert average.module[1].num_batches_tracked.item() == count
