"""What the settings change in a run: same gradient in parts, early stop, average, precision."""

import functools
import json

import pytest
import torch

from imgfast.engine import RunFolder, TrainConfig, evaluate, event_log, load_checkpoint, train
from imgfast.engine.lr_finder import find_lr, suggest
from imgfast.engine.train import resolve_device


@pytest.fixture(scope="module")
def few(pictures):
    return pictures.subset(torch.arange(200))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, few):
    """The weights after two epochs of the default recipe."""
    run = RunFolder(tmp_path_factory.mktemp("plain") / "run")
    train(few, TrainConfig(epochs=2, batch_size=50), run)
    return weights(run)


def weights(run):
    return load_checkpoint(run.path).model.state_dict()


def trained(tmp_path, data, **options):
    run = RunFolder(tmp_path / "run")
    return train(data, TrainConfig(epochs=2, batch_size=50, **options), run), run


def distance(first, second):
    return max((first[key] - second[key]).abs().max().item() for key in first)


def test_a_batch_in_parts_gives_the_same_training(tmp_path, few):
    # By SGD: AdamW's first steps are signs of gradients, and a rounding turns those of tiny ones.
    _, whole = trained(tmp_path / "whole", few, optimizer="sgd")
    _, parts = trained(tmp_path / "parts", few, optimizer="sgd", accumulate=3)  # 17, 17 and 16
    assert 0 < distance(weights(parts), weights(whole)) < 1e-4


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
def test_bfloat16_stays_near_float32(tmp_path, few, plain, layers):
    result, run = trained(tmp_path, few, amp="bf16", layers=layers)
    assert all(value.dtype == torch.float32 for value in weights(run).values())
    assert 1e-6 < distance(weights(run), plain) < 0.05
    assert result.evaluation.accuracy > 0.2


def test_compiled_training_is_the_same(tmp_path, few, plain, monkeypatch):
    # "eager" traces the model as the default does, and leaves out the C++ compiler's minute.
    calls = []

    def compile(model):
        calls.append(model)
        return original(model)

    original = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile)
    _, run = trained(tmp_path, few, compile=True)
    assert len(calls) == 1
    assert distance(weights(run), plain) < 2e-3


def test_deterministic_holds_for_the_run_only(tmp_path, few, plain):
    seen = []
    config = TrainConfig(epochs=2, batch_size=50, deterministic=True)
    run = RunFolder(tmp_path / "run")
    state = torch.get_rng_state()
    train(few, config, run, lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    assert all(seen) and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert distance(weights(run), plain) == 0  # on the CPU they always are


def test_the_average_is_what_is_judged_and_saved(tmp_path, few, plain):
    result, run = trained(tmp_path, few, ema=0.9)
    saved = weights(run)
    assert distance(saved, plain) > 1e-4
    assert distance(result.model.state_dict(), saved) == 0
    assert evaluate(load_checkpoint(run.path).model, result.held_out) == result.evaluation


def test_patience_stops_early_and_best_is_kept(tmp_path, few):
    run = RunFolder(tmp_path / "run")
    # A rate so small that nothing gets better after the first epoch.
    config = TrainConfig(epochs=30, batch_size=80, lr=1e-8, patience=2)
    result = train(few, config, run)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    best = max(lines, key=lambda line: line["accuracy"])
    assert len(lines) == best["epoch"] + 2 < 30
    assert result.best_accuracy == best["accuracy"]
    assert load_checkpoint(run.best).training["epoch"] == best["epoch"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_other_optimizers_learn(tmp_path, pictures, optimizer):
    run = RunFolder(tmp_path / "run")
    result = train(pictures, TrainConfig(epochs=3, batch_size=50, optimizer=optimizer), run)
    assert result.evaluation.accuracy > 0.6


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
def test_mixing_trains_alike_in_both_layers(tmp_path, few, plain, layers):
    _, run = trained(tmp_path, few, mixup=0.4, cutmix=1.0, layers=layers)
    assert distance(weights(run), plain) > 1e-3
    _, twin = trained(tmp_path / "twin", few, mixup=0.4, cutmix=1.0)
    assert distance(weights(run), weights(twin)) < 2e-3


def test_the_folder_has_curves_and_events(run):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Image.open(run.curves) as image:
        assert image.format == "PNG" and image.size == (1200, 360)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50  # something is drawn
    events = EventAccumulator(str(run.path))
    events.Reload()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for name in ("loss", "accuracy", "lr"):
        found = events.Scalars(name)
        assert [event.step for event in found] == [1, 2, 3, 4]
        assert [event.value for event in found] == pytest.approx([line[name] for line in lines])
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["tensorboard"] == event_log.version()


def test_without_tensorboard_there_are_no_events(tmp_path, few, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    _, run = trained(tmp_path, few)
    assert not list(run.path.glob("events.out.*")) and run.last.exists()

    def missing(name):
        raise event_log.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(event_log.importlib.metadata, "version", missing)
    assert event_log.version() == "not installed, no events are written"


def test_the_range_test_finds_where_the_loss_falls(tmp_path, pictures):
    from PIL import Image

    picture = tmp_path / "new" / "lr.png"
    found = find_lr(pictures, TrainConfig(batch_size=50), picture, high=1e3, steps=100)
    # It ended before the ramp did, as the loss went up; the rates grow by one factor.
    assert 20 < len(found.rates) < 100
    factors = {round(b / a, 9) for a, b in zip(found.rates[:-1], found.rates[1:], strict=True)}
    assert len(factors) == 1 and found.rates[0] == 1e-6
    # The default, 5e-3, within a factor of ten.
    assert 5e-4 < found.suggestion < 5e-2
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_the_suggestion_is_the_steepest_place():
    rates = [10.0**power for power in range(-5, 1)]
    assert suggest(rates, [5.0, 4.9, 4.0, 2.0, 1.5, 9.0]) == rates[2]
    assert suggest(rates, [5.0, 4.9, 4.0, 3.5, 9.0, 4.0]) == rates[2]  # not down from the peak
    assert suggest(rates[:2], [1.0, 0.5]) == rates[0]


def test_auto_is_a_device_that_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
