"""linear_cross_entropy beside torch's: forward, and forward and backward, with class targets.

Rows are ``(N, D -> C)``. *eager* is torch's function, which is linear and then cross_entropy,
*chunked* is that with LinearCrossEntropyOptions, *composition* is torch's linear and then
imgfast's cross_entropy. *products* is no opponent: the matrix products alone, of the same tiles as
imgfast's.
"""

import pytest
import torch
import torch.nn.functional as F
from opponents import inductor, lineup

import imgfast
from imgfast.ops import linear_cross_entropy_route as route
from imgfast.ops import linear_cross_entropy_tiles as tiles
from imgfast.ops.cross_entropy_autograd import MEAN

HEADS = [(128, 512, 10), (4096, 512, 1000), (512, 512, 21841), (512, 512, 1000000)]
MARKS = {HEADS[0]: [pytest.mark.quick], HEADS[-1]: [pytest.mark.large]}
rows = pytest.mark.parametrize(
    "head", [pytest.param(h, id="{}x{}-{}".format(*h), marks=MARKS.get(h, ())) for h in HEADS]
)


def _composition(cross_entropy):
    def loss(input, linear_weight, target):
        return cross_entropy(F.linear(input, linear_weight), target)

    return loss


def _chunked():
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    options = torch.nn.LinearCrossEntropyOptions()

    def loss(input, linear_weight, target):
        return F.linear_cross_entropy(input, linear_weight, target, options=options)

    return loss


def _arguments(head, place):
    N, D, C = head
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(N, D, generator=generator)
    linear_weight = torch.randn(C, D, generator=generator).mul_(D**-0.5)
    target = torch.randint(C, (N,), generator=generator)
    return tuple(map(place.put, (input, linear_weight, target)))


def _race(race, head, make, products):
    eager = getattr(F, "linear_cross_entropy", _composition(F.cross_entropy))
    contenders = lineup(
        make,
        imgfast.linear_cross_entropy,
        eager,
        layouts=[""],
        compiler=inductor(race.place.threads) if race.compile and head != HEADS[-1] else None,
    )
    if head == HEADS[-1]:  # chunked walks over all weights N times; compiled holds what eager does
        race.absent.append("chunked, composition and torch.compile for the largest head")
    else:
        others = {"chunked": _chunked(), "composition": _composition(imgfast.cross_entropy)}
        contenders |= {name: make(loss) for name, loss in others.items() if loss is not None}
    N, D, C = head
    tolerance = max(1e-4, 4 * torch.finfo(race.place.dtype).eps)
    race(
        f"({N},{D}->{C})",
        contenders,
        tolerance=tolerance,
        grad_tolerance=tolerance,
        bounds={"products": products},
    )


@rows
def bench_forward(race, head):
    input, linear_weight, target = _arguments(head, race.place)

    def make(op, wrap=lambda op: op, memory_format=None):
        loss = wrap(op)

        @torch.no_grad()
        def forward():
            return (loss(input, linear_weight, target),)

        return forward

    _race(race, head, make, lambda: _products(input, linear_weight, training=False))


@rows
def bench_forward_backward(race, head):
    input, linear_weight, target = _arguments(head, race.place)
    leaves = input.clone().requires_grad_(), linear_weight.requires_grad_()

    def make(op, wrap=lambda op: op, memory_format=None):
        loss = wrap(op)

        def step():
            y = loss(*leaves, target)
            return y, *torch.autograd.grad(y, leaves)

        return step

    _race(race, head, make, lambda: _products(input, linear_weight, training=True))


@torch.no_grad()
def _products(input, linear_weight, training):
    """X W^T, and for training both gradients; X W^T a second time for what is not kept."""
    if len(input) * len(linear_weight) <= route.SMALL:
        logits = input @ linear_weight.t()
        return (logits.t() @ input, logits @ linear_weight) if training else logits
    options = tiles.Options(MEAN, -100, 0.0, False, input.dtype, None)
    head = tiles.Head(input, linear_weight, None, options)
    if training:
        head.keep(tiles.KEPT_BYTES)
    for c in head.chunks:
        head.load(c)
        for r in head.blocks:
            head.product(r, head.next_tile(r)[0])
    if not training:
        return
    head = tiles.Head(input, linear_weight, None, options, head.kept)
    grad_input, grad_weight = torch.empty_like(input), torch.empty_like(linear_weight)
    for c in head.chunks:
        head.load(c)
        for r in head.blocks:
            g, is_kept = head.next_tile(r)
            if not is_kept:
                head.product(r, g)
            tiles.add_product(grad_weight[c], g.t(), head.x[r], first=r.start == 0)
            tiles.add_product(grad_input[r], g, head.w, first=c.start == 0)
