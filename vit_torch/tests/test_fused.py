"""The kernel that fused attention chooses, and what it computes, compared with torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_torch import fused

ROUNDING = 2.0**-8  # rounding to bfloat16, which has 8 significant bits, changes a value relatively by at most this


def arrays(tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys and values [1, N, 2, 8] with values from -1 to 1."""
    generator = torch.Generator().manual_seed(tokens)
    return [(2 * torch.rand(1, tokens, 2, 8, generator=generator) - 1).to(dtype) for _ in range(3)]


def by_torch(q_BNTK: Tensor, k_BMTK: Tensor, v_BMTK: Tensor, bias: Tensor | None) -> Tensor:
    q_BTNK, k_BTMK, v_BTMK = (x.double().transpose(1, 2) for x in (q_BNTK, k_BMTK, v_BMTK))
    bias = None if bias is None else bias.double()
    return F.scaled_dot_product_attention(q_BTNK, k_BTMK, v_BTMK, bias).transpose(1, 2)


BIASES = {
    "none": None,
    "relative": torch.linspace(-1, 1, 2 * 6 * 6).reshape(2, 6, 6).bfloat16(),
    "padding": torch.tensor([0.0, 0, 0, 0, -torch.inf, -torch.inf]).bfloat16().reshape(1, 1, 1, 6),
}


@pytest.mark.parametrize("kind", BIASES)
def test_products_are_attention(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fused, "AVX512", True)
    tensors, bias = [x.requires_grad_() for x in arrays(6)], BIASES[kind]
    assert fused.products_are_faster(tensors[1])
    out_BNTK, expected_BNTK = fused.fused_attention(*tensors, bias), by_torch(*tensors, bias)
    # |score| <= sqrt(8) + 1 < 4. The scaled query, the product and the sum with the bias are rounded: a score is off by
    # at most 3 * 4 * ROUNDING, a weight relatively by twice that and by its own rounding, and |value| <= 1.
    bound = (2 * 3 * 4 + 1 + 1) * ROUNDING
    assert (out_BNTK - expected_BNTK).abs().max() <= bound
    factors_BNTK = torch.linspace(-1, 1, out_BNTK.numel(), dtype=torch.float64).reshape(out_BNTK.shape)
    ours, theirs = (torch.autograd.grad((x * factors_BNTK).sum(), tensors) for x in (out_BNTK, expected_BNTK))
    for gradient, expected in zip(ours, theirs, strict=True):
        # A gradient is a sum of products of rounded factors with weights as far off as above; compared by its norm.
        assert (gradient - expected).norm() <= bound * expected.norm()


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
