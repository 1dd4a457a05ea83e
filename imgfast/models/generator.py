"""The picture generator: a tokenizer and a prior over its codes, as one network with one file.

``sample`` draws codes for a class, ``decode`` makes pictures of codes, ``encode`` finds the codes
of pictures. The random numbers of a picture come from its own seed, and networks always see a batch
of one size: the same seed gives the same picture, whatever else is asked for in the same call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from imgfast.data.augment import normalise
from imgfast.models.classifier import LAYERS
from imgfast.models.configuration import check, from_plain
from imgfast.models.prior import Prior
from imgfast.models.tokenizer import MIN_SIDE, Tokenizer, halvings

GUIDANCE = 3.25  # where none is asked for
_UNGUIDED_TEMPERATURE = 0.9
_BATCH = 64  # pictures that go through a network at once; fewer are padded

# A configuration can come from a file that somebody else wrote: bounds on what it makes us build.
_MAX_SIZE, _MAX_WIDTH, _MAX_CLASSES = 512, 1024, 10_000
_MAX_CODES, _MAX_CODE_SIZE = 1 << 16, 256
_MAX_PRIOR_WIDTH, _MAX_DEPTH, _MAX_THRESHOLD = 2048, 64, 100

_check = functools.partial(check, "generator")


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that determines the network and what goes into it.

    Args:
        classes: name of each class.
        channels: channels of a picture, 1 (grey) or 3 (red, green, blue).
        image_size: height and width of a picture in pixels; see
            :func:`imgfast.models.tokenizer.halvings`.
        mean, std: per channel; pictures scaled to [0, 1] are normalised by them.
        encoder_widths: filters from the picture to the codes, one number more than halvings.
        decoder_widths: filters from the codes to the picture, as many.
        codes: in the book.
        code_size: numbers in a code.
        prior_width: numbers in a hidden state of the prior.
        prior_depth: its blocks, of which every second has attention.
        prior_heads: of its attention; a divisor of ``prior_width``.
        prior_threshold: a hidden number of its feed-forward layers that does not exceed it counts
            as zero. Most do not, and cost next to nothing.

    Raises:
        ValueError: a value outside its range.
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    encoder_widths: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    codes: int = 512
    code_size: int = 16
    prior_width: int = 96
    prior_depth: int = 4
    prior_heads: int = 3
    prior_threshold: float = 0.5

    def __post_init__(self) -> None:
        _check(1 <= len(self.classes) <= _MAX_CLASSES, "classes", "1 to 10000 names", self.classes)
        _check(len(set(self.classes)) == len(self.classes), "classes", "distinct", self.classes)
        _check(self.channels in (1, 3), "channels", "1 or 3", self.channels)
        sizes = f"8 to {_MAX_SIZE}"
        _check(2 * MIN_SIDE <= self.image_size <= _MAX_SIZE, "image_size", sizes, self.image_size)
        stages = halvings(self.image_size) + 1
        for name in ("encoder_widths", "decoder_widths"):
            widths = getattr(self, name)
            rule = f"{stages} numbers for {self.image_size} pixels"
            _check(len(widths) == stages, name, rule, widths)
            rule = f"1 to {_MAX_WIDTH} filters each"
            _check(all(1 <= width <= _MAX_WIDTH for width in widths), name, rule, widths)
        for name, low, high in (
            ("codes", 2, _MAX_CODES),
            ("code_size", 1, _MAX_CODE_SIZE),
            ("prior_width", 1, _MAX_PRIOR_WIDTH),
            ("prior_depth", 1, _MAX_DEPTH),
            ("prior_heads", 1, self.prior_width),
        ):
            value = getattr(self, name)
            _check(low <= value <= high, name, f"{low} to {high}", value)
        divides = self.prior_width % self.prior_heads == 0
        rule = f"a divisor of prior_width {self.prior_width}"
        _check(divides, "prior_heads", rule, self.prior_heads)
        rule, threshold = f"0 to {_MAX_THRESHOLD}", self.prior_threshold
        _check(0 <= threshold <= _MAX_THRESHOLD, "prior_threshold", rule, threshold)
        for name, values in (("mean", self.mean), ("std", self.std)):
            _check(len(values) == self.channels, name, f"{self.channels} numbers", values)
            _check(all(abs(value) <= 1e3 for value in values), name, "finite", values)
        _check(all(value > 1e-6 for value in self.std), "std", "positive", self.std)

    @property
    def side(self) -> int:
        """Of the square of codes of a picture."""
        return self.image_size >> halvings(self.image_size)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> GeneratorConfig:
        """From what :meth:`to_dict` gave and JSON carried, every type checked.

        Raises:
            ValueError: a key is missing or unknown, or a value has the wrong type or range.
        """
        return from_plain(GeneratorConfig, "generator", values)


class Generator(nn.Module):
    """Pictures of classes, by way of codes; all methods work without gradients, in parts of 64.

    Args:
        config: the network.
        layers: ``imgfast`` for the fused ones, ``stock`` for the twin.

    Attributes:
        tokenizer: see :class:`imgfast.models.tokenizer.Tokenizer`.
        prior: see :class:`imgfast.models.prior.Prior`.

    Note:
        Below C, S are channels and size of a picture, h, w the sides of the square of codes.
        The same seed gives the same picture on one device and number of threads.
    """

    def __init__(self, config: GeneratorConfig, layers: str = "imgfast") -> None:
        super().__init__()
        if layers not in LAYERS:
            raise ValueError(f"generator: layers must be one of {LAYERS}, got {layers!r}")
        self.config = config
        self.tokenizer = Tokenizer(
            config.channels,
            config.encoder_widths,
            config.decoder_widths,
            config.codes,
            config.code_size,
            layers,
        )
        self.prior = Prior(
            len(config.classes),
            config.codes,
            config.side,
            config.prior_width,
            config.prior_depth,
            config.prior_heads,
            config.prior_threshold,
            layers,
        )

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The codes of pictures, uint8 ``[N, C, S, S]`` to int64 ``[N, h, w]``, on the CPU.

        Raises:
            ValueError: another dtype or shape.
        """
        config = self.config
        shape = (config.channels, config.image_size, config.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            raise ValueError(
                f"generator: images must be uint8 [N, {', '.join(map(str, shape))}], "
                f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )

        def encode(batch: torch.Tensor) -> torch.Tensor:
            x = normalise(batch, config.mean, config.std)
            return self.tokenizer.encode(x.contiguous(memory_format=torch.channels_last))

        empty = torch.empty(0, config.side, config.side, dtype=torch.int64)
        return self._in_parts(encode, empty, images)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The pictures of codes, int64 ``[N, h, w]`` to uint8 ``[N, C, S, S]``, on the CPU.

        Raises:
            ValueError: another dtype or shape, or a number that is no code.
        """
        side = self.config.side
        fits = codes.shape[1:] == (side, side)
        _check_numbers("codes", codes, fits, f"[N, {side}, {side}]", self.config.codes)
        return self._pictures(lambda batch: self.tokenizer.decode(batch), codes)

    @torch.inference_mode()
    def sample(
        self,
        labels: torch.Tensor,
        seeds: Sequence[int],
        guidance: float = GUIDANCE,
        temperature: float | None = None,
    ) -> torch.Tensor:
        """Draw the codes of new pictures.

        Args:
            labels: int64 ``[N]``, numbers of classes.
            seeds: N integers in [0, 2^63), one for each picture.
            guidance: how far to move from what any class might be towards the class, see
                :meth:`imgfast.models.prior.Prior.sample`; 1 is the learned distribution, more gives
                pictures that are truer to their class and less varied. In [0, 100].
            temperature: of the softmax, in [0.01, 100]; below 1 safer, above 1 wilder. Without,
                :func:`usual_temperature`.

        Returns:
            int64 ``[N, h, w]``, on the CPU.

        Raises:
            ValueError: an argument of another type, shape or range.
        """
        if temperature is None:
            temperature = usual_temperature(guidance)
        count, side = len(self.config.classes), self.config.side
        fits, shape = labels.shape == (len(seeds),), f"[{len(seeds)}], as many as seeds"
        _check_numbers("labels", labels, fits, shape, count)
        for name, value, low in (("guidance", guidance, 0.0), ("temperature", temperature, 0.01)):
            if not low <= value <= 100:
                raise ValueError(f"generator: {name} must lie in [{low:g}, 100], got {value}")

        def sample(batch: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
            codes = self.prior.sample(batch, uniforms, guidance, temperature)
            return codes.view(-1, side, side)

        empty = torch.empty(0, side, side, dtype=torch.int64)
        return self._in_parts(sample, empty, labels, _uniforms(seeds, side * side))

    def generate(
        self,
        labels: torch.Tensor,
        seeds: Sequence[int],
        guidance: float = GUIDANCE,
        temperature: float | None = None,
    ) -> torch.Tensor:
        """``decode(sample(...))``: new pictures, uint8 ``[N, C, S, S]``."""
        return self.decode(self.sample(labels, seeds, guidance, temperature))

    @torch.inference_mode()
    def interpolate(self, first: torch.Tensor, last: torch.Tensor, steps: int) -> torch.Tensor:
        """Pictures on the way from one to another, decoded from mixtures of their codes' vectors.

        Args:
            first, last: uint8 ``[C, S, S]``.
            steps: pictures to return, at least 2; the first and the last are the reconstructions of
                the two.

        Returns:
            uint8 ``[steps, C, S, S]``, on the CPU.
        """
        if steps < 2:
            raise ValueError(f"generator: steps must be at least 2, got {steps}")
        codes = self.encode(torch.stack([first, last])).to(self.prior.place.device)
        start, end = self.tokenizer.quantizer.lookup(codes)
        shares = torch.linspace(0, 1, steps, device=codes.device).view(-1, 1, 1, 1)
        mixtures = start.lerp(end, shares).contiguous(memory_format=torch.channels_last)
        return self._pictures(lambda batch: self.tokenizer.decoder(batch), mixtures)

    def _pictures(
        self, decode: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor
    ) -> torch.Tensor:
        """uint8 pictures of what ``decode`` makes of codes or vectors."""
        config = self.config

        def pictures(batch: torch.Tensor) -> torch.Tensor:
            x = decode(batch)
            mean, std = (
                x.new_tensor(v).mul_(255).view(-1, 1, 1) for v in (config.mean, config.std)
            )
            pixels = (x * std + mean).nan_to_num_().round_().clamp_(0, 255)
            return pixels.to(torch.uint8).contiguous()

        shape = (0, config.channels, config.image_size, config.image_size)
        return self._in_parts(pictures, torch.empty(shape, dtype=torch.uint8), values)

    def _in_parts(
        self,
        function: Callable[..., torch.Tensor],
        empty: torch.Tensor,
        *values: torch.Tensor,
    ) -> torch.Tensor:
        """``function`` of the rows of tensors, always of as many at once.

        Products of matrices of one shape take one path, so that no row depends on its company.
        """
        was_training = self.training
        self.eval()
        device, rows = self.prior.place.device, [empty]
        for parts in zip(*(value.split(_BATCH) for value in values), strict=True):
            count = len(parts[0])
            if count == 0:
                break
            full = [_padded(part).to(device) for part in parts]
            rows.append(function(*full)[:count].cpu())
        self.train(was_training)
        return torch.cat(rows)


def usual_temperature(guidance: float) -> float:
    """The temperature where none is asked for: 1, and 0.9 without guidance.

    A prior gives codes that never occur a little probability each. One of many draws is such a
    code, and those after it have to make the best of it. Guidance leaves them less.
    """
    return 1.0 if guidance > 1 else _UNGUIDED_TEMPERATURE


def _check_numbers(name: str, values: torch.Tensor, fits: bool, shape: str, count: int) -> None:
    """Refuse an argument that is not int64 numbers below ``count`` in a shape that ``fits``."""
    if values.dtype != torch.int64 or not fits:
        raise ValueError(
            f"generator: {name} must be int64 {shape}, "
            f"got {str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
        )
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < count:
        raise ValueError(
            f"generator: {name} must lie in [0, {count}), "
            f"got {int(values.min())} to {int(values.max())}"
        )


def _padded(part: torch.Tensor) -> torch.Tensor:
    """Up to ``_BATCH`` rows, the first one repeated; channels_last stays so."""
    missing = _BATCH - len(part)
    return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part


def _uniforms(seeds: Sequence[int], count: int) -> torch.Tensor:
    """float64 ``[N, count]`` in [0, 1): the numbers of each seed."""
    rows = [torch.empty(0, count, dtype=torch.float64)]
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise ValueError(f"generator: seeds must lie in [0, 2^63), got {seed}")
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(1, count, dtype=torch.float64, generator=generator))
    return torch.cat(rows)


def generator_config(
    classes: tuple[str, ...],
    channels: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **changes: Any,
) -> GeneratorConfig:
    """The configuration for given pictures.

    Widths follow from the picture's size unless ``changes`` has them: 32 filters at the picture and
    twice as many after each halving, up to 128. The prior has a head for about 32 numbers.

    Raises:
        ValueError: a size that does not fit, or a change outside its range.
    """
    _check(
        8 <= image_size <= _MAX_SIZE, "image_size", f"8 to {_MAX_SIZE}", image_size
    )  # before widths are made for it
    count, width = halvings(image_size), changes.get("prior_width", GeneratorConfig.prior_width)
    heads = next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0)
    widths = {
        "prior_heads": heads,
        "encoder_widths": (*(min(32 << level, 128) for level in range(count)), 64),
        "decoder_widths": (96, *(max(16, 48 >> level) for level in range(count))),
    }
    return GeneratorConfig(classes, channels, image_size, mean, std, **(widths | changes))


def build_generator(config: GeneratorConfig, layers: str = "imgfast", seed: int = 0) -> Generator:
    """A new generator; the same seed gives the same weights in either kind of layers.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(config, layers)
