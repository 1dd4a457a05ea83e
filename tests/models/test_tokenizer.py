"""The tokenizer: how far pictures shrink, and the twin in stock layers."""

import pytest
import torch

from imgfast.models.tokenizer import Tokenizer, halvings


@pytest.mark.parametrize(
    "size, count", [(8, 1), (16, 1), (24, 2), (28, 2), (32, 2), (40, 3), (64, 3), (128, 4)]
)
def test_the_square_of_codes_has_4_to_8_a_side(size, count):
    assert halvings(size) == count and 4 <= size / 2**count <= 8


@pytest.mark.parametrize("size, near", [(30, 32), (33, 32), (7, 8), (50, 48), (63, 64)])
def test_other_sizes_name_one_that_fits(size, near):
    with pytest.raises(ValueError, match=f"got {size}; {near} is near"):
        halvings(size)
    assert halvings(near)


@pytest.mark.parametrize("channels, widths, size", [(1, (8, 16, 8), 28), (3, (4, 8, 8, 16), 64)])
def test_fused_layers_compute_what_the_stock_twin_computes(channels, widths, size):
    models = []
    for layers in ("imgfast", "stock"):
        torch.manual_seed(3)
        model = Tokenizer(channels, widths, widths[::-1], 32, 6, layers)
        models.append(model.to(memory_format=torch.channels_last))
    ours, stock = models
    assert list(ours.state_dict()) == list(stock.state_dict())
    x = torch.randn(5, channels, size, size).to(memory_format=torch.channels_last)
    torch.manual_seed(4)
    ours.quantizer.start(torch.randn(500, 6) / 10)
    stock.load_state_dict(ours.state_dict())
    stock.double()
    side = size // 2 ** (len(widths) - 1)
    found = []
    for model, batch in ((ours, x), (stock, x.double())):
        torch.manual_seed(5)
        y, codes, commitment = model(batch)
        assert y.shape == x.shape and codes.shape == (5, side, side)
        (y.square().mean() + commitment).backward()
        found.append((y.double(), codes))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-4, atol=2e-5)
    assert torch.equal(found[0][1], found[1][1])
    for (name, a), b in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_decoded_codes_are_the_forward_pass():
    torch.manual_seed(0)
    model = Tokenizer(1, (8, 8, 8), (8, 8, 8), 32, 6).eval()
    x = torch.randn(3, 1, 28, 28).to(memory_format=torch.channels_last)
    y, codes, _ = model(x)
    assert torch.equal(model.encode(x), codes)
    torch.testing.assert_close(model.decode(codes), y)
