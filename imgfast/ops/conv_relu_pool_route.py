"""Which code runs a conv_relu_pool: the arguments in canonical form, and the choice of a route."""

import enum
import os
from typing import NamedTuple

import torch

from imgfast import _C
from imgfast.ops.conv_relu_pool_costs import Costs, Winograd, winograd_taps
from imgfast.ops.conv_relu_pool_stock import ACTIVATIONS
from imgfast.ops.torch_state import constant

POOLS = ("none", "max", "avg")  # in the order of csrc/conv_relu_pool.h, as are ACTIVATIONS
KERNELS = ("direct", "winograd", "epilogue")
ALGORITHMS = ("auto", *KERNELS, "stock")
_HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key(
    "imgfast::conv_relu_pool_backward", "CUDA"
)
DEVICES = ("cpu", "cuda") if _HAS_CUDA else ("cpu",)
EPILOGUE_DEVICES = DEVICES[1:]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_WINDOW = 128  # positions that a code of a max pool can name, as in csrc/conv_relu_pool.h
MAX_AVG_WINDOW = 8  # and of an average pool


class Epilogue(enum.IntFlag):
    """Passes in which torch computes the convolution, and a kernel of ours what is around it; bits
    as in csrc/conv_relu_pool.h."""

    FORWARD = 1
    BACKWARD = 2


EVERY_PASS = Epilogue.FORWARD | Epilogue.BACKWARD


class Route(NamedTuple):
    """Which code runs, on which instruction set, and why."""

    name: str
    isa: str | None
    reason: str
    needs_grad: bool = False
    saves_codes: bool = False
    saves_y: bool = False
    winograd: Winograd = Winograd(0)
    epilogue: Epilogue = Epilogue(0)


class Spec(NamedTuple):
    """The arguments of conv_relu_pool beside its tensors, in canonical form: pairs, and no None."""

    stride: tuple
    padding: tuple | str
    dilation: tuple
    groups: int
    activation: str
    pool: str
    pool_size: tuple
    pool_stride: tuple
    pool_padding: tuple
    pool_dilation: tuple
    ceil_mode: bool
    count_include_pad: bool
    algorithm: str

    def geometry(self, weight_shape, winograd=0, epilogue=0, allow_tf32=False) -> list[int]:
        """The operators' list of integers, in the order of Geometry in csrc/conv_relu_pool.h."""
        return [
            *self.stride,
            *self.explicit_padding(weight_shape),
            *self.dilation,
            self.groups,
            tuple(ACTIVATIONS).index(self.activation),
            POOLS.index(self.pool),
            *self.pool_size,
            *self.pool_stride,
            *self.pool_padding,
            *self.pool_dilation,
            int(self.ceil_mode),
            int(self.count_include_pad),
            int(winograd),
            int(epilogue),
            int(allow_tf32),
        ]

    @classmethod
    def of_geometry(cls, geometry) -> "Spec":
        """The inverse of :meth:`geometry`."""
        g = list(geometry)
        pairs = [tuple(g[i : i + 2]) for i in (0, 2, 4, 9, 11, 13, 15)]
        names = (tuple(ACTIVATIONS)[g[7]], POOLS[g[8]])
        return cls(
            *pairs[:3],
            g[6],
            *names,
            *pairs[3:],
            bool(g[17]),
            bool(g[18]),
            "winograd" if g[19] else "epilogue" if g[20] else "direct",
        )

    def conv_size(self, x_shape, weight_shape) -> list[int]:
        """Height and width of the convolution's output, of shapes that fit."""
        padding = self.explicit_padding(weight_shape)
        return [
            (size + 2 * pad - d * (tap - 1) - 1) // step + 1
            for size, pad, d, tap, step in zip(
                x_shape[-2:], padding, self.dilation, weight_shape[2:], self.stride, strict=True
            )
        ]

    def explicit_padding(self, weight_shape):
        """The padding as a pair; None where ``"same"`` needs more on one side than on the other."""
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            total = [
                d * (size - 1) for d, size in zip(self.dilation, weight_shape[2:], strict=True)
            ]
            return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
        return self.padding


