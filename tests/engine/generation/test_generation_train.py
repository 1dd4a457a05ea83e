"""Training a generator: it learns, resumes bit for bit in any stage, and says what happened."""

import json
import math

import pytest
import torch
from PIL import Image

from imgfast.engine import (
    CheckpointError,
    GeneratorTrainConfig,
    RunFolder,
    checkpoint_kind,
    load_checkpoint,
    load_generator,
    save_checkpoint,
    train_generator,
)
from imgfast.engine.generation.perceptual import PerceptualLoss
from imgfast.engine.generation.prior_step import PriorStep, code_loss
from imgfast.engine.generation.tokenizer_step import TokenizerStep
from imgfast.engine.generation.train import held_out_loss, psnr
from imgfast.engine.optimizer import MovingAverage
from imgfast.models import build_classifier, build_generator, classifier_config, generator_config

NETWORK = {
    "encoder_widths": (8, 8, 8),
    "decoder_widths": (16, 8, 8),
    "codes": 24,
    "code_size": 6,
    "prior_width": 24,
    "prior_depth": 1,
    "prior_heads": 2,
}
FAST = {**NETWORK, "batch_size": 48, "prior_batch_size": 40, "ema": 0.9}


@pytest.fixture(scope="module")
def few(pictures):
    return pictures.subset(torch.arange(160))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few):
    """A short run that was never interrupted: one epoch of features, two of each other stage."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    return run, train_generator(few, GeneratorTrainConfig(epochs=2, seed=3, **FAST), run)


def metrics(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: line[name] for name in line if name != "train_seconds"} for line in lines]


def files(run):
    """What two runs of the same training must agree in."""
    sheets = {sheet.name: sheet.read_bytes() for sheet in sorted(run.samples.iterdir())}
    return run.last.read_bytes(), run.best.read_bytes(), metrics(run), sheets


def interrupt_after(epoch):
    def on_step(step, steps, figures):
        if figures.get("epoch", 0) == epoch:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("optimizer, lr", [("adamw", 5e-3), ("muon", 2e-2)])
def test_the_tokenizer_learns(pictures, optimizer, lr):
    """45 steps on real pictures; the loss halves, and codes carry the picture."""
    options = {**FAST, "batch_size": 64, "optimizer": optimizer, "lr": lr}
    config = GeneratorTrainConfig(tokenizer_epochs=3, **options)
    model_config = generator_config(
        pictures.classes, 1, 28, pictures.mean, pictures.std, **config.network
    )
    model = build_generator(model_config).to(memory_format=torch.channels_last)
    step = TokenizerStep(config, model.tokenizer, pictures, None)
    losses = []
    for epoch in range(1, 4):
        losses += [step.run(batch, lr).item() for batch in step.begin_epoch(epoch)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    model.tokenizer.load_state_dict(step.judged.state_dict())
    some = pictures.images[:128]
    again = model.decode(model.encode(some))
    blank = some.float().mean((0, 2, 3), keepdim=True).round().byte()
    assert psnr(again, some) - psnr(blank.expand_as(some), some) > 3
    assert model.tokenizer.quantizer.usage(model.encode(some)).used > 12


def test_the_prior_learns(pictures):
    """Codes that repeat the one to the left: a prior that has seen them can predict them."""
    config = GeneratorTrainConfig(**FAST)
    model_config = generator_config(("a", "b"), 1, 28, (0.3,), (0.3,), **config.network)
    prior = build_generator(model_config).prior
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    # One code a picture, in the lower half of the book for the first class.
    codes = (torch.randint(0, 12, (400,), generator=generator) + 12 * labels).view(-1, 1, 1)
    step = PriorStep(config, prior, codes.expand(-1, 7, 7).contiguous(), labels)
    losses = []
    for epoch in range(1, 13):
        losses += [step.run(batch, 1e-2).item() for batch in step.begin_epoch(epoch)]
    assert losses[0] == pytest.approx(math.log(24), abs=0.2)
    assert losses[-1] < 0.2  # of which the first code of each picture is log(12) / 49
    uniforms = torch.rand(40, 49, dtype=torch.float64, generator=generator)
    found = step.judged.eval().sample(labels[:40], uniforms)
    assert ((found[:, 0] >= 12) == (labels[:40] == 1)).float().mean() > 0.9
    assert (found[:, 1:] == found[:, :-1]).float().mean() > 0.9


@pytest.mark.parametrize("reduction", ["fused", "stock"])
def test_fused_and_stock_layers_learn_alike(few, reduction):
    """Three steps of each stage; the rounding of sums alone may differ."""
    weights = {}
    for layers in ("imgfast", "stock"):
        config = GeneratorTrainConfig(layers=layers, perceptual=0.0, **FAST)
        model_config = generator_config(few.classes, 1, 28, few.mean, few.std, **config.network)
        model = build_generator(model_config, layers)
        if reduction == "fused":
            step = TokenizerStep(config, model.tokenizer, few, None)
        else:
            codes = torch.arange(160 * 49).view(160, 7, 7) % 24
            step = PriorStep(config, model.prior, codes, few.labels)
        for batch in step.begin_epoch(1):
            step.run(batch, 1e-4)
        weights[layers] = [value.clone() for value in step.model.parameters()]
    for ours, stock in zip(*weights.values(), strict=True):
        torch.testing.assert_close(ours, stock, rtol=0, atol=2e-4)


def test_the_loss_is_the_logits_cross_entropy(few):
    config = generator_config(few.classes, 1, 28, few.mean, few.std, **NETWORK)
    prior = build_generator(config).prior
    codes = torch.arange(10 * 49).view(10, 49) % 24
    labels = few.labels[:10]
    chances = prior.logits(codes, labels).double().log_softmax(2)
    expected = -chances.gather(2, codes.unsqueeze(2)).mean()
    for layers in ("imgfast", "stock"):
        found = code_loss(prior, codes, labels, layers)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    model = build_generator(config)
    assert held_out_loss(model, codes.view(10, 7, 7), labels) == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
def test_the_perceptual_loss_is_relative_and_blind_to_equal_pictures(layers, few):
    network = classifier_config("tiny", few.classes, 1, 28, few.mean, few.std, widths=(4, 8, 16))
    model = build_classifier(network, layers)
    loss = PerceptualLoss(model, 2)
    x = torch.randn(6, 1, 28, 28)
    y = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    assert loss(x, x) == 0
    wide = y.detach().double().requires_grad_()
    expected, a, b = 0.0, wide, x.double()
    for stage in build_classifier(network, "stock").double().stages[:6]:
        a, b = stage(a), stage(b)
        if isinstance(stage, torch.nn.MaxPool2d):
            expected = expected + (a - b).square().mean() / b.square().mean()
    found = loss(y, x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    found.backward()
    expected.backward()
    torch.testing.assert_close(y.grad.double(), wide.grad, rtol=1e-3, atol=1e-5)
    assert all(value.grad is None for value in loss.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_perceptual_gradient_lies_as_the_features_do(layout, few):
    network = classifier_config("tiny", few.classes, 1, 28, few.mean, few.std, widths=(4, 8, 16))
    loss = PerceptualLoss(build_classifier(network, "stock").to(memory_format=layout), 2)
    strides = []
    for stage in loss.stages:
        stage.register_full_backward_pre_hook(lambda _, grads: strides.append(grads[0].stride()))
    y, x = torch.randn(2, 6, 1, 28, 28)
    shapes = [found.shape for found in loss._features(x)]
    loss(y.requires_grad_(), x).backward()
    expected = [torch.empty(shape).to(memory_format=layout).stride() for shape in shapes]
    assert strides == expected[::-1]


def test_progress_counts_the_steps_of_every_stage(tmp_path, few):
    told = []
    config = GeneratorTrainConfig(epochs=1, **(FAST | {"prior_batch_size": 16}))
    run = RunFolder(tmp_path / "run")
    result = train_generator(few, config, run, lambda *step: told.append(step[:2]))
    pictures = len(few) - len(result.held_out)
    steps = 2 * (pictures // 48) + pictures // 16
    assert told == [(step, steps) for step in range(1, steps + 1)]


def test_the_folder_says_what_happened(whole, few):
    run, result = whole
    lines = metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    stages = ["features", "tokenizer", "tokenizer", "prior", "prior"]
    assert [line["stage"] for line in lines] == stages
    assert lines[4]["loss"] < lines[3]["loss"]
    assert lines[2]["psnr"] == result.psnr and lines[4]["held_out_loss"] == result.held_out_loss
    config = json.loads((run.path / "config.json").read_text())
    assert config["generator"]["codes"] == 24 and config["tokenizer_epochs"] == 2
    assert RunFolder.existing(run.path).settings()["model"] == "generator"
    loaded = load_generator(run.path)
    assert loaded.training["epoch"] == 5 and loaded.training["seed"] == 3
    images = result.held_out.images
    assert torch.equal(loaded.model.encode(images), result.model.encode(images))
    labels = torch.arange(10)
    assert torch.equal(
        loaded.model.generate(labels, range(10)), result.model.generate(labels, range(10))
    )
    names = [f"epoch-{epoch:03}.png" for epoch in (2, 3, 4, 5)]
    assert sorted(sheet.name for sheet in run.samples.iterdir()) == names
    with Image.open(run.samples / names[0]) as image:
        assert image.format == "PNG" and image.width > 400
    assert result.train_seconds >= result.tokenizer_seconds + result.prior_seconds > 0


@pytest.mark.parametrize("options", [{}, {"perceptual": 0.0, "ema": 0.0, "amp": "bf16"}])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, few, whole, options):
    config = GeneratorTrainConfig(epochs=2, seed=3, **(FAST | options))
    expected, parts = whole[0], RunFolder(tmp_path / "parts")
    if options:
        expected = RunFolder(tmp_path / "whole")
        train_generator(few, config, expected)
    # Before there is a state, within and between stages; without features, between them.
    for epoch in range(5) if not options else (2,):
        with pytest.raises(KeyboardInterrupt):
            train_generator(few, config, parts, interrupt_after(epoch), resume=epoch > 0)
        assert len(metrics(parts)) == epoch
    result = train_generator(few, config, parts, resume=True)
    assert files(parts) == files(expected)
    # Done is done: the same result again, and nothing changes.
    again = train_generator(few, config, parts, lambda *_: pytest.fail("a step"), resume=True)
    assert (again.psnr, again.held_out_loss) == (result.psnr, result.held_out_loss)
    for ours, theirs in zip(
        again.model.state_dict().values(), result.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert files(parts) == files(expected)


def test_a_state_of_another_run_or_damaged_is_refused(tmp_path, few, whole):
    run = RunFolder(tmp_path / "run")
    config = GeneratorTrainConfig(epochs=1, perceptual=0.0, **FAST)
    with pytest.raises(KeyboardInterrupt):
        train_generator(few, config, run, interrupt_after(1))
    changed = GeneratorTrainConfig(epochs=1, perceptual=0.0, l1=0.1, **FAST)
    with pytest.raises(CheckpointError, match="settings and pictures, it is of another"):
        train_generator(few, changed, run, resume=True)
    state = run.state.read_bytes()
    for damaged in (state[:-1], state[:9000] + b"\1\2\3" + state[9003:], b""):
        run.state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.safetensors: "):
            train_generator(few, config, run, resume=True)


def test_several_processes_are_refused(tmp_path, few, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="in one process, got 2; start it without torchrun"):
        train_generator(few, GeneratorTrainConfig(**FAST), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_each_kind_of_checkpoint_says_which_command_takes_it(tmp_path, whole, run):
    generator, classifier = whole[0].last, run.last
    assert checkpoint_kind(generator) == "generator"
    assert checkpoint_kind(run.path) == "classifier"
    with pytest.raises(CheckpointError, match="of a classifier, it is of a generator; use it with"):
        load_checkpoint(generator)
    with pytest.raises(CheckpointError, match="of a generator, it is of a classifier; use it with"):
        load_generator(classifier)
    loaded = load_generator(generator)
    copy = tmp_path / "copy.safetensors"
    save_checkpoint(copy, loaded.model, loaded.training)
    assert copy.read_bytes() == generator.read_bytes()
    content = bytearray(generator.read_bytes())
    for damage, rule in ((b'"kind":"generator"', b'"kind":"sculpture"'), (b'"codes', b'"c0des')):
        copy.write_bytes(bytes(content).replace(damage, rule, 1))
        with pytest.raises(CheckpointError, match=r"kind must be one of|configuration|truncated"):
            load_generator(copy)
    content[-5] ^= 1
    copy.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="SHA-256 must be"):
        load_generator(copy)


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"model": "tiny"}, "model must be one of generator, got 'tiny'"),
        ({"epochs": 0}, r"epochs must lie in \[1, 100000\], got 0"),
        ({"prior_lr": float("nan")}, "prior_lr must lie in"),
        ({"drop_class": 1.0}, r"drop_class must lie in \[0.0, 0.9\]"),
        ({"encoder_widths": (8, "8")}, "encoder_widths must be of type tuple"),
        ({"codes": 2.5}, "codes must be of type int"),
        ({"amp": "fp8"}, "amp must be one of none, bf16"),
        ({"mixup": 0.1}, "'mixup' is no setting"),
    ],
)
def test_settings_are_checked(change, rule):
    with pytest.raises(ValueError, match=f"train: {rule}"):
        GeneratorTrainConfig.from_dict(change)


@pytest.mark.parametrize(
    "given, pictures, expected",
    [
        ({}, 60_000, (2, 2)),
        ({}, 25_000, (5, 2)),
        ({}, 11_200, (11, 5)),
        ({}, 100, (60, 20)),
        ({}, 10**7, (1, 2)),
        ({"epochs": 3}, 100, (3, 3)),
        ({"epochs": 3, "prior_epochs": 5}, 100, (3, 5)),
        ({"tokenizer_epochs": 4}, 60_000, (4, 2)),
    ],
)
def test_fewer_pictures_get_more_epochs(given, pictures, expected):
    config = GeneratorTrainConfig(**given).resolved(pictures)
    assert (config.tokenizer_epochs, config.prior_epochs) == expected
    assert config.resolved(pictures) == config


def test_the_moving_average_copies_the_book(few):
    """The book is an average itself: that of the judged model is the trained one's."""
    config = generator_config(few.classes, 1, 28, few.mean, few.std, **NETWORK)
    model = build_generator(config).tokenizer
    average = MovingAverage(model, 0.9)
    model.quantizer.start(torch.randn(100, 6))
    average.update()
    assert torch.equal(average.module.quantizer.book, model.quantizer.book)
