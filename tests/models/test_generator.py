"""The generator: one seed one picture, and configurations that nobody can be trusted with."""

import json

import pytest
import torch

from imgfast.models import (
    GeneratorConfig,
    build_generator,
    generator_config,
    generator_cost,
    usual_temperature,
)

SMALL = {
    "encoder_widths": (8, 8, 8),
    "decoder_widths": (8, 8, 8),
    "codes": 32,
    "code_size": 6,
    "prior_width": 24,
    "prior_depth": 2,
    "prior_heads": 3,
}
CONFIG = generator_config(("bag", "coat", "shoe"), 1, 28, (0.29,), (0.35,), **SMALL)


@pytest.fixture(scope="module")
def model():
    """Random weights, large enough to make pictures differ."""
    model = build_generator(CONFIG, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for value in (*model.prior.parameters(), *model.tokenizer.parameters()):
            torch.nn.init.normal_(value, std=0.3)
    return model.to(memory_format=torch.channels_last)


def test_the_same_seed_gives_the_same_picture_in_any_company(model):
    """70 pictures: a full part and one of six; then alone, in pairs, backwards."""
    seeds = list(range(70))
    labels = torch.arange(70) % 3
    codes, pictures = model.sample(labels, seeds), model.generate(labels, seeds)
    assert pictures.shape == (70, 1, 28, 28) and pictures.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in pictures}) == 70
    for chosen in ([64], [69, 5], list(range(69, -1, -1)), list(range(3, 69))):
        asked = [seeds[i] for i in chosen]
        assert torch.equal(model.sample(labels[chosen], asked), codes[chosen])
        assert torch.equal(model.generate(labels[chosen], asked), pictures[chosen])
    assert not torch.equal(model.sample((labels + 1) % 3, seeds), codes)


def test_guidance_and_temperature_matter_and_the_global_state_does_not(model):
    labels, seeds = torch.zeros(8, dtype=torch.int64), range(8)
    torch.manual_seed(1)
    first = model.sample(labels, seeds, 2.0, 1.0)
    torch.manual_seed(2)
    assert torch.equal(model.sample(labels, seeds, 2.0, 1.0), first)
    assert not torch.equal(model.sample(labels, seeds, 1.0, 1.0), first)
    assert not torch.equal(model.sample(labels, seeds, 2.0, 0.5), first)
    for guidance, usual in ((1.0, 0.9), (0.5, 0.9), (1.5, 1.0)):
        assert usual_temperature(guidance) == usual
        known = model.sample(labels, seeds, guidance, usual)
        assert torch.equal(model.sample(labels, seeds, guidance), known)
    assert model.sample(labels[:0], []).shape == (0, 7, 7)
    assert model.generate(labels[:0], []).shape == (0, 1, 28, 28)


def test_encode_and_decode_are_the_tokenizers(model):
    images = torch.randint(0, 256, (70, 1, 28, 28), dtype=torch.uint8)
    codes = model.encode(images)
    x = ((images.double() / 255 - 0.29) / 0.35).float().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.tokenizer.eval()
        expected = model.tokenizer.encode(x)
        pixels = (model.tokenizer.decode(codes) * 0.35 + 0.29).mul(255)
    # A latent halfway between two codes may fall to either side by rounding.
    assert (codes != expected).float().mean() < 1e-3
    off = model.decode(codes).float() - pixels.clamp(0, 255)
    assert off.abs().max() < 0.51
    alone = torch.cat([model.encode(images[i : i + 1]) for i in (0, 69)])
    assert torch.equal(alone, codes[[0, 69]])


def test_interpolation_ends_in_the_reconstructions(model):
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    way = model.interpolate(images[0], images[1], 5)
    assert way.shape == (5, 1, 28, 28)
    ends = model.decode(model.encode(images))
    assert torch.equal(way[[0, 4]], ends)
    assert not torch.equal(way[2], way[0]) and not torch.equal(way[2], way[4])
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        model.interpolate(images[0], images[1], 1)


