"""Packed weights are kept between inference calls: whatever becomes of a weight, the next call sees
it. Every test first calls often enough for the packed weight to be kept."""

import threading

import pytest
import torch
from ops.conv_cases import assert_near, exact, lay_out, make, stock

import imgfast

WARM = 3  # calls after which a packed weight is in use

algorithms = pytest.mark.parametrize("algorithm", ["direct", "winograd"])


def infer(x, weight, bias, algorithm):
    return imgfast.conv_relu_pool(x, weight, bias, padding=1, algorithm=algorithm)


@torch.no_grad()
def check(x, weight, bias, algorithm, calls=WARM):
    """The value of each of a few calls, which is exact for the exact data of conv_cases."""
    wide = (None if t is None else t.detach().double() for t in (x, weight, bias))
    reference = stock(*wide, padding=1)
    for call in range(calls):
        assert_near(infer(x, weight, bias, algorithm), reference, f"call {call}")


def warm(algorithm, **shape):
    x, weight, bias = make(**({"n": 1, "c": 16, "h": 8, "w": 8, "k": 33, "r": 3, "s": 3} | shape))
    check(x, weight, bias, algorithm)
    return x, weight, bias


def with_grad_mode_off(t):
    with torch.no_grad():
        t.mul_(2)


def in_inference_mode(t):
    with torch.inference_mode():
        t.mul_(2)


def one_element(t):
    t.view(-1)[t.numel() // 2 + 1] += 1


CHANGES = {
    "in place": lambda t: t.mul_(2),
    "under no_grad": with_grad_mode_off,
    "in inference mode": in_inference_mode,
    "through .data": lambda t: t.data.mul_(2),
    "through another view": lambda t: t.view(-1)[3:9].zero_(),
    "through numpy": lambda t: t.numpy().fill(0.5),
    "by set_": lambda t: t.set_(t.clone() + 1),
    "one element": one_element,
    "the last element": lambda t: t.view(-1)[-1:].add_(1),
    "to negative zeros": lambda t: t.zero_().neg_(),
}


@algorithms
@pytest.mark.parametrize("which", [1, 2], ids=["weight", "bias"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_are_seen(change, which, algorithm):
    tensors = warm(algorithm)
    for _ in range(2):
        change(tensors[which])
        check(*tensors, algorithm)


@algorithms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_are_seen_in_two_bytes(dtype, algorithm):
    tensors = warm(algorithm, dtype=dtype)
    one_element(tensors[1])
    check(*tensors, algorithm)


@algorithms
def test_optimizer_steps_are_seen(algorithm):
    x, weight, bias = warm(algorithm)
    layer = imgfast.nn.ConvReLUPool2d(16, 33, 3, padding=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    for _ in range(3):
        with torch.no_grad():
            for parameter, value in ((layer.weight, weight), (layer.bias, bias)):
                parameter.copy_(value)
        check(x, layer.weight, layer.bias, algorithm)
        # Gradients of exact data, times 1/4: exact again.
        infer(x, layer.weight, layer.bias, algorithm).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        check(x, layer.weight, layer.bias, algorithm)


@algorithms
def test_same_address_other_values(algorithm):
    """As when a tensor is freed and the next one is given its memory."""
    memory = torch.empty(33 * 16 * 9)
    x, *_ = make(1, 16, 8, 8, 33, 3, 3)
    for seed in range(4):
        weight = memory.view(33, 16, 3, 3)
        memory.copy_(exact(memory.shape, seed, top=3))
        check(x, weight, None, algorithm, calls=1 + seed)
        # The same bytes in other strides, and of another shape.
        last = memory.view(33, 3, 3, 16).permute(0, 3, 1, 2)
        check(x, last, None, algorithm, calls=1 + seed)
        wide = memory.view(66, 8, 3, 3)
        check(x[:, :8].contiguous(), wide, None, algorithm, calls=1 + seed)


@algorithms
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "offset"])
def test_layouts(layout, algorithm):
    x, weight, bias = make(1, 16, 8, 8, 33, 3, 3)
    weight = lay_out(weight, layout)
    check(x, weight, bias, algorithm)
    weight.mul_(2)
    check(x, weight, bias, algorithm)
    weight[-1, -1, -1, -1] += 1
    check(x, weight, bias, algorithm)


@algorithms
def test_overlapping_elements(algorithm):
    x, weight, bias = make(1, 16, 8, 8, 33, 3, 3)
    one = weight[:1].clone()
    check(x, one.expand(33, 16, 3, 3), bias, algorithm)
    one.mul_(2)
    check(x, one.expand(33, 16, 3, 3), bias, algorithm)


def test_groups_and_bias_are_told_apart():
    x, weight, bias = make(1, 16, 8, 8, 32, 3, 3, groups=2)
    for _ in range(2):
        for groups, channels in ((1, 8), (2, 16)):
            for given in (bias, None):
                options = {"padding": 1, "groups": groups, "algorithm": "direct"}
                part = x[:, :channels].contiguous()
                wide = (None if t is None else t.double() for t in (part, weight, given))
                reference = stock(*wide, **options)
                for call in range(WARM):
                    with torch.no_grad():
                        y = imgfast.conv_relu_pool(part, weight, given, **options)
                    assert_near(y, reference, f"groups {groups}, call {call}")


@algorithms
def test_inference_tensors(algorithm):
    """They have no version counter at all."""
    with torch.inference_mode():
        tensors = warm(algorithm)
        for t in tensors[1:]:
            assert t.is_inference()
            t.mul_(2)
            check(*tensors, algorithm)


@algorithms
def test_threads(algorithm):
    """Two threads, one weight each and one in common, changed between the calls of its owner."""
    x, common, bias = warm(algorithm)
    barrier = threading.Barrier(2, timeout=60)
    failures = []

    def run(seed):
        try:
            own = exact(common.shape, seed, top=3)
            for _ in range(20):
                barrier.wait()
                check(x, own, bias, algorithm)
                check(x, common, bias, algorithm)
                own.add_(0.25)
                if barrier.wait() == 0:  # one of them changes it, the other one waits above
                    common.neg_()
        except Exception as failure:
            failures.append(failure)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@torch.no_grad()
def test_kernels_of_one_weight_do_not_share_what_they_packed():
    """Few filters of unit stride have a kernel of their own, which packs weights in its own way."""
    x, weight, bias = make(1, 16, 8, 8, 3, 3, 3)
    for call in range(2 * WARM):
        for stride in (1, 2):
            options = {"stride": stride, "padding": 1, "activation": "relu", "pool": "none"}
            found = imgfast.conv_relu_pool(x, weight, bias, algorithm="direct", **options)
            assert_near(found, stock(x, weight, bias, **options), f"call {call}, stride {stride}")
