"""Attention by the devices' fastest kernel. Read it beside vit_jax/fused.py.

model.py explains the names of arrays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor as Array

from vit_torch.onednn import AVX512, softmax

PRODUCT_TOKENS = 1024
"""For more keys than this, torch's kernel is used, which does not store the weights."""


def fused_attention(q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, bias: Array | None = None) -> Array:
    """Scaled dot-product attention [B, N, T, K] by the kernel of the arrays' device.

    The kernel is the one that torch.nn.functional.scaled_dot_product_attention chooses, except in bfloat16 on a CPU
    with vectors of 512 bits and for at most 1,024 keys: there whole matrices are multiplied, and the weights are
    stored, because torch's kernel takes up to seven times as long. Scores and weights are then rounded to bfloat16; the
    softmax is computed in float32. bias: added to the scores, [T, N, M] or [B, 1 or T, 1 or N, M]; not -inf for all
    keys of a query.
    """
    if not products_are_faster(k_BMTK, bias):
        q_BTNK, k_BTMK, v_BTMK = q_BNTK.transpose(1, 2), k_BMTK.transpose(1, 2), v_BMTK.transpose(1, 2)
        return F.scaled_dot_product_attention(q_BTNK, k_BTMK, v_BTMK, bias).transpose(1, 2)
    # The products copy factors with strides like these in any case; before the scaling, that makes the scaling faster.
    q_BTNK, k_BTMK, v_BTMK = (x.transpose(1, 2).contiguous() for x in (q_BNTK, k_BMTK, v_BMTK))
    scores_BTNM = (q_BTNK * q_BTNK.shape[-1] ** -0.5) @ k_BTMK.transpose(2, 3)
    scores_BTNM = scores_BTNM if bias is None else scores_BTNM + bias
    return (softmax(scores_BTNM) @ v_BTMK).transpose(1, 2)


def products_are_faster(k_BMTK: Array, bias: Array | None) -> bool:
    """Whether whole matrices are multiplied. An exported program always has torch's kernel, because it may run on
    another device and with other numbers of tokens."""
    on_cpu = k_BMTK.device.type == "cpu" and k_BMTK.dtype == torch.bfloat16
    if not (on_cpu and AVX512) or torch.compiler.is_exporting():
        return False
    return k_BMTK.shape[1] <= PRODUCT_TOKENS and (bias is None or bias.dtype == k_BMTK.dtype)
