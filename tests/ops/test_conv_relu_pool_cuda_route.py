"""The routes of conv_relu_pool on CUDA, from facts alone: the choice needs no GPU."""

import pytest
import torch

from imgfast import _C
from imgfast.ops import conv_relu_pool_route as route
from imgfast.ops.conv_relu_pool import _bind
from imgfast.ops.torch_state import allows_tf32

SHAPES = ((2, 16, 8, 8), (32, 16, 3, 3), (32,))
BOTH = {"direct, epilogue", "epilogue, direct"}  # forward, backward


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setattr(route, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(route, "EPILOGUE_DEVICES", ("cuda",))
    monkeypatch.setattr(route, "_no_cuda", lambda *_: None)


def facts(dtype=torch.float32, device="cuda", needs_grad=True, **options):
    spec = route.spec_of(*_bind(**options))
    return spec, True, device, dtype, *SHAPES, False, needs_grad


def test_stock_runs_until_something_has_been_timed():
    chosen = route.choose(*facts())
    assert (chosen.name, chosen.reason) == ("stock", "not timed on this device yet")


def test_a_timing_has_our_kernels_and_stocks():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = route.candidates(*facts(dtype))
        assert set(found) == BOTH | {"direct", "epilogue", "stock"}
        for name in ("direct", "epilogue"):
            assert (found[name].isa, found[name].saves_codes) == ("cuda", True)
        assert not found["direct"].winograd  # which there is on the CPU, for these shapes
        without = route.candidates(*facts(dtype, needs_grad=False))
        assert set(without) == {"direct", "epilogue", "stock"}
    on_cpu = route.candidates(*facts(device="cpu"))
    assert "winograd" in on_cpu
    assert "epilogue" not in on_cpu


def test_each_pass_has_its_convolution():
    found = route.candidates(*facts())
    passes = {name: found[name].epilogue for name in BOTH | {"direct", "epilogue"}}
    assert passes == {
        "direct": route.Epilogue(0),
        "direct, epilogue": route.Epilogue.BACKWARD,
        "epilogue, direct": route.Epilogue.FORWARD,
        "epilogue": route.Epilogue.FORWARD | route.Epilogue.BACKWARD,
    }


def test_what_is_asked_for():
    for algorithm in ("direct", "epilogue"):
        assert route.choose(*facts(algorithm=algorithm)).name == algorithm
    with pytest.raises(RuntimeError, match="Winograd's algorithm runs on the CPU only"):
        route.choose(*facts(algorithm="winograd"))


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"activation": "silu"}])
def test_gradients_without_a_kernel_are_stocks(options):
    assert list(route.candidates(*facts(**options))) == ["stock"]
    assert "direct" in route.candidates(*facts(needs_grad=False, **options))


def test_float64_is_stocks():
    assert list(route.candidates(*facts(torch.float64))) == ["stock"]


def test_what_no_kernel_serves_is_stocks(monkeypatch):
    def no_direct_kernel(spec, *_):
        return None if spec.algorithm == "epilogue" else "no CUDA kernel for this"

    monkeypatch.setattr(route, "_no_cuda", no_direct_kernel)
    assert list(route.candidates(*facts())) == ["epilogue", "stock"]
    with pytest.raises(RuntimeError, match="no CUDA kernel for this"):
        route.choose(*facts(algorithm="direct"))


def test_tf32_is_as_torch_allows_it():
    for allowed in (True, False):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert allows_tf32() == allowed


@pytest.mark.skipif(not _C.build_info()["cuda"], reason="this build has no CUDA kernels")
@pytest.mark.parametrize("gradients", [False, True])
def test_the_library_says_what_it_serves(gradients):
    def served(height, passes=0, **options):
        geometry = route.spec_of(*_bind(**options)).geometry((8, 8, 2, 2), epilogue=passes)
        return _C.cuda_serves_conv_relu_pool(
            [1, 8, height, height, 8, 2, 2], geometry, "float32", gradients
        )

    assert served(16)
    large = {"dilation": 400, "pool_size": (8, 16)}
    assert not served(900, **large)
    assert served(900, passes=route.EVERY_PASS, **large)
    assert not served(100_000, passes=route.EVERY_PASS)
