"""The prior: which codes go together, as a causal transformer over the codes in raster order.

A code's logits see the codes before it and the class. Beside attention they see the neighbours that
are known already, left, above, above right and above left, as embeddings at the input, and as
hidden states in front of each feed-forward layer. Every second block has attention: the neighbours
say most, and the loss hardly knows. Training drops the class of some pictures, so
that sampling can move away from the prediction without one: classifier-free guidance (J. Ho and
T. Salimans, 2022, arXiv:2207.12598).

Pre-norm blocks without biases; queries and keys are normalised (M. Dehghani et al., 2023,
arXiv:2302.05442).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from imgfast.models.feed_forward import FeedForward
from imgfast.ops.causal_attention import causal_attention, causal_attention_stock, normalised
from imgfast.ops.neighbour_mix import neighbour_mix, neighbour_mix_stock

_EMBEDDED = (
    0.5  # standard deviation of the numbers that the neighbours are, or the class is, at first
)
_HEAD = 0.2  # of the weights of a code's logit, once start() has made them


class Prior(nn.Module):
    """``P(codes | class)``: hidden states ``[N, T, D]`` of codes, int64 ``[N, T]``, and labels.

    Args:
        classes: their number; the number itself stands for no class.
        codes: K, in the book; the number K stands for no neighbour.
        side: of the square of codes; ``T = side^2``.
        width: D.
        depth: blocks, see :class:`Block`.
        heads: of the attention; ``D / heads`` must be whole.
        threshold: of the feed-forward layers, see
            :func:`imgfast.ops.feed_forward.feed_forward`.
        layers: ``imgfast`` or ``stock``, see :func:`imgfast.ops.feed_forward.feed_forward`,
            :func:`imgfast.ops.causal_attention.causal_attention` and
            :func:`imgfast.ops.neighbour_mix.neighbour_mix`.
    """

    def __init__(
        self,
        classes: int,
        codes: int,
        side: int,
        width: int,
        depth: int,
        heads: int,
        threshold: float,
        layers: str = "imgfast",
    ) -> None:
        super().__init__()
        self.classes, self.codes, self.length = classes, codes, side * side
        neighbours = _neighbours(side)
        self.register_buffer("neighbours", neighbours, persistent=False)  # [4, T]
        self.embeddings = nn.ModuleList(nn.Embedding(codes + 1, width) for _ in neighbours)
        self.place = nn.Parameter(torch.empty(self.length, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, len(neighbours), threshold, attends, layers)
            for attends in _attending(depth)
        )
        self.mix = neighbour_mix if layers == "imgfast" else neighbour_mix_stock
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, codes, bias=False)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=_EMBEDDED / len(neighbours) ** 0.5)
        nn.init.normal_(self.place, std=0.02)
        nn.init.normal_(self.label.weight, std=_EMBEDDED)
        nn.init.normal_(self.head.weight, std=0.01)

    @torch.no_grad()
    def start(self, book: torch.Tensor, seed: int) -> None:
        """Begin with what the tokenizer knows: codes that look alike are alike.

        Embeddings and head become random projections of the codes' vectors, instead of random
        numbers of which each code's have to be learned from its own occurrences.

        Args:
            book: float ``[K, D']``, see :class:`imgfast.models.quantizer.Quantizer`.
            seed: of the projections.
        """
        vectors = book.float().cpu()
        vectors = vectors - vectors.mean(0)
        length = vectors.square().sum(1).mean().sqrt()
        vectors = vectors / length.clamp(min=torch.finfo().tiny)
        generator = torch.Generator().manual_seed(seed)

        def projected(std: float) -> torch.Tensor:
            shape = vectors.shape[1], self.head.in_features
            return vectors @ torch.randn(shape, generator=generator).mul_(std)

        for embedding in self.embeddings:
            embedding.weight[:-1] = projected(_EMBEDDED / len(self.embeddings) ** 0.5)
        self.head.weight.copy_(projected(_HEAD))

    def forward(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the logits of every code are made of; the code itself and later ones have no say.

        Args:
            codes: int64 ``[N, T]``, in raster order.
            labels: int64 ``[N]``; ``classes`` for none.

        Returns:
            float ``[N, T, D]``, to be multiplied by ``head``.
        """
        x = self._embed(codes, labels, slice(None))
        for block in self.blocks:
            x = block(x, self.neighbours)
        return self.mix(x, self.norm.weight)[0]

    def logits(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """float ``[N, T, K]``: entry ``[:, t]`` is of code t, given those before it."""
        return self.head(self(codes, labels))

    def _embed(self, codes: torch.Tensor, labels: torch.Tensor, at: slice) -> torch.Tensor:
        """The input at some positions, ``[N, positions, D]``."""
        # A neighbour outside is number -1, the last column.
        padded = F.pad(codes, (0, 1), value=self.codes)
        around = padded[:, self.neighbours[:, at]].unbind(1)
        x = self.place[at] + self.label(labels).unsqueeze(1)
        for embedding, numbers in zip(self.embeddings, around, strict=True):
            # index_select is embedding, with a faster gradient.
            x = x + embedding.weight.index_select(0, numbers.flatten()).view_as(x)
        return x

    @torch.no_grad()
    def sample(
        self,
        labels: torch.Tensor,
        uniforms: torch.Tensor,
        guidance: float = 1.0,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Draw codes one after the other, with the keys and values of earlier ones kept.

        Args:
            labels: int64 ``[N]``.
            uniforms: float64 ``[N, T]`` in [0, 1), one random number for each code: the code is the
                first whose cumulative probability exceeds it.
            guidance: of :func:`guided`, the mean over the codes; 1 is none, at half the cost. It
                rises evenly from 1 at the first code, so that the class says less about the layout,
                and more about what follows from it: more varied pictures than with one guidance for
                all codes, as true to the class (H. Chang et al., "Muse", 2023, arXiv:2301.00704,
                section 2.7).
            temperature: of the softmax, above 0; below 1 likely codes become likelier.

        Returns:
            int64 ``[N, T]``.
        """
        n = len(labels)
        if guidance != 1:
            labels = torch.cat([labels, torch.full_like(labels, self.classes)])
        codes = labels.new_full((len(labels), self.length), self.codes)
        caches = [block.cache(len(labels), self.length) for block in self.blocks]
        for place in range(self.length):
            logits = self.next_logits(codes, labels, place, caches)
            if guidance != 1:
                risen = 2 * place / (self.length - 1)
                logits = guided(logits[:n], logits[n:], 1 + (guidance - 1) * risen)
            chances = (logits.double() / temperature).softmax(1).cumsum(1)
            drawn = uniforms[:, place, None] * chances[:, -1:]
            code = torch.searchsorted(chances, drawn, right=True).clamp_(max=self.codes - 1)
            codes[:, place] = code.repeat(len(labels) // n, 1).squeeze(1)
        return codes[:n]

    def next_logits(
        self, codes: torch.Tensor, labels: torch.Tensor, place: int, caches: list[Cache]
    ) -> torch.Tensor:
        """float ``[N, K]`` of the code at ``place``, after the calls for all earlier places."""
        x = self._embed(codes, labels, slice(place, place + 1))
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, self.neighbours, (cache, place))
        return self.head(self.norm(x)).squeeze(1)


class Cache(NamedTuple):
    """What a block keeps of earlier positions while codes are drawn."""

    keys: torch.Tensor | None  # [N, heads, T, D / heads], where it attends
    values: torch.Tensor | None
    normed: torch.Tensor  # [N, T + 1, D], before mixing; the last one, of no neighbour, is zero


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """``unconditional + guidance (conditional - unconditional)``, of logits.

    1 is the conditional prediction itself, 0 the unconditional; above 1 what speaks for the class
    is exaggerated. Equation 6 of arXiv:2207.12598, whose ``w`` is ``guidance - 1``.
    """
    return unconditional.lerp(conditional, guidance)


class Block(nn.Module):
    """:class:`Attention` where it attends, then ``x + feed_forward(mix(norm(x)))``, of
    ``[N, T, D]``.

    ``mix`` adds the known neighbours of each position, weighted number by number.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        neighbours: int,
        threshold: float,
        attends: bool = True,
        layers: str = "imgfast",
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, layers) if attends else None
        self.mix = neighbour_mix if layers == "imgfast" else neighbour_mix_stock
        self.norm = nn.LayerNorm(width, bias=False)
        self.neighbour_weight = nn.Parameter(torch.zeros(neighbours, width))  # their weights
        self.feed_forward = FeedForward(width, threshold, layers)

    def cache(self, count: int, length: int) -> Cache:
        """Room for ``count`` rows of ``length`` codes."""
        normed = self.norm.weight.new_zeros(count, length + 1, len(self.norm.weight))
        pair = (None, None) if self.attention is None else self.attention.cache(count, length)
        return Cache(*pair, normed)

    def forward(
        self,
        x: torch.Tensor,
        neighbours: torch.Tensor,
        cached: tuple[Cache, int] | None = None,
    ) -> torch.Tensor:
        """Of all positions at once; or, with a cache and a position, of that one alone.

        Args:
            x: ``[N, T, D]``, or ``[N, 1, D]``.
            neighbours: int64 ``[J, T]``, the places of each position's, -1 for none.
            cached: what the calls for earlier positions left, and the position.
        """
        if self.attention is not None:
            x = self.attention(x, cached)
        if cached is None:
            y, x = self.mix(x, self.norm.weight, self.neighbour_weight, neighbours)
        else:
            (_, _, normed), place = cached
            y = normed[:, place : place + 1] = self.norm(x)
            y = y + (normed[:, neighbours[:, place]] * self.neighbour_weight).sum(1, keepdim=True)
        return self.feed_forward(y, x)


class Attention(nn.Module):
    """``x + out(attention(qkv(norm(x))))``, causal, of ``[N, T, D]``. A new one gives x."""

    def __init__(self, width: int, heads: int, layers: str = "imgfast") -> None:
        super().__init__()
        self.heads = heads
        self.attend = causal_attention if layers == "imgfast" else causal_attention_stock
        self.mix = neighbour_mix if layers == "imgfast" else neighbour_mix_stock
        # Normalised queries and keys have length sqrt(size): the scale makes logits of +-8 at most
        # for 64 numbers, and the network can sharpen no further.
        self.scale = 1.5 / (width // heads) ** 0.5
        self.norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def cache(self, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for keys and values."""
        width, like = self.out.in_features, self.out.weight
        shape = (count, self.heads, length, width // self.heads)
        return like.new_empty(shape), like.new_empty(shape)

    def forward(self, x: torch.Tensor, cached: tuple[Cache, int] | None = None) -> torch.Tensor:
        """As :meth:`Block.forward`."""
        n, length, width = x.shape
        size = width // self.heads
        y, x = self.mix(x, self.norm.weight)
        qkv = self.qkv(y).view(n, length, 3, self.heads, size)
        if cached is None:
            mixed = self.attend(qkv, self.scale)
        else:
            (keys, values, _), place = cached
            query, key, value = qkv.unbind(2)
            keys[:, :, place : place + 1] = normalised(key).transpose(1, 2)
            values[:, :, place : place + 1] = value.transpose(1, 2)
            mixed = F.scaled_dot_product_attention(
                normalised(query).transpose(1, 2),
                keys[:, :, : place + 1],
                values[:, :, : place + 1],
                scale=self.scale,
            ).transpose(1, 2)
        return x + self.out(mixed.reshape(n, length, width))


def _attending(depth: int) -> list[bool]:
    """Whether each block of a prior attends: every second one, or the only one."""
    return [number % 2 == 1 or depth == 1 for number in range(depth)]


def _neighbours(side: int) -> torch.Tensor:
    """int64 ``[4, side^2]``: where the code before, above, above right and above left of each code
    stands, -1 for none. All are earlier in raster order."""
    rows = []
    for place in range(side * side):
        row, column = divmod(place, side)
        above = place - side if row else -1
        right = above + 1 if row and column + 1 < side else -1
        left = above - 1 if row and column else -1
        rows.append((place - 1, above, right, left))
    return torch.tensor(rows).t().contiguous()
