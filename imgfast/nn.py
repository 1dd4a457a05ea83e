"""Layers: drop-in subclasses of torch.nn's, with the same parameters under the same names."""

import torch
import torch.nn.functional as F

from imgfast.ops.conv_relu_pool import conv_relu_pool
from imgfast.ops.cross_entropy import cross_entropy


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


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Equals :class:`torch.nn.CrossEntropyLoss` of the same arguments, by
    :func:`imgfast.cross_entropy`."""

    def forward(self, input, target):
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
