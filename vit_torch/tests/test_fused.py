"""The kernel that fused attention chooses, and what it computes, compared with torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_torch import fused

ROUNDING = 2.0**-8  # rounding to bfloat16, which has 8 significant bits, changes a value relatively by at most this


def arrays(tokens: int, dtype: torch.dtype = torch.bfloat16, keys: int | None = None) -> list[Tensor]:
    """Queries [1, N, 2, 8], keys and values [1, M, 2, 8] with values from -1 to 1."""
    generator = torch.Generator().manual_seed(tokens)
    lengths = tokens, keys or tokens, keys or tokens
    return [(2 * torch.rand(1, length, 2, 8, generator=generator) - 1).to(dtype) for length in lengths]


def by_torch(q_BNTK: Tensor, k_BMTK: Tensor, v_BMTK: Tensor, bias: Tensor | None) -> Tensor:
    q_BTNK, k_BTMK, v_BTMK = (x.double().transpose(1, 2) for x in (q_BNTK, k_BMTK, v_BMTK))
    bias = None if bias is None else bias.double()
    return F.scaled_dot_product_attention(q_BTNK, k_BTMK, v_BTMK, bias).transpose(1, 2)


BIASES = {
    "none": None,
    "of heads": torch.linspace(-1, 1, 2 * 6 * 5).reshape(2, 6, 5).bfloat16(),
    "of images": torch.linspace(-1, 1, 2 * 6 * 5).reshape(1, 2, 6, 5).bfloat16(),
    "padding": torch.tensor([0.0, 0, 0, -torch.inf, -torch.inf]).bfloat16().reshape(1, 1, 1, 5),
}


@pytest.mark.parametrize("kind", BIASES)
def test_products_are_attention(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """6 queries and 5 keys. Bounds are of first order; errors of second order are smaller than what they leave out."""
    monkeypatch.setattr(fused, "AVX512", True)
    tensors, bias = [x.requires_grad_() for x in arrays(6, keys=5)], BIASES[kind]
    assert fused.products_are_faster(tensors[1], bias)
    out_BNTK, expected_BNTK = fused.fused_attention(*tensors, bias), by_torch(*tensors, bias)
    # |score| <= sqrt(8) + 1 < 4. The scaled query, the product and the sum with the bias are rounded: a score is off by
    # at most 3 * 4 * ROUNDING, a weight relatively by twice that and by its own rounding, and |value| <= 1.
    of_weight = (2 * 3 * 4 + 1) * ROUNDING
    assert (out_BNTK - expected_BNTK).abs().max() <= of_weight + ROUNDING
    factors_BNTK = torch.linspace(-1, 1, out_BNTK.numel(), dtype=torch.float64).reshape(out_BNTK.shape)
    ours, theirs = (torch.autograd.grad((x * factors_BNTK).sum(), tensors) for x in (out_BNTK, expected_BNTK))
    q, k, v, g = (x.detach().double().transpose(1, 2) for x in (*tensors, factors_BNTK))
    p = torch.softmax(q @ k.mT / 8**0.5 + (0 if bias is None else bias.double()), -1)
    # The same products with absolute values. A gradient of scores has two weights as factors, others at most one; the
    # gradients of the output, of the weights, of the scores, of the scaled query and the result are rounded.
    to_weights = g.abs() @ v.abs().mT
    to_scores = p * (to_weights + (p * to_weights).sum(-1, keepdim=True))
    largest = to_scores @ k.abs() / 8**0.5, to_scores.mT @ q.abs() / 8**0.5, p.mT @ g.abs()
    for gradient, expected, most in zip(ours, theirs, largest, strict=True):
        assert ((gradient - expected).abs() <= (2 * of_weight + 5 * ROUNDING) * most.transpose(1, 2)).all()


def test_products_are_used_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: calls.append(1) or real(*args))

    def kernel(tokens: int, dtype: torch.dtype, avx512: bool) -> str:
        calls.clear()
        monkeypatch.setattr(fused, "AVX512", avx512)
        fused.fused_attention(*arrays(tokens, dtype))
        return "torch's" if calls else "products"

    assert kernel(5, torch.bfloat16, avx512=True) == kernel(1024, torch.bfloat16, avx512=True) == "products"
    assert kernel(1025, torch.bfloat16, avx512=True) == "torch's"  # its memory does not grow with the square
    assert kernel(5, torch.bfloat16, avx512=False) == "torch's"
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert kernel(5, dtype, avx512=True) == "torch's"
    monkeypatch.setattr(fused, "AVX512", True)
    for bias in (
        torch.zeros(2, 5, 5),
        torch.ones(5, 5, dtype=torch.bool),
    ):  # of another type: torch's kernel takes both
        calls.clear()
        tensors = arrays(5)
        assert (fused.fused_attention(*tensors, bias) - fused.fused_attention(*tensors)).abs().max() <= 2 * ROUNDING
        assert calls == [1]


def test_an_exported_program_has_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes more tokens than this machine's products would."""
    monkeypatch.setattr(fused, "AVX512", True)

    class Model(torch.nn.Module):
        def forward(self, x_BNTK: Tensor) -> Tensor:
            return fused.fused_attention(x_BNTK, x_BNTK, x_BNTK)

    x_BNTK = arrays(1025)[0]
    program = torch.export.export(Model(), (x_BNTK[:, :7],), dynamic_shapes=({1: torch.export.Dim("n", min=2)},))
    assert torch.equal(program.module()(x_BNTK), fused.fused_attention(x_BNTK, x_BNTK, x_BNTK))
