"""Parameters and multiply-adds against what a pencil gives."""

import dataclasses

import pytest

from imgfast.models import ClassifierConfig, build_classifier, cost

ONE = ClassifierConfig(("a", "b"), 3, 8, (0.5,) * 3, (0.2,) * 3, widths=(4,))


def test_one_stage_by_hand():
    found = cost(ONE)
    # 4 filters of 3x3x3 with a bias; 4 maps of 4x4 into 2 classes with a bias.
    assert found.parameters == 4 * 27 + 4 + 2 * 64 + 2
    assert found.multiply_adds == 8 * 8 * 4 * 27 + 2 * 64


def test_a_second_convolution_works_on_the_pooled_map():
    found = cost(dataclasses.replace(ONE, convolutions=2, norm="batch"))
    # Batch norm has a shift a filter, which the convolution's bias makes way for.
    assert found.parameters == 4 * 27 + 4 + 4 * 36 + 4 + 2 * 64 + 2
    assert found.multiply_adds == 8 * 8 * 4 * 27 + 4 * 4 * 4 * 36 + 2 * 64


@pytest.mark.parametrize("layers", ["imgfast", "stock"])
def test_the_count_is_that_of_the_network(layers):
    config = dataclasses.replace(ONE, widths=(5, 7), convolutions=2)
    parameters = build_classifier(config, layers).parameters()
    assert cost(config).parameters == sum(value.numel() for value in parameters)