@pytest.mark.parametrize(
    "call, rule",
    [
        (lambda m: m.encode(torch.zeros(1, 1, 28, 28)), r"uint8 \[N, 1, 28, 28\], got float32"),
        (lambda m: m.encode(torch.zeros(1, 3, 28, 28, dtype=torch.uint8)), r"got uint8 \[1, 3"),
        (lambda m: m.decode(torch.zeros(1, 7, 6, dtype=torch.int64)), r"int64 \[N, 7, 7\]"),
        (lambda m: m.decode(torch.full((1, 7, 7), 32)), r"lie in \[0, 32\), got 32 to 32"),
        (lambda m: m.sample(torch.tensor([0, 1]), [1]), r"labels must be int64 \[1\]"),
        (lambda m: m.sample(torch.tensor([3]), [1]), r"labels must lie in \[0, 3\), got 3"),
        (lambda m: m.sample(torch.tensor([0]), [-1]), r"seeds must lie in \[0, 2\^63\), got -1"),
        (lambda m: m.sample(torch.tensor([0]), [2**63]), "seeds must lie in"),
        (lambda m: m.sample(torch.tensor([0]), [0], -1.0), r"guidance must lie in \[0, 100\]"),
        (lambda m: m.sample(torch.tensor([0]), [0], float("nan")), "guidance must lie in"),
        (lambda m: m.sample(torch.tensor([0]), [0], 1.0, 0.0), "temperature must lie in"),
    ],
)
def test_what_goes_in_is_checked(model, call, rule):
    with pytest.raises(ValueError, match=f"generator: .*{rule}"):
        call(model)


def test_colour_of_64_pixels():
    changes = {"encoder_widths": (4, 4, 4, 4), "decoder_widths": (4, 4, 4, 4)}
    config = generator_config(("a",), 3, 64, (0.5,) * 3, (0.2,) * 3, **(SMALL | changes))
    model = build_generator(config)
    found = model.generate(torch.tensor([0, 0]), [5, 6])
    assert config.side == 8 and found.shape == (2, 3, 64, 64)
    torch.testing.assert_close(model.encode(found).shape, torch.Size([2, 8, 8]))


def test_seed_decides_the_weights_in_either_kind_of_layers():
    first, stock, other = (
        build_generator(CONFIG, layers, seed)
        for layers, seed in (("imgfast", 0), ("stock", 0), ("imgfast", 1))
    )
    assert all(map(torch.equal, first.state_dict().values(), stock.state_dict().values()))
    assert not torch.equal(first.prior.head.weight, other.prior.head.weight)
    with pytest.raises(ValueError, match="layers must be one of"):
        build_generator(CONFIG, "other")


def test_cost_counts_what_is_there():
    whole = generator_cost(CONFIG)
    model = build_generator(CONFIG)
    assert whole.parameters == sum(value.numel() for value in model.parameters())
    encoder = 28 * 28 * 9 * 8 + 14 * 14 * 9 * 8 * 8 + 7 * 7 * (9 * 8 * 8 + 8 * 6)
    decoder = 7 * 7 * 9 * 6 * 8 + (14 * 14 + 28 * 28) * 9 * 8 * 8 + 28 * 28 * 9 * 8
    nearest = 7 * 7 * 6 * 32
    assert whole.tokenizer.multiply_adds == encoder + decoder + nearest


def test_configuration_survives_json():
    assert GeneratorConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"classes": []}, "classes must be 1 to 10000 names"),
        ({"classes": ["a", "a"]}, "classes must be distinct"),
        ({"classes": "ab"}, "classes must be tuple"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"image_size": 30}, "got 30; 32 is near"),
        ({"image_size": 1 << 20}, "image_size must be 8 to 512"),
        ({"image_size": True}, "image_size must be int"),
        ({"encoder_widths": [8, 8]}, "encoder_widths must be 3 numbers for 28 pixels"),
        ({"decoder_widths": [8, 8, 0]}, "decoder_widths must be 1 to 1024 filters each"),
        ({"decoder_widths": [8, 8, 10**9]}, "decoder_widths must be 1 to 1024"),
        ({"decoder_widths": [8, 8, "8"]}, "decoder_widths must be tuple"),
        ({"codes": 1}, "codes must be 2 to 65536, got 1"),
        ({"codes": 10**12}, "codes must be 2 to 65536"),
        ({"code_size": 0}, "code_size must be 1 to 256"),
        ({"prior_width": 10**6}, "prior_width must be 1 to 2048"),
        ({"prior_depth": 65}, "prior_depth must be 1 to 64"),
        ({"prior_heads": 5}, "prior_heads must be a divisor of prior_width 24, got 5"),
        ({"prior_heads": 0}, "prior_heads must be 1 to 24"),
        ({"prior_threshold": -0.1}, "prior_threshold must be 0 to 100, got -0.1"),
        ({"prior_threshold": float("nan")}, "prior_threshold must be 0 to 100, got nan"),
        ({"mean": [float("nan")]}, "mean must be finite"),
        ({"std": [0.0]}, "std must be positive"),
        ({"std": [0.1, 0.1]}, "std must be 1 numbers"),
        ({"surprise": 1}, "differ in"),
    ],
)
def test_a_configuration_from_outside_is_checked(change, rule):
    with pytest.raises(ValueError, match=rule):
        GeneratorConfig.from_dict({**CONFIG.to_dict(), **change})
    with pytest.raises(ValueError, match="must be a table of settings, got list"):
        GeneratorConfig.from_dict([])
