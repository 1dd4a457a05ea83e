"""The tokenizer: a picture becomes a small square of codes, and codes become a picture again.

The encoder is one fused :class:`imgfast.nn.ConvReLUPool2d` for every halving and one more without a
pool; the decoder mirrors it with :class:`imgfast.nn.UpsampleConvReLU2d` blocks. Between them stands
the quantiser. The twin in stock layers has the same ``state_dict`` keys.

Source: A. van den Oord et al., "Neural discrete representation learning", 2017, arXiv:1711.00937;
the low dimension of the codes is that of J. Yu et al., "Vector-quantized image modeling with
improved VQGAN", 2021, arXiv:2110.04627.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from imgfast.models.quantizer import Quantizer
from imgfast.nn import ConvReLUPool2d, UpsampleConvReLU2d

MAX_SIDE = 8  # of the square of codes
MIN_SIDE = 4


def halvings(image_size: int) -> int:
    """How often a picture's sides are halved for a square of at most ``MAX_SIDE`` codes a side.

    28 pixels give 2 halvings and 7 codes a side, 32 give 2 and 8, 64 give 3 and 8.

    Raises:
        ValueError: no number of halvings makes 4 to 8 of it.
    """
    count, side = 1, image_size / 2
    while side > MAX_SIDE:
        count, side = count + 1, side / 2
    if side != int(side) or side < MIN_SIDE:
        step = 1 << count
        near = max(step * MIN_SIDE, step * round(image_size / step))
        raise ValueError(
            f"generator: image_size must be {MIN_SIDE} to {MAX_SIDE} times a power of 2, from 8, "
            f"got {image_size}; {near} is near"
        )
    return count


class Tokenizer(nn.Module):
    """``decoder(quantizer(encoder(x)))``: pictures float ``[N, C, S, S]`` to pictures of that
    shape, by way of codes ``[N, h, w]`` with ``h = w = S / 2^halvings``.

    Args:
        channels: C.
        encoder_widths: filters of the encoder's convolutions, from the picture inwards, one more
            than there are halvings.
        decoder_widths: filters of the decoder's convolutions, from the codes outwards, as many.
        codes: in the book.
        code_size: numbers in a code.
        layers: ``imgfast`` for the fused layers, ``stock`` for the twin of ``nn.Conv2d``,
            ``nn.MaxPool2d`` and ``nn.Upsample``.
    """

    def __init__(
        self,
        channels: int,
        encoder_widths: tuple[int, ...],
        decoder_widths: tuple[int, ...],
        codes: int,
        code_size: int,
        layers: str = "imgfast",
    ) -> None:
        super().__init__()
        fused = layers == "imgfast"
        down, up = (_fused_down, _fused_up) if fused else (_stock_down, _stock_up)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = channels
        for number, width in enumerate(encoder_widths, start=1):
            parts |= down(f"conv{number}", inputs, width, number < len(encoder_widths))
            inputs = width
        parts["latent"] = nn.Conv2d(inputs, code_size, 1)
        self.encoder = nn.Sequential(parts)
        self.quantizer = Quantizer(codes, code_size, layers=layers)
        first, *others = decoder_widths
        parts = OrderedDict(down("conv", code_size, first, False))
        inputs = first
        for number, width in enumerate(others, start=1):
            parts |= up(f"up{number}", inputs, width)
            inputs = width
        plain = {"activation": "none", "pool": "none"} if fused else {}
        convolution = ConvReLUPool2d if fused else nn.Conv2d
        parts["picture"] = convolution(inputs, channels, 3, padding=1, **plain)
        self.decoder = nn.Sequential(parts)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures by way of codes, the codes, and the quantiser's commitment loss."""
        vectors, codes, commitment = self.quantizer(self.encoder(x))
        return self.decoder(vectors), codes, commitment

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes, int64 ``[N, h, w]``, of pictures."""
        z = self.encoder(x)
        n, _, height, width = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(n * height * width, -1).to(self.quantizer.book.dtype)
        return self.quantizer.nearest(rows).view(n, height, width)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pictures of codes, int64 ``[N, h, w]``."""
        return self.decoder(self.quantizer.lookup(codes))


Parts = dict[str, nn.Module]


def _fused_down(name: str, inputs: int, width: int, pooled: bool) -> Parts:
    pool = "max" if pooled else "none"
    return {name: ConvReLUPool2d(inputs, width, 3, padding=1, pool=pool)}


def _stock_down(name: str, inputs: int, width: int, pooled: bool) -> Parts:
    parts = {name: nn.Conv2d(inputs, width, 3, padding=1), f"{name}_relu": nn.ReLU()}
    return {**parts, f"{name}_pool": nn.MaxPool2d(2)} if pooled else parts


def _fused_up(name: str, inputs: int, width: int) -> Parts:
    return {name: UpsampleConvReLU2d(inputs, width)}


def _stock_up(name: str, inputs: int, width: int) -> Parts:
    return {
        f"{name}_upsample": nn.Upsample(scale_factor=2),
        name: nn.Conv2d(inputs, width, 3, padding=1),
        f"{name}_relu": nn.ReLU(),
    }