def spec_of(*arguments) -> Spec:
    """The canonical form of conv_relu_pool's arguments, given in the order of a Spec's fields.

    Raises:
        ValueError: a name that does not exist, or a dilated average.
    """
    spec = Spec(*arguments)
    algorithm = _forced_algorithm() if spec.algorithm == "auto" else spec.algorithm
    for name, value, known in (
        ("activation", spec.activation, tuple(ACTIVATIONS)),
        ("pool", spec.pool, POOLS),
        ("algorithm", algorithm, ALGORITHMS),
    ):
        if value not in known:
            raise ValueError(
                f"conv_relu_pool: {name} must be one of {', '.join(known)}, got {value!r}"
            )
    pool_size, pool_dilation = _pair(spec.pool_size), _pair(spec.pool_dilation)
    if spec.pool == "avg" and pool_dilation != (1, 1):
        raise ValueError(
            "conv_relu_pool: pool_dilation must be 1 for pool='avg', as torch's avg_pool2d has "
            f"none, got {pool_dilation}"
        )
    return spec._replace(
        stride=_pair(spec.stride),
        padding=spec.padding if isinstance(spec.padding, str) else _pair(spec.padding),
        dilation=_pair(spec.dilation),
        pool_size=pool_size,
        pool_stride=pool_size if spec.pool_stride is None else _pair(spec.pool_stride),
        pool_padding=_pair(spec.pool_padding),
        pool_dilation=pool_dilation,
        algorithm=algorithm,
    )


def _pair(value):
    """(value, value) for a number; sequences stay what they are, for torch to judge."""
    if isinstance(value, int):
        return (value, value)
    value = tuple(value)
    return value * 2 if len(value) == 1 else value


# Facts about process and machine, which torch.compile may take for constants.


@constant
def _forced_algorithm() -> str:
    return os.environ.get("IMGFAST_ALGORITHM") or "auto"


@constant
def _isa() -> str:
    return _C.cpu_isa()


@constant
def _has_matrix_units() -> bool:
    return torch.cpu._is_amx_tile_supported()


def choose(spec, plain, device, dtype, x_shape, weight_shape, bias_shape, transformed, needs_grad):
    """The route for a Spec and the facts that conv_relu_pool gathers of its tensors."""
    if spec.algorithm == "stock":
        return Route("stock", None, "asked for")
    around = spec.algorithm == "epilogue"
    if around and torch.compiler.is_compiling():
        return Route("stock", None, "torch.compile fuses what is around a convolution itself")
    obstacle = (
        "a torch.func transform or forward-mode derivative is active" if transformed else None
    )
    obstacle = (
        obstacle
        or _no_tensors(spec, plain, device, dtype)
        or _no_shapes(spec, x_shape, weight_shape, bias_shape)
        or (_no_gradient(spec, x_shape, weight_shape) if needs_grad else None)
    )
    if obstacle is None and spec.algorithm == "auto":
        obstacle = _slower(spec, device, dtype, x_shape, weight_shape, needs_grad)
    if obstacle is None and around and device not in EPILOGUE_DEVICES:
        obstacle = "the epilogue around torch's convolution runs on CUDA only"
    if obstacle is None and device == "cuda" and not torch.compiler.is_compiling():
        obstacle = _no_cuda(spec, dtype, x_shape, weight_shape, needs_grad)
    if obstacle is None and spec.algorithm == "winograd":
        obstacle = _no_winograd(spec, dtype, weight_shape)
    if obstacle is None:
        winograd = Winograd(0)
        if spec.algorithm not in ("direct", "epilogue") and device == "cpu":
            winograd = _winograd(spec, dtype, x_shape, weight_shape, needs_grad)
        isa = _isa() if device == "cpu" else device
        name = "winograd" if Winograd.FORWARD in winograd else "direct"
        reason = _explain(spec, weight_shape, winograd, isa, needs_grad)
        if around:
            name, reason = "epilogue", "bias, activation and pool in one pass after torch's conv2d"
        return Route(
            name,
            isa,
            reason,
            needs_grad,
            saves_codes=needs_grad and needs_codes(spec),
            saves_y=needs_grad and needs_y(spec),
            winograd=winograd,
            epilogue=EVERY_PASS if around else Epilogue(0),
        )
    if spec.algorithm in KERNELS and not transformed:
        raise RuntimeError(
            f"conv_relu_pool: algorithm={spec.algorithm!r} has no kernel here: {obstacle}"
        )
    return Route("stock", None, obstacle)


