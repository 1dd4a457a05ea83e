"""Which code runs an upsample_conv_relu: its arguments, checked, and the choice of a route."""

import functools
from typing import NamedTuple

import torch

from imgfast import _C
from imgfast.ops import conv_relu_pool_route as conv
from imgfast.ops import cuda_route
from imgfast.ops import upsample_conv_relu_costs as costs
from imgfast.ops.conv_relu_pool_costs import Winograd
from imgfast.ops.conv_relu_pool_stock import ACTIVATIONS

ALGORITHMS = ("auto", "direct", "winograd", "stock")
_HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key(
    "imgfast::upsample_conv_relu_backward", "CUDA"
)
DEVICES = ("cpu", "cuda") if _HAS_CUDA else ("cpu",)
UNTIMED = "not timed on this device yet"


class Spec(NamedTuple):
    """The arguments of upsample_conv_relu beside its tensors."""

    scale_factor: int
    padding: int | tuple | str
    groups: int
    activation: str
    algorithm: str

    @classmethod
    def of(cls, scale_factor, padding, groups, activation, algorithm) -> "Spec":
        """Of the arguments as given.

        Raises:
            ValueError: a name that does not exist, or a scale factor that is no positive int.
        """
        if algorithm == "auto":
            algorithm = conv._forced_algorithm()
            if algorithm == "epilogue":  # conv_relu_pool's alone
                algorithm = "auto"
        for name, value, known in (
            ("activation", activation, tuple(ACTIVATIONS)),
            ("algorithm", algorithm, ALGORITHMS),
        ):
            if value not in known:
                raise ValueError(
                    f"upsample_conv_relu: {name} must be one of {', '.join(known)}, got {value!r}"
                )
        if not isinstance(scale_factor, int) or scale_factor < 1:
            raise ValueError(
                f"upsample_conv_relu: scale_factor must be a positive int, got {scale_factor!r}"
            )
        if padding == (1, 1):  # as torch.nn.Conv2d keeps it
            padding = 1
        return cls(scale_factor, padding, groups, activation, algorithm)

    @property
    def activation_number(self) -> int:
        """As in csrc/conv_relu_pool.h."""
        return tuple(ACTIVATIONS).index(self.activation)


def choose(
    spec,
    plain,
    device,
    planar,
    dtype,
    x_shape,
    weight_shape,
    bias_shape,
    transformed,
    needs_grad,
):
    """The route for a Spec and the facts that upsample_conv_relu gathers of its tensors; on CUDA,
    for :func:`faster` to judge.

    Args:
        plain: whether the tensors are of one dtype and device, strided, and of no subclass.
        planar: whether the output is NCHW.
    """
    if spec.algorithm == "stock":
        return conv.Route("stock", None, "asked for")
    obstacle = (
        "a torch.func transform or forward-mode derivative is active" if transformed else None
    )
    obstacle = obstacle or _no_kernel(
        spec, plain, device, dtype, x_shape, weight_shape, bias_shape, needs_grad
    )
    if obstacle is None and spec.algorithm == "auto":
        obstacle = _slower(device, planar, x_shape, weight_shape, needs_grad)
    if obstacle is None and spec.algorithm == "winograd" and dtype == torch.float64:
        obstacle = "float64 stays exact: Winograd is not"
    if obstacle is not None:
        if spec.algorithm in ("direct", "winograd") and not transformed:
            raise RuntimeError(
                f"upsample_conv_relu: algorithm={spec.algorithm!r} has no kernel here: {obstacle}"
            )
        return conv.Route("stock", None, obstacle)
    winograd = Winograd(0)
    if device == "cpu":
        count = _winograd if torch.compiler.is_compiling() else _winograd_again
        batch = x_shape[0] if len(x_shape) == 4 else 1
        winograd = count(spec, dtype, x_shape[-3:], batch, weight_shape, needs_grad)
    isa = conv._isa() if device == "cpu" else device
    name = "winograd" if Winograd.FORWARD in winograd else "direct"
    return conv.Route(
        name,
        isa,
        f"four filters of 2 x 2, {name}, {isa}",
        needs_grad,
        saves_y=needs_grad and spec.activation != "none",
        winograd=winograd,
    )


