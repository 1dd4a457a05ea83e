"""A thousand configurations of conv_relu_pool, drawn at random, against stock in float64."""

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ops.conv_cases import check, make, stock

CHANNELS = (1, 3, 4, 15, 16, 17, 64)
WORK = 3_000_000  # multiply-adds: a configuration should take milliseconds


@st.composite
def configurations(draw):
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    channels, filters = pick(*CHANNELS), pick(*CHANNELS)
    groups = pick(1, 1, 1, channels)
    if groups > 1:
        filters = channels * pick(1, 2)
    taps = pick((1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 7))
    height, width = pick(1, 4, 5, 7, 8, 13, 16), pick(1, 4, 6, 7, 11, 16, 29)
    dilation = pick(1, 1, 1, 2)
    padding = pick(0, 1, taps[0] // 2, 4)
    options = {
        "stride": pick(1, 1, 2, 3),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "activation": pick("relu", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "none"),
        "pool": pick("max", "max", "avg", "none"),
    }
    size, stride, pool_padding = pick(
        (2, 2, 0), (3, 2, 1), (3, 1, 0), (2, 1, 0), (1, 1, 0), (3, 3, 1)
    )
    options |= {"pool_size": size, "pool_stride": stride, "pool_padding": pool_padding}
    options |= {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    tensors = {
        "bias": draw(st.booleans()),
        "dtype": pick(torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16),
        "layout": pick("nchw", "channels_last", "transposed", "offset"),
        "seed": draw(st.integers(0, 2**20)),
    }
    shape = (pick(0, 1, 2, 3), channels, height, width, filters, *taps)
    return shape, tensors | {"groups": groups}, options


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(configurations())
def test_thousand_configurations(configuration):
    shape, tensors, options = configuration
    n, c, h, w, k, r, s = shape
    assume(n * c * h * w * k * r * s // tensors["groups"] <= WORK)
    x, weight, bias = make(*shape, **tensors)
    try:
        stock(x.double(), weight.double(), None if bias is None else bias.double(), **options)
    except RuntimeError:  # not a configuration: the filter or the window is too large
        assume(False)
    check(x, weight, bias, **options)