def candidates(spec, plain, device, dtype, *facts) -> dict[str, Route]:
    """The routes that :func:`choose` can be made to take for these facts, by name.

    ``"mixed"`` is what the fixed rule makes of the passes, where that is neither all by Winograd's
    algorithm nor none; ``"direct, epilogue"`` goes forward by the one and back by the other. There
    is but one route where algorithm is not ``"auto"``, or no kernel fits.
    """
    if spec.algorithm != "auto":
        return {spec.algorithm: choose(spec, plain, device, dtype, *facts)}
    found = {}  # by the passes that are Winograd's and the epilogue's, None for stock
    for algorithm in (*KERNELS, "auto", "stock"):
        try:
            route = choose(spec._replace(algorithm=algorithm), plain, device, dtype, *facts)
        except RuntimeError:  # no kernel
            continue
        if route.name != "stock":
            name = "mixed" if algorithm == "auto" else algorithm
            found.setdefault((route.winograd, route.epilogue), (name, route))
        elif not found or not _stock_crashes(spec, device, dtype):
            found.setdefault(None, ("stock", route))
    routes = dict(found.values())
    direct, around = routes.get("direct"), routes.get("epilogue")
    if direct and around and direct.needs_grad:
        routes["direct, epilogue"] = direct._replace(epilogue=Epilogue.BACKWARD)
        routes["epilogue, direct"] = around._replace(epilogue=Epilogue.FORWARD)
    return routes


def needs_codes(spec) -> bool:
    """Whether the gradient reads codes: of a maximum's place, of what was averaged as active."""
    return spec.pool == "max" or (spec.pool == "avg" and spec.activation != "none")


def needs_y(spec) -> bool:
    """Whether the gradient reads the activation's derivative off the output."""
    smooth = spec.activation in ("sigmoid", "tanh")
    return smooth or (spec.pool == "none" and spec.activation != "none")


def _no_tensors(spec, plain, device, dtype) -> str | None:
    if not plain:
        return "a tensor is sparse, or of a subclass"
    if device not in DEVICES:
        return f"no kernel for device {device}"
    if device == "cuda" and dtype is torch.float64:
        return "no kernel for float64 on CUDA"
    if device == "cuda" and spec.algorithm == "winograd":
        return "Winograd's algorithm runs on the CPU only"
    if dtype not in DTYPES:
        return "the tensors differ in dtype" if dtype is None else f"no kernel for {dtype}"
    return None


def _no_shapes(spec, x_shape, weight_shape, bias_shape) -> str | None:
    """Shapes that no kernel takes: empty ones, and wrong ones, for which stock has the error."""
    if len(x_shape) not in (3, 4) or len(weight_shape) != 4:
        return "not a 2-d convolution"
    if 0 in x_shape or 0 in weight_shape:
        return "an empty tensor"
    pairs = (
        spec.stride,
        spec.dilation,
        spec.pool_size,
        spec.pool_stride,
        spec.pool_padding,
        spec.pool_dilation,
    )
    padding = spec.explicit_padding(weight_shape)
    if padding is None:
        return "padding='same' is not symmetric for this filter"
    if isinstance(spec.padding, str) and spec.stride != (1, 1) and spec.padding == "same":
        return "padding='same' with a stride"
    if any(len(pair) != 2 for pair in (*pairs, padding)):
        return "an argument is not a pair"
    positive = (
        *spec.stride,
        *spec.dilation,
        *spec.pool_size,
        *spec.pool_stride,
        *spec.pool_dilation,
    )
    if min(positive) < 1 or min(*padding, *spec.pool_padding) < 0:
        return "an argument is out of range"
    filters, channels = weight_shape[:2]
    if (
        not isinstance(spec.groups, int)
        or spec.groups < 1
        or channels * spec.groups != x_shape[-3]
        or filters % spec.groups
        or (bias_shape is not None and bias_shape != (filters,))
    ):
        return "the shapes do not fit"
    conv = spec.conv_size(x_shape, weight_shape)
    if min(conv) < 1:
        return "the filter is larger than the padded input"
    if spec.pool == "none":
        return None
    if any(
        2 * pad > window or size + 2 * pad < d * (window - 1) + 1
        for size, window, pad, d in zip(
            conv, spec.pool_size, spec.pool_padding, spec.pool_dilation, strict=True
        )
    ):
        return "the pool does not fit the convolution's output"
    if spec.pool_dilation != (1, 1) and spec.pool_padding != (0, 0):
        return "a pool with both dilation and padding"
    if spec.pool_size[0] * spec.pool_size[1] > MAX_WINDOW:
        return f"a pool window of more than {MAX_WINDOW} positions"
    return None


