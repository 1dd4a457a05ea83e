"""conv_relu_pool: convolution, bias, activation and pooling as one operator."""

import functools
import inspect
from typing import NamedTuple

import torch

import imgfast
from imgfast.ops import autocast, timing, torch_state
from imgfast.ops import conv_relu_pool_autograd as autograd
from imgfast.ops.conv_relu_pool_route import Route, Spec, candidates, choose, spec_of
from imgfast.ops.conv_relu_pool_stock import conv_relu_pool_stock

_plans = {}  # what has been decided, by everything that a decision depends on
MAX_PLANS = 4096


def conv_relu_pool(
    x,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    activation="relu",
    pool="max",
    pool_size=2,
    pool_stride=None,
    pool_padding=0,
    pool_dilation=1,
    ceil_mode=False,
    count_include_pad=True,
    algorithm="auto",
):
    """Equals ``pool(activation(conv2d(x, weight, bias, stride, padding, dilation, groups)))``,
    without storing the convolution's output, forward or backward.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``; float32, float64, bfloat16 or float16, of any strides.
            NCHW and channels_last are both read in place.
        weight: ``[K, C / groups, R, S]``, of the dtype of ``x``.
        bias: ``[K]`` or None.
        stride, dilation, groups: as in :func:`torch.nn.functional.conv2d`.
        padding: zero padding, an int, a pair, ``"valid"`` or ``"same"``.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"sigmoid"``, ``"tanh"``,
            ``"gelu"`` (exact), ``"silu"`` or ``"none"``.
        pool: ``"max"``, ``"avg"`` or ``"none"``.
        pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode: as in
            :func:`torch.nn.functional.max_pool2d`; ``pool_stride=None`` is ``pool_size``.
        count_include_pad: as in :func:`torch.nn.functional.avg_pool2d`, which has no dilation.
        algorithm: ``"auto"``, ``"direct"`` or ``"winograd"`` (kernels of this package, an error
            where there is none), ``"epilogue"`` (on CUDA: torch's convolution, then bias,
            activation and pool in one kernel) or ``"stock"`` (the composition of torch's
            operators). The environment variable ``IMGFAST_ALGORITHM`` replaces ``"auto"``, and
            ``imgfast.benchmark = True`` has it timed.

    Returns:
        ``[N, K, PH, PW]`` (``[K, PH, PW]`` if unbatched), of dtype and memory format of the stock
        composition.

    Raises:
        ValueError: an unknown ``activation``, ``pool`` or ``algorithm``; a dilated average pool.
        RuntimeError: ``algorithm="direct"``, ``"winograd"`` or ``"epilogue"`` where no kernel fits;
            whatever the stock composition raises for the same arguments.

    Note:
        - Kept for backward: ``x``, ``weight`` and one byte per pooled output (for ``sigmoid`` and
          ``tanh``, and without a pool, also ``y``, which the next layer keeps anyway).
        - Of equal values the first in row-major order is the maximum, and NaN propagates, as in
          torch. For a monotone activation the pool is taken before it: where rounding makes sigmoid
          or tanh saturate, the gradient goes to the true maximum, not to the first tie.
        - Without gradients, packed weights are kept for the next call and used only if weight and
          bias are the same byte for byte, however they were changed; 256 MB at most.
        - Sums are accumulated in float32 for bfloat16 and float16.
        - ``"auto"`` takes Winograd's algorithm where it pays: for 2 to 5 taps of any dilation, or
          that many times a stride of up to 4 without one, in forward, and for the gradients of unit
          stride. Its error is larger than the direct one's: on normal data up to 6e-5 of the
          convolution's standard deviation against 3e-6, up to 1e-4 of a gradient's root mean
          square, and on any data below 5e-6 of a picture's largest sum of ``|x| |weight|``; for
          strided filters of up to two strides, without a pool, 2e-4 and 1e-5. Of values that are
          equal but for rounding, any may be the maximum. An infinity or NaN reaches the outputs
          beside it, within 7 dilations of its row and column, that share its tile.
        - On CUDA each new configuration is timed as under ``imgfast.benchmark``, also with torch's
          convolution between kernels of ours, forward, backward or both; the device's time decides,
          among the ways that take not much more of the host than stock. What may not be timed is
          stock's until it has been. float32 factors are rounded to tf32 where
          ``torch.backends.cudnn`` allows it.
        - ``imgfast.benchmark = True``, like ``torch.backends.cudnn.benchmark``: for each new
          configuration (shapes, strides, dtype, required gradients, threads) the routes of
          ``"auto"`` that fit are timed on the very tensors, with the gradients that are required,
          for half a second or one run of each; the fastest is remembered. A fixed rule decides
          under ``torch.compile``, ``torch.func`` transforms, dispatch modes and
          ``torch.use_deterministic_algorithms``.
        - Deterministic: the same bits for the same arguments and number of threads; with
          ``imgfast.benchmark`` within one process, as another one may time another route fastest.
        - Configurations without a kernel, float64 on CUDA, other devices, ``torch.func`` transforms
          and forward-mode derivatives run the stock composition; :func:`imgfast.dispatch_info`
          tells which and why.

    Source:
        Fusing a pool into the convolution's epilogue follows from ``max`` commuting with monotone
        functions; the sparse gradients from ``d max(s) / d s_i`` being 1 at one position only.
        A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016
        (arXiv:1509.09308).
    """
    arguments = (
        stride,
        padding,
        dilation,
        groups,
        activation,
        pool,
        pool_size,
        pool_stride,
        pool_padding,
        pool_dilation,
        ceil_mode,
        count_include_pad,
        algorithm,
    )
    if autocast.is_active(x):
        x, weight, bias = autocast.cast_convolution(x, weight, bias)
    if torch.compiler.is_compiling():
        plan = _plan(x, weight, bias, arguments)
    else:
        plan = _remembered_plan(x, weight, bias, arguments)
    return _run(x, weight, bias, plan)


