"""Settings: from TOML, of the right type, with defaults that depend on the optimizer."""

import pytest

from imgfast.engine import TrainConfig
from imgfast.engine.train_config import read_toml


def test_a_toml_file_holds_settings(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('epochs = 3\nlr = 1\nflip = false\noptimizer = "sgd"\ndata = "pictures"\n')
    values = read_toml(path, ("data",))
    assert values == {
        "epochs": 3, "lr": 1, "flip": False, "optimizer": "sgd", "data": "pictures"
    }  # fmt: skip
    del values["data"]
    config = TrainConfig.from_dict(values)
    assert (config.epochs, config.lr, config.flip) == (3, 1, False)


@pytest.mark.parametrize(
    "text, rule",
    [
        ("epoch = 3", "'epoch' is no setting; choose from model, widths"),
        ('data = "pictures"', "'data' is no setting"),
        ('epochs = "3"', "epochs must be of type int, got '3'"),
        ("epochs = true", "epochs must be of type int, got True"),
        ("lr = 0.0", "lr must lie in"),
        ("[train]\nlr = 0.1", "'train' is no setting"),
        ("lr = ", "Invalid value"),
        ("\0", "recipe.toml: "),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path, text, rule):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.toml: ") as error:
        read_toml(path)
    assert rule in str(error.value) and "\n" not in str(error.value)


def test_rate_and_decay_are_those_of_the_optimizer():
    rates = {
        name: (TrainConfig(optimizer=name).lr, TrainConfig(optimizer=name).weight_decay)
        for name in ("adamw", "sgd", "muon")
    }
    assert rates == {"adamw": (5e-3, 0.05), "sgd": (0.05, 5e-4), "muon": (5e-3, 0.05)}
    assert TrainConfig(optimizer="sgd", weight_decay=0.0).weight_decay == 0
    assert TrainConfig(model="base").lr == 5e-3
    assert TrainConfig(model="base", optimizer="adamw").lr == 2e-3


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"optimizer": "adam"}, "optimizer must be one of adamw, muon, sgd"),
        ({"amp": "fp16"}, "amp must be one of none, bf16"),
        ({"ema": 1.0}, "ema must lie in"),
        ({"mixup": -1.0}, "mixup must lie in"),
        ({"accumulate": 200}, r"accumulate must lie in \[1, 128\], got 200"),
        ({"flip": 1}, "flip must be of type bool, got 1"),
        ({"lr": "high"}, "lr must be of type float, got 'high'"),
        ({"epochs": 1.5}, "epochs must be of type int, got 1.5"),
    ],
)
def test_settings_are_checked(change, rule):
    with pytest.raises(ValueError, match=rule):
        TrainConfig(**change)


def test_the_network_changes_by_what_is_named():
    config = TrainConfig.from_dict({"model": "base", "widths": [8, 16], "activation": "tanh"})
    assert config.network == {"widths": (8, 16), "activation": "tanh"}
    assert TrainConfig(model="base").network == {}
    with pytest.raises(ValueError, match=r"widths must be of type tuple\[int, ...\], got \('8',\)"):
        TrainConfig(widths=("8",))


@pytest.mark.parametrize(
    "model, pictures, epochs",
    [("tiny", 60_000, 3), ("tiny", 11_200, 16), ("tiny", 100, 20), ("tiny", 10**6, 1),
     ("base", 60_000, 9), ("base", 11_200, 20), ("wide", 50_000, 11)],
)  # fmt: skip
def test_epochs_follow_from_the_number_of_pictures(model, pictures, epochs):
    assert TrainConfig(model=model).resolved(pictures).epochs == epochs
    assert TrainConfig(model=model, epochs=7).resolved(pictures).epochs == 7
