"""Optimizers, the learning-rate cycle and the moving average, against their formulas."""

import math

import pytest
import torch
from torch import nn

from imgfast.engine import TrainConfig, muon
from imgfast.engine.optimizer import (
    build_optimizers,
    moving_average,
    one_cycle,
    optimizer_tensors,
    restore_optimizers,
    straight_cycle,
)
from imgfast.models import build_classifier, classifier_config

CONFIG = classifier_config("tiny", ("coat", "dress", "shoe"), 1, 28, (0.3,), (0.35,))


def test_one_cycle():
    assert one_cycle(0.0, 0.25) == 0 and one_cycle(0.125, 0.25) == 0.5
    assert one_cycle(0.25, 0.25) == 1
    assert one_cycle(0.625, 0.25) == pytest.approx(0.5)  # half of the way down
    assert one_cycle(1.0, 0.25) == pytest.approx(0)


def test_straight_cycle():
    shares = [straight_cycle(progress, 0.25) for progress in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert shares == [0.0, 0.5, 1.0, 0.5, 0.0]


def by_formula(weight, average, grad, lr, decay):
    """Muon's step in float64, by a singular value decomposition; and the next average."""
    average = average.lerp(grad, 0.05)
    left, values, right = torch.linalg.svd(grad.lerp(average, 0.95), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for a, b, c in muon._COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    scale = 0.2 * max(weight.shape) ** 0.5
    return weight * (1 - lr * decay) - lr * scale * left * values @ right, average


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_filters_to_a_half_orthogonal_matrix(layout):
    """The formula for the flattened weights, in either layout; AdamW for all else."""
    config = TrainConfig(optimizer="muon", lr=0.01, weight_decay=0.1)
    model = build_classifier(CONFIG).to(memory_format=layout)
    matrices = {
        name: (value.detach().double().flatten(1), torch.zeros_like(value).double().flatten(1))
        for name, value in model.named_parameters()
        if value.ndim == 4
    }
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
                grad = value.grad.double().flatten(1)
                matrices[name] = by_formula(*matrices[name], grad, 0.01, 0.1)
            else:
                next(rest).grad = value.grad
        for optimizer in (*optimizers, other):
            optimizer.step()
    rest = iter(adamw)
    for name, value in model.named_parameters():
        if value.ndim == 4:
            torch.testing.assert_close(
                value.flatten(1).double(), matrices[name][0], rtol=0, atol=1e-5
            )
        else:
            torch.testing.assert_close(value, next(rest))
    start = build_classifier(CONFIG).stages.conv2.weight
    assert (model.stages.conv2.weight - start).abs().mean() > 2e-3  # and it did move


def test_orthogonalised():
    """Singular values are all about one, and the matrices do not turn, whatever their company."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(96, 384), (300, 40), (1, 9), (384, 96), (33, 66), (64, 576), (9, 1)]
    stacks = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    for stack, found in zip(stacks, muon.orthogonalised(stacks), strict=True):
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.72 and values.max() < 1.28
        left, _, right = torch.linalg.svd(stack, full_matrices=False)
        nearest = (found * (left @ right)).sum((1, 2)) / values.norm(dim=1)
        assert (nearest / min(stack.shape[1:]) ** 0.5 - 1).abs().max() < 0.05
        (alone,) = muon.orthogonalised([stack[:1]])
        torch.testing.assert_close(found[:1], alone, rtol=1e-3, atol=1e-4)


def test_orthogonalised_zeros_stay():
    """As the gradient of a weight that nothing depends on yet."""
    for found in muon.orthogonalised([torch.zeros(1, 4, 9), torch.full((1, 9, 4), 1e-20)]):
        assert found.abs().max() < 1e-4


def test_the_polynomials_are_those_of_least_deviation():
    """Each deviates from 1 as far at four points of its range, up and down in turn: Chebyshev's
    condition, for three coefficients."""
    low, high = 0.01, 1.0
    for a, b, c in muon._COEFFICIENTS:
        x = torch.linspace(low, high, 100_001, dtype=torch.float64)
        away = a * x + b * x**3 + c * x**5 - 1
        deviation = away.abs().max()
        turns = away[1:-1][(away[1:-1] - away[:-2]) * (away[2:] - away[1:-1]) < 0]
        extremes = torch.cat([away[:1], turns, away[-1:]])
        signs = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(extremes, signs * deviation, rtol=2e-3, atol=0)
        low, high = float(1 - deviation), float(1 + deviation)
    assert low > 0.73 and high < 1.27


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