def dispatch_info(x, weight, bias=None, *args, **kwargs) -> Route:
    """Which route :func:`conv_relu_pool` takes for these very arguments, and why.

    Under ``imgfast.benchmark``, and on CUDA, it times the routes where that has not been done yet,
    as the answer depends on it; ``reason`` then tells what each took, with the gradients that are
    required; ``mixed`` is the fixed rule's mixture of passes with and without Winograd's algorithm.

    Returns:
        A named tuple: ``name``, ``"direct"``, ``"winograd"``, ``"epilogue"`` or ``"stock"``;
        ``isa``, the kernel's instruction set (``"avx512"``, ``"avx2"``, ``"generic"``, ``"cuda"``)
        or None; ``reason``, a sentence; ``needs_grad``, ``saves_codes``, ``saves_y``, what a
        backward pass makes it keep; ``winograd`` and ``epilogue``, flags of the passes that run by
        Winograd's algorithm and around torch's convolution.

    Raises:
        As :func:`conv_relu_pool` for unknown names.
    """
    arguments = _bind(*args, **kwargs)
    if autocast.is_active(x):
        x, weight, bias = autocast.cast_convolution(x, weight, bias)
    if (imgfast.benchmark or x.is_cuda) and not torch.compiler.is_compiling():
        return _remembered_plan(x, weight, bias, arguments).route
    return _plan(x, weight, bias, arguments).route


def _bind(*args, **kwargs) -> tuple:
    """What conv_relu_pool's parameters after its tensors are for these arguments."""
    bound = inspect.signature(conv_relu_pool).bind(None, None, None, *args, **kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())[3:]


class Plan(NamedTuple):
    spec: Spec
    geometry: list[int] | None
    route: Route


def _remembered_plan(x, weight, bias, arguments) -> Plan:
    needs_grad = torch_state.needs_grad(x, weight, bias)
    key = (
        x.shape,
        x.dtype,
        x.layout,
        x.device,
        type(x),
        weight.shape,
        weight.dtype,
        weight.device,
        type(weight),
        bias is None,
        needs_grad,
        torch_state.is_transformed(),
        arguments,
    )
    timed = (imgfast.benchmark or x.is_cuda) and timing.possible(x, weight)
    if timed or x.is_cuda:  # what speed depends on beside
        key += (
            x.stride(),
            weight.stride(),
            torch.get_num_threads(),
            needs_grad and tuple(t is not None and t.requires_grad for t in (x, weight, bias)),
            x.is_cuda and torch_state.allows_tf32(),
        )
    try:
        plan = _plans.get(key)
    except TypeError:  # something that cannot be looked up: a list, or a size that is a symbol
        if isinstance(arguments, Spec):
            return _plan(x, weight, bias, arguments)
        return _remembered_plan(x, weight, bias, spec_of(*arguments))
    if plan is None:
        plan = _plan(x, weight, bias, arguments, timed)
        if x.is_cuda and not timed:
            return plan  # a rule's, until a clock may decide
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


def _plan(x, weight, bias, arguments, timed=False) -> Plan:
    spec = spec_of(*arguments)
    tensors = [t for t in (x, weight, bias) if t is not None]
    plain = torch.compiler.is_compiling() or all(
        type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided for t in tensors
    )
    device, dtype = tensors[0].device.type, tensors[0].dtype
    facts = (
        spec,
        plain,
        device if all(t.device.type == device for t in tensors) else "mixed",
        dtype if all(t.dtype == dtype for t in tensors) else None,
        tuple(x.shape),
        tuple(weight.shape),
        None if bias is None else tuple(bias.shape),
        torch_state.is_transformed(),
        torch_state.needs_grad(x, weight, bias),
    )
    if timed and len(routes := candidates(*facts)) > 1:
        return _fastest({k: _plan_of(spec, weight, r) for k, r in routes.items()}, x, weight, bias)
    return _plan_of(spec, weight, choose(*facts))


def _plan_of(spec, weight, route) -> Plan:
    if route.name == "stock":
        return Plan(spec, None, route)
    tf32 = weight.is_cuda and torch_state.allows_tf32()
    return Plan(spec, spec.geometry(weight.shape, route.winograd, route.epilogue, tf32), route)


def _fastest(plans, x, weight, bias) -> Plan:
    """The one of these plans, by name, that the stopwatch finds fastest."""
    runs = {name: functools.partial(_run, plan=plan) for name, plan in plans.items()}
    times = timing.times(runs, (x, weight, bias))
    told = "timed: " + ", ".join(f"{name} {seconds}" for name, seconds in times.items())
    plan = plans[next(iter(times))]
    if plan.route.name != "stock":
        told += f"; {plan.route.reason}"
    return plan._replace(route=plan.route._replace(reason=told))


def _run(x, weight, bias, plan):
    spec, geometry, route = plan
    if route.name == "stock":
        return conv_relu_pool_stock(x, weight, bias, spec)
    if x.dim() == 3:
        return _run(x.unsqueeze(0), weight, bias, plan).squeeze(0)
    if torch.compiler.is_compiling():
        return torch.ops.imgfast.conv_relu_pool(x, weight, bias, geometry, route.saves_codes)[0]
    return autograd.run(x, weight, bias, geometry, route)
