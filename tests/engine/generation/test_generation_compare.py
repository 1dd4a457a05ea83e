"""A generator beside its stock twin: equal pictures, and all three tasks timed."""

import pytest
import torch

from imgfast.engine.generation import compare
from imgfast.models import generator_config

CONFIG = generator_config(
    ("a", "b"), 1, 28, (0.3,), (0.3,), encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4),
    codes=16, prior_width=16, prior_depth=1,
)  # fmt: skip


def test_every_task_is_timed_on_both_sides():
    rows = compare.compare_generator(CONFIG, batch_size=4, seconds=0.01)
    assert [row.task for row in rows] == ["decoding", "tokenizer step", "prior step"]
    assert all(row.imgfast > 0 and row.stock > 0 and row.batch_size == 4 for row in rows)
    assert {row.stock_layout for row in rows} <= {"NCHW", "channels_last"}


def test_unequal_sides_are_not_timed(monkeypatch):
    decode = compare._Side.decode
    sides = []

    def other(self):
        sides.append(self)
        return decode(self) + (0.1 if len(sides) == 3 else 0.0)

    monkeypatch.setattr(compare._Side, "decode", other)
    with pytest.raises(AssertionError, match="not close"):
        compare.compare_generator(CONFIG, batch_size=4, seconds=0.01)
    assert isinstance(sides[0].decode(), torch.Tensor)