def faster(route, spec, x, weight, bias, allow_tf32, run) -> conv.Route:
    """On CUDA, of a route that a rule has chosen and stock's, the one that a clock finds faster;
    stock's while it may not be asked.

    Args:
        run: of x, weight, bias, spec and a route.
    """
    if not x.is_cuda or spec.algorithm != "auto" or route.name == "stock":
        return route
    tensors = x, weight, bias
    kind = (
        "upsample_conv_relu",
        x.device,
        x.dtype,
        x.shape,
        x.stride(),
        weight.shape,
        weight.stride(),
        bias is None,
        spec.activation,
        cuda_route.needs_grad(tensors),
        allow_tf32,
    )
    stock = conv.Route("stock", None, UNTIMED)
    runs = (functools.partial(run, spec=spec, route=of) for of in (route, stock))
    if cuda_route.kernel_wins(kind, *runs, tensors):
        return route._replace(reason=f"timed, faster than stock; {route.reason}")
    if cuda_route.is_timed(kind):
        stock = stock._replace(reason="timed, stock is faster")
    return stock


def _no_kernel(
    spec, plain, device, dtype, x_shape, weight_shape, bias_shape, needs_grad
) -> str | None:
    if not plain:
        return "a tensor is sparse, of a subclass, or of another device or dtype"
    if device not in DEVICES:
        return f"no kernel for device {device}"
    if device == "cuda" and dtype == torch.float64:
        return "no kernel for float64 on CUDA"
    if device == "cuda" and spec.algorithm == "winograd":
        return "Winograd's algorithm runs on the CPU only"
    if dtype not in conv.DTYPES:
        return f"no kernel for {dtype}"
    if len(x_shape) not in (3, 4) or len(weight_shape) != 4:
        return "not a 2-d convolution"
    if 0 in x_shape or 0 in weight_shape:
        return "an empty tensor"
    if spec.scale_factor != 2 or spec.padding != 1 or spec.groups != 1:
        return "kernels are for a scale factor of 2, padding 1 and one group"
    if tuple(weight_shape[1:]) != (x_shape[-3], 3, 3):
        return "kernels are for filters of 3 x 3"
    if bias_shape is not None and bias_shape != (weight_shape[0],):
        return "the shapes do not fit"
    if needs_grad and spec.activation in ("gelu", "silu"):
        return f"no gradient kernel for {spec.activation}, whose argument would have to be kept"
    if device == "cuda" and not torch.compiler.is_compiling():
        return _no_cuda(dtype, x_shape, weight_shape, needs_grad)
    return None


def _no_cuda(dtype, x_shape, weight_shape, needs_grad) -> str | None:
    images = x_shape if len(x_shape) == 4 else (1, *x_shape)
    name = str(dtype).removeprefix("torch.")
    served = all(
        _C.cuda_serves_upsample_conv_relu([*images, weight_shape[0]], name, tf32, needs_grad)
        for tf32 in (False, True)  # either may be allowed when it runs
    )
    return None if served else "no CUDA kernel for a map this large"


def _slower(device, planar, x_shape, weight_shape, needs_grad) -> str | None:
    """Where stock has been measured faster, or a measurement cannot be made."""
    if device == "cuda":
        return UNTIMED if torch.compiler.is_compiling() else None
    filters, channels = weight_shape[:2]
    positions = x_shape[-1] * x_shape[-2]
    if positions < 9:
        return "stock is faster for maps of less than 9 positions"
    images = x_shape[0] if len(x_shape) == 4 else 1
    if images * positions < 192 and filters * channels >= 1024:
        return "stock is faster for many filters at few positions"
    if not needs_grad and (channels < 3 or (planar and channels < 8)):
        return "stock is faster for inference of few channels"
    return None


def _winograd(spec, dtype, image, batch, weight_shape, needs_grad) -> Winograd:
    """The passes that run by Winograd's algorithm: all if it was asked for, else those that a count
    of operations says are faster so."""
    passes = Winograd(0)
    if spec.algorithm == "direct" or dtype == torch.float64:
        return passes
    sizes = batch, *image, weight_shape[0]
    of_passes = {Winograd.FORWARD: costs.forward(*sizes)}
    if needs_grad:
        of_passes[Winograd.INPUT | Winograd.WEIGHT] = costs.backward(*sizes)
    for flags, (winograd, direct) in of_passes.items():
        if spec.algorithm == "winograd" or winograd < direct:
            passes |= flags
    return passes


_winograd_again = functools.lru_cache(maxsize=1024)(_winograd)
