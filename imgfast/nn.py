"""Layers: drop-ins for torch.nn's, with the same parameters under the same names."""

import math

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _WeightedLoss

from imgfast.ops.conv_relu_pool import conv_relu_pool
from imgfast.ops.cross_entropy import cross_entropy
from imgfast.ops.linear_cross_entropy import linear_cross_entropy
from imgfast.ops.margin_loss import arcface_loss, cosface_loss
from imgfast.ops.upsample_conv_relu import upsample_conv_relu


class ConvReLUPool2d(torch.nn.Conv2d):
    """Equals ``Conv2d``, activation and pool in sequence, as one fused operator.

    A :class:`torch.nn.Conv2d` with the same parameters (``weight``, ``bias``), initialisation and
    ``state_dict``; the keyword arguments after ``padding_mode`` are those of
    :func:`imgfast.conv_relu_pool`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
        padding_mode, device, dtype: as in :class:`torch.nn.Conv2d`.
        activation, pool, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode,
        count_include_pad, algorithm: as in :func:`imgfast.conv_relu_pool`.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to the pooled ``[N, K, PH, PW]`` or ``[K, PH, PW]``.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
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
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.activation = activation
        self.pool = pool
        self.pool_size = pool_size
        self.pool_stride = pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.algorithm = algorithm

    def forward(self, input):
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv_relu_pool(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            pool=self.pool,
            pool_size=self.pool_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            pool_dilation=self.pool_dilation,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            algorithm=self.algorithm,
        )

    def extra_repr(self):
        text = f"{super().extra_repr()}, activation={self.activation}, pool={self.pool}"
        return text if self.pool == "none" else f"{text}, pool_size={self.pool_size}"


class UpsampleConvReLU2d(torch.nn.Conv2d):
    """Equals ``Upsample(scale_factor)`` (nearest), ``Conv2d`` and activation in sequence, as one
    fused operator.

    A :class:`torch.nn.Conv2d` of stride 1 with the same parameters (``weight``, ``bias``),
    initialisation and ``state_dict``.

    Args:
        in_channels, out_channels, kernel_size, padding, groups, bias, device, dtype: as in
            :class:`torch.nn.Conv2d`.
        scale_factor, activation, algorithm: as in :func:`imgfast.upsample_conv_relu`.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, 2 H, 2 W]`` or ``[K, 2 H, 2 W]`` by default.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        groups=1,
        bias=True,
        *,
        scale_factor=2,
        activation="relu",
        algorithm="auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=padding,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.scale_factor = scale_factor
        self.activation = activation
        self.algorithm = algorithm

    def forward(self, input):
        return upsample_conv_relu(
            input,
            self.weight,
            self.bias,
            scale_factor=self.scale_factor,
            padding=self.padding,
            groups=self.groups,
            activation=self.activation,
            algorithm=self.algorithm,
        )

    def extra_repr(self):
        return (
            f"{super().extra_repr()}, scale_factor={self.scale_factor}, "
            f"activation={self.activation}"
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Equals :class:`torch.nn.CrossEntropyLoss` of the same arguments, by
    :func:`imgfast.cross_entropy`.

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: as in
            :class:`torch.nn.CrossEntropyLoss`.
        z_loss, return_lse, return_correct, grad_in_forward: as in :func:`imgfast.cross_entropy`.
    """

    def __init__(
        self,
        weight=None,
        size_average=None,
        ignore_index=-100,
        reduce=None,
        reduction="mean",
        label_smoothing=0.0,
        *,
        z_loss=0.0,
        return_lse=False,
        return_correct=False,
        grad_in_forward=False,
    ):
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.return_lse = return_lse
        self.return_correct = return_correct
        self.grad_in_forward = grad_in_forward

    def forward(self, input, target):
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            return_lse=self.return_lse,
            return_correct=self.return_correct,
            grad_in_forward=self.grad_in_forward,
        )


class LinearCrossEntropyLoss(_WeightedLoss):
    """Equals torch.nn.LinearCrossEntropyLoss of the same arguments, by
    :func:`imgfast.linear_cross_entropy`.

    Its parameters are those of ``self.linear``, a :class:`torch.nn.Linear`. It is no subclass, as
    older versions of torch have no such loss.

    Args:
        in_features: D.
        num_classes: C.
        out_features: ``(d1, ...)`` of a loss at several positions; without, one per row.
        bias: whether the linear layer has one.
        device, dtype: of the linear layer.
        reduction, weight, ignore_index, label_smoothing: as in
            :func:`imgfast.linear_cross_entropy`.

    Shape:
        ``[N, D]`` or ``[D]``, with a target ``[N, d1, ...]`` or ``[]`` of classes, or
        ``[N, C, d1, ...]`` or ``[C]`` of probabilities.
    """

    def __init__(
        self,
        in_features,
        num_classes,
        *,
        out_features=(),
        bias=False,
        device=None,
        dtype=None,
        reduction="mean",
        weight=None,
        ignore_index=None,
        label_smoothing=0.0,
    ):
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(
                f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}"
            )
        if label_smoothing < 0 or label_smoothing > 1.0:
            raise RuntimeError(
                f"expected label_smoothing to be in range [0, 1], got {label_smoothing}"
            )
        super().__init__(weight=weight, reduction=reduction)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.linear = torch.nn.Linear(
            in_features,
            math.prod(out_features, start=num_classes),
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, input, target):
        weight, bias = self.linear.weight, self.linear.bias
        if self.out_features:
            classes = self.num_classes, *self.out_features
            weight = weight.unflatten(0, classes)
            bias = None if bias is None else bias.unflatten(0, classes)
        return linear_cross_entropy(
            input,
            weight,
            target,
            linear_bias=bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self):
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )


class _MarginLoss(_WeightedLoss):
    """A linear head of which only the directions count, and a margin on the angles."""

    def __init__(
        self,
        in_features,
        num_classes,
        *,
        margin,
        scale=64.0,
        device=None,
        dtype=None,
        reduction="mean",
        weight=None,
        ignore_index=-100,
        label_smoothing=0.0,
    ):
        super().__init__(weight=weight, reduction=reduction)
        self.margin = margin
        self.scale = scale
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.linear = torch.nn.Linear(
            in_features, num_classes, bias=False, device=device, dtype=dtype
        )

    def forward(self, input, target):
        return self._loss(
            input,
            self.linear.weight,
            target,
            margin=self.margin,
            scale=self.scale,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self):
        return (
            f"in_features={self.linear.in_features}, num_classes={self.linear.out_features}, "
            f"margin={self.margin}, scale={self.scale}, reduction={self.reduction}"
        )


class ArcFaceLoss(_MarginLoss):
    """A head of face recognition with an additive angular margin, by
    :func:`imgfast.arcface_loss`.

    The vectors of the classes are the weight of ``self.linear``, a :class:`torch.nn.Linear` without
    bias.

    Args:
        in_features: D.
        num_classes: C.
        margin, scale, reduction, weight, ignore_index, label_smoothing: as in
            :func:`imgfast.arcface_loss`.
        device, dtype: of the vectors.

    Shape:
        ``[N, D]``, with a target ``[N]``.
    """

    _loss = staticmethod(arcface_loss)

    def __init__(self, in_features, num_classes, *, margin=0.5, scale=64.0, **options):
        super().__init__(in_features, num_classes, margin=margin, scale=scale, **options)


class CosFaceLoss(_MarginLoss):
    """A head of face recognition with an additive cosine margin, by :func:`imgfast.cosface_loss`;
    otherwise as :class:`ArcFaceLoss`."""

    _loss = staticmethod(cosface_loss)

    def __init__(self, in_features, num_classes, *, margin=0.35, scale=64.0, **options):
        super().__init__(in_features, num_classes, margin=margin, scale=scale, **options)