def _no_gradient(spec, x_shape, weight_shape) -> str | None:
    rows = (spec.pool_size[0] - 1) * spec.pool_dilation[0] * spec.stride[0]
    rows += (weight_shape[2] - 1) * spec.dilation[0] + 1
    if rows * (x_shape[-1] + 2 * spec.explicit_padding(weight_shape)[1]) * 32 >= 2**31:
        return "rows too long for the 32-bit places of the gradient kernels"
    if spec.activation in ("gelu", "silu"):
        return f"no gradient kernel for {spec.activation}, whose argument would have to be kept"
    if spec.pool != "avg" or spec.activation == "none":
        return None
    if spec.activation in ("sigmoid", "tanh"):
        return f"no gradient kernel for an average of {spec.activation}"
    if spec.pool_size[0] * spec.pool_size[1] > MAX_AVG_WINDOW:
        return f"no gradient kernel for averages of more than {MAX_AVG_WINDOW} activated positions"
    return None


def _no_cuda(spec, dtype, x_shape, weight_shape, needs_grad) -> str | None:
    images = x_shape if len(x_shape) == 4 else (1, *x_shape)
    sizes = [*images, weight_shape[0], *weight_shape[2:]]
    name = str(dtype).removeprefix("torch.")
    around = spec.algorithm == "epilogue"
    passes = EVERY_PASS if around else Epilogue(0)
    served = all(
        _C.cuda_serves_conv_relu_pool(
            sizes, spec.geometry(weight_shape, 0, passes, tf32), name, needs_grad
        )
        for tf32 in (False, True)  # either may be allowed when it runs
    )
    if served:
        return None
    if around:
        return "too many positions for the 32-bit places of the epilogue's kernels"
    return "no CUDA kernel for a filter and pool this large"  # whose tile fits in shared memory


def _slower(spec, device, dtype, x_shape, weight_shape, needs_grad) -> str | None:
    """Where stock has been measured faster, or nothing has been measured."""
    if device == "cuda":
        return "not timed on this device yet"
    if dtype is torch.bfloat16 and _has_matrix_units() and not _stock_crashes(spec, device, dtype):
        return "stock is faster in bfloat16 on processors with matrix units"
    filters, channels = weight_shape[0] // spec.groups, weight_shape[1]
    if spec.groups > 1 and filters < 8 and not _is_depthwise(spec, weight_shape):
        return "stock is faster for groups of few filters"
    weights = channels * weight_shape[0]
    images = x_shape[0] if len(x_shape) == 4 else 1
    height, width = spec.conv_size(x_shape, weight_shape)
    positions = images * height * width
    if _is_depthwise(spec, weight_shape) and spec.pool == "none":
        # Only the activation is fused: it pays where a call's overhead counts, or where the
        # result is far larger than the caches. Stock's gradients are good at 3 x 3 alone.
        small = spec.stride == (1, 1) and weight_shape[2] * weight_shape[3] <= 9
        if 2**16 < positions * weight_shape[0] < 2**23 and (small or not needs_grad):
            return "stock is faster for depthwise filters without a pool"
    if tuple(weight_shape[2:]) == (1, 1):
        if spec.pool == "none" or (spec.pool == "avg" and needs_grad):
            return "stock is faster for filters of 1 x 1 without a maximum"
        if (filters < 8 and channels >= 16) or weights == 1:
            return "stock is faster for few filters of 1 x 1"
        if weights >= 4096 and positions < (800 if weights >= 2**18 else 256):
            return "stock is faster for filters of 1 x 1 at few positions"
    if spec.dilation != (1, 1) and channels >= 16:  # of fewer, stock's kernels do no less
        costs = Costs(spec, x_shape, weight_shape, needs_grad)
        if costs.stock() < costs.ours(not _no_winograd(spec, dtype, weight_shape)):
            return "stock is faster for dilated filters of which much lies in the padding"
    if needs_grad and (2048 * positions <= weights or (positions <= 16 and weights >= 4096)):
        return "stock is faster for gradients of few positions"
    return None


