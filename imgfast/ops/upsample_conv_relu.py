"""upsample_conv_relu: nearest-neighbour upsampling, convolution, bias and activation as one
operator."""

import torch

from imgfast.ops import autocast, torch_state
from imgfast.ops import upsample_conv_relu_autograd as autograd
from imgfast.ops.conv_relu_pool_route import Route
from imgfast.ops.upsample_conv_relu_route import Spec, choose, faster
from imgfast.ops.upsample_conv_relu_stock import upsample_conv_relu_stock


def upsample_conv_relu(
    x,
    weight,
    bias=None,
    *,
    scale_factor=2,
    padding=1,
    groups=1,
    activation="relu",
    algorithm="auto",
):
    """Equals ``activation(conv2d(interpolate(x, scale_factor, mode="nearest"), weight, bias,
    padding=padding, groups=groups))``, without storing the upsampled map, forward or backward.

    For a filter of 3 x 3 behind an upsampling by 2, the outputs of even and odd rows and columns
    are convolutions of ``x`` itself with filters of 2 x 2 taps, sums of the filter's own. Along one
    dimension, with taps ``w0, w1, w2``::

        y[2 i]     = w0 x[i - 1] + (w1 + w2) x[i]
        y[2 i + 1] = (w0 + w1) x[i] + w2 x[i + 1]

    which is 4 multiply-adds an output instead of 9. The gradient of ``x`` is one convolution of
    stride 2 with 4 x 4 such sums; that of ``weight`` is added up from the gradients of the four.
    On CPUs, Winograd's algorithm of tiles of ``x`` needs 1.1 to 1.3, as the four share tiles and
    some of the products; so do the gradients.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``; float32, float64, bfloat16 or float16, of any strides.
        weight: ``[K, C / groups, R, S]``, of the dtype of ``x``.
        bias: ``[K]`` or None.
        scale_factor: of both dimensions, an int; kernels are for 2.
        padding: zero padding of the upsampled map, as in :func:`torch.nn.functional.conv2d`;
            kernels are for 1.
        groups: as in :func:`torch.nn.functional.conv2d`; kernels are for 1.
        activation, algorithm: as in :func:`imgfast.conv_relu_pool`; there is no ``"epilogue"``.

    Returns:
        ``[N, K, scale_factor H, scale_factor W]`` for 3 x 3 taps and padding 1 (unbatched without
        ``N``), of dtype and memory format of the stock composition.

    Raises:
        ValueError: an unknown ``activation`` or ``algorithm``, or a ``scale_factor`` that is no
            positive int.
        RuntimeError: ``algorithm="direct"`` or ``"winograd"`` where no kernel fits; whatever the
            stock composition raises for the same arguments.

    Note:
        - Kept for backward: ``x``, ``weight`` and, for an activation, ``y``, which the next layer
          keeps anyway.
        - Sums of taps and products are float32 for bfloat16 and float16; on CUDA, tensor cores take
          sums of taps rounded to these, which adds about as much error as the output's rounding.
        - ``"auto"`` takes Winograd's algorithm where a count of operations says that it pays, with
          tiles of 4 x 4, 5 x 5 or 7 x 7 samples of ``x``, whichever cover it best. Its error on
          normal data is up to 6e-5 of the convolution's or a gradient's standard deviation, with
          tiles of 7 x 7 up to 2e-4, and on any data below 1e-5 of a picture's largest sum of
          ``|x| |weight|``.
          An infinity or NaN reaches all outputs that its tile has a part in.
        - On CUDA, the first call of each kind is timed both ways and the faster one remembered;
          while that may not be done (graph capture, deterministic algorithms, ``torch.compile``)
          stock runs. float32 factors are rounded to tf32 where torch allows that of convolutions.
        - Deterministic: the same bits for the same arguments and number of threads.
        - Other filters and scale factors, float64 on CUDA, tensor subclasses, derivatives of gelu
          and silu, ``torch.func`` transforms and forward-mode derivatives run the stock
          composition; :func:`imgfast.upsample_dispatch_info` tells which and why. Second
          derivatives are the stock composition's.

    Source:
        A. Odena, V. Dumoulin and C. Olah, Deconvolution and Checkerboard Artifacts, 2016
        (doi:10.23915/distill.00003), for upsampling before convolution in decoders; A. Lavin and
        S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016 (arXiv:1509.09308), whose
        F(m, 2) is transposed here, into the algorithm of Cook and Toom: R. Blahut, Fast Algorithms
        for Signal Processing, Cambridge University Press, 2010.
    """
    return _run(*_prepare(x, weight, bias, scale_factor, padding, groups, activation, algorithm))


def upsample_dispatch_info(
    x,
    weight,
    bias=None,
    *,
    scale_factor=2,
    padding=1,
    groups=1,
    activation="relu",
    algorithm="auto",
) -> Route:
    """Which route :func:`upsample_conv_relu` takes for these very arguments, and why; see
    :func:`imgfast.dispatch_info`. On CUDA it times kernels and stock where that has not been done
    yet."""
    return _prepare(x, weight, bias, scale_factor, padding, groups, activation, algorithm)[-1]


def _prepare(x, weight, bias, *arguments):
    """The tensors as autocast wants them, the arguments as a Spec, and the route."""
    if autocast.is_active(x):
        x, weight, bias = autocast.cast_convolution(x, weight, bias)
    spec = Spec.of(*arguments)
    return x, weight, bias, spec, _route_of(x, weight, bias, spec)


def _route_of(x, weight, bias, spec) -> Route:
    tensors = [t for t in (x, weight, bias) if t is not None]
    plain = torch.compiler.is_compiling() or all(
        type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided for t in tensors
    )
    route = choose(
        spec,
        plain and all(t.device == x.device and t.dtype == x.dtype for t in tensors),
        x.device.type,
        not any(
            t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight)
        ),
        x.dtype,
        tuple(x.shape),
        tuple(weight.shape),
        None if bias is None else tuple(bias.shape),
        torch_state.is_transformed(),
        torch_state.needs_grad(x, weight, bias),
    )
    return faster(route, spec, x, weight, bias, x.is_cuda and torch_state.allows_tf32(), _run)


def _run(x, weight, bias, spec, route):
    if route.name == "stock":
        return upsample_conv_relu_stock(x, weight, bias, spec)
    if x.dim() == 3:
        return _run(x.unsqueeze(0), weight, bias, spec, route).squeeze(0)
    tf32 = x.is_cuda and torch_state.allows_tf32()
    numbers = spec.activation_number, int(route.winograd), tf32
    if torch.compiler.is_compiling():
        return torch.ops.imgfast.upsample_conv_relu(x, weight, bias, *numbers)
    return autograd.run(x, weight, bias, numbers, route)
