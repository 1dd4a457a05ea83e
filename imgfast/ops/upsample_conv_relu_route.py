"""Which code runs an upsample_conv_relu: its arguments, checked, and the choice of a route."""

import functools
from typing import NamedTuple

import torch

from imgfast.ops import conv_relu_pool_route as conv
from imgfast.ops.conv_relu_pool_costs import Costs, Winograd
from imgfast.ops.conv_relu_pool_stock import ACTIVATIONS

ALGORITHMS = ("auto", "direct", "winograd", "stock")


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


def choose(spec, plain, planar, dtype, x_shape, weight_shape, bias_shape, transformed, needs_grad):
    """The route for a Spec and the facts that upsample_conv_relu gathers of its tensors.

    Args:
        planar: whether the output is NCHW.
    """
    if spec.algorithm == "stock":
        return conv.Route("stock", None, "asked for")
    obstacle = (
        "a torch.func transform or forward-mode derivative is active" if transformed else None
    )
    obstacle = obstacle or _no_kernel(
        spec, plain, dtype, x_shape, weight_shape, bias_shape, needs_grad
    )
    if obstacle is None and spec.algorithm == "auto":
        obstacle = _slower(planar, x_shape, weight_shape, needs_grad)
    if obstacle is None and spec.algorithm == "winograd" and dtype == torch.float64:
        obstacle = "float64 stays exact: Winograd is not"
    if obstacle is not None:
        if spec.algorithm in ("direct", "winograd") and not transformed:
            raise RuntimeError(
                f"upsample_conv_relu: algorithm={spec.algorithm!r} has no kernel here: {obstacle}"
            )
        return conv.Route("stock", None, obstacle)
    count = _winograd if torch.compiler.is_compiling() else _winograd_again
    batch = x_shape[0] if len(x_shape) == 4 else 1
    winograd = count(spec, dtype, x_shape[-3:], batch, weight_shape, needs_grad)
    isa = conv._isa()
    name = "winograd" if Winograd.FORWARD in winograd else "direct"
    return conv.Route(
        name,
        isa,
        f"four filters of 2 x 2, {name}, {isa}",
        needs_grad,
        saves_y=needs_grad and spec.activation != "none",
        winograd=winograd,
    )


def _no_kernel(spec, plain, dtype, x_shape, weight_shape, bias_shape, needs_grad) -> str | None:
    if not plain:
        return "a tensor is not on the CPU, sparse, of a subclass or of another dtype"
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
    return None


def _slower(planar, x_shape, weight_shape, needs_grad) -> str | None:
    """Where stock has been measured faster."""
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
    channels, height, width = image
    filters = weight_shape[0]
    parity = _conv((1, 1))
    # Filters are packed in every call, as for a gradient.
    forward = Costs(
        parity, (batch, channels, height + 1, width + 1), (filters, channels, 2, 2), True
    )
    costs = {Winograd.FORWARD: forward.forward()}
    if needs_grad:
        adjoint = _conv((2, 2))
        to_x = Costs(
            adjoint,
            (batch, filters, 2 * height + 2, 2 * width + 2),
            (channels, filters, 4, 4),
            True,
        )
        costs |= {Winograd.INPUT: to_x.forward(), Winograd.WEIGHT: forward.weight()}
    for flag, (winograd, direct) in costs.items():
        if spec.algorithm == "winograd" or winograd < direct:
            passes |= flag
    return passes


_winograd_again = functools.lru_cache(maxsize=1024)(_winograd)


def _conv(stride) -> conv.Spec:
    """A convolution without padding, to count its operations."""
    one, zero = (1, 1), (0, 0)
    return conv.Spec(stride, zero, one, 1, "none", "none", one, one, zero, one, False, True, "auto")