def _stock_crashes(spec, device, dtype) -> bool:
    """Strided bfloat16 gradients in oneDNN with matrix units (torch 2.14.1: SIGILL at tilezero)."""
    strided = dtype is torch.bfloat16 and spec.stride != (1, 1)
    return strided and device == "cpu" and _has_matrix_units()


def _is_depthwise(spec, weight_shape) -> bool:
    """As is_depthwise in csrc/conv_relu_pool.h."""
    return spec.groups > 1 and tuple(weight_shape[:2]) == (spec.groups, 1)


def _has_few_filters(spec, weight_shape) -> bool:
    """As has_few_filters in csrc/cpu/conv_relu_pool.h."""
    filters, channels = weight_shape[:2]
    plain = spec.pool == "none" and spec.stride == spec.dilation == (1, 1) and spec.groups == 1
    return plain and filters <= 4 and channels >= 8


def _no_winograd(spec, dtype, weight_shape) -> str | None:
    if _is_depthwise(spec, weight_shape):
        return "depthwise filters have kernels of their own"
    stride = spec.stride[0]
    if spec.stride != (stride, stride) or stride > (4 if spec.dilation == (1, 1) else 1):
        return "Winograd is for strides of 1 to 4, and of 1 for dilated filters"
    if not 2 <= winograd_taps(spec, weight_shape) <= 5:
        return "Winograd is for filters of 2 to 5 taps, times the stride"
    if dtype == torch.float64:
        return "float64 stays exact: Winograd is not"
    return None


def _winograd(spec, dtype, x_shape, weight_shape, needs_grad) -> Winograd:
    """The passes that run by Winograd's algorithm: all that can if it was asked for, else those
    that a count of operations says are faster so."""
    passes = Winograd(0)
    if _no_winograd(spec, dtype, weight_shape):
        return passes
    costs = Costs(spec, x_shape, weight_shape, needs_grad)
    asked = spec.algorithm == "winograd"
    if not asked and _has_few_filters(spec, weight_shape):
        return passes
    for flag, (winograd, direct) in costs.passes().items():
        possible = flag == Winograd.FORWARD or spec.stride == (1, 1)
        if possible and (asked or winograd < direct):
            passes |= flag
    return passes


def _explain(spec, weight_shape, winograd, isa, needs_grad) -> str:
    taps = winograd_taps(spec, weight_shape)
    name = f"Winograd F({7 - taps}x{7 - taps}, {taps}x{taps})"

    def route(flag, otherwise):
        return name if flag in winograd else otherwise

    depthwise = _is_depthwise(spec, weight_shape)
    dense = depthwise or _has_few_filters(spec, weight_shape)
    sums = "dense sums" if dense else "sparse sums"
    convolution = "depthwise convolution" if depthwise else "direct convolution"
    text = f"{route(Winograd.FORWARD, convolution)}, {isa}"
    if needs_grad:
        text += f"; gradient of x: {route(Winograd.INPUT, sums)}"
        text += f", of weight: {route(Winograd.WEIGHT, sums)}"
    return text
