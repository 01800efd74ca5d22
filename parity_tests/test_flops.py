"""FLOPs of vit_core.flops, compared with PyTorch's counter on its twin and with XLA's count for the other."""

from typing import Any

import jax
import pytest
import torch
from flax import nnx
from torch.utils.flop_counter import FlopCounterMode

import vit_jax
import vit_torch
from vit_core import ViTConfig, flops, variant
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.masks import PATCH_ORDER
from vit_torch import masked_autoencoder

CONFIGS = {
    "Ti/16": variant("Ti/16", 64, 10),
    "map, representation": variant("mu/4", (16, 24), 10, pooling="map", representation=48, class_token=False),
    "map over all tokens, its own MLP": variant("mu/4", 16, 10, pooling="map", pool_prefix=True, pool_mlp_dim=48),
    "parallel, rope, relative table": variant("mu/4", 16, 10, parallel=True, rope="dinov3", relative_bias="table"),
    "headless gap": variant("mu/4", 16, 0, pooling="gap"),
    "gated, prefix tokens, two heads": variant("mu/4", 16, 10, mlp="swiglu", registers=3, distillation="head"),
    "class token and mean": variant("mu/4", 16, 10, pooling="cls_gap", representation=48),
    "root": variant("mu/8", (16, 24), 10, stem_layers=(), stem_width=32),
    "ResNet": variant("mu/32", (32, 64), 10, stem_layers=(2, 1, 2), stem_width=32),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_what_torch_counts(name: str) -> None:
    config: ViTConfig = CONFIGS[name]
    # "plain": the counter has no formula for the fused kernel on a CPU.
    model = vit_torch.ViT(config, attention="plain").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, config.channels, *config.image_size))
    assert sum(flops.forward(config).values()) == counter.get_total_flops()


@pytest.mark.parametrize("fields", [{}, {"mlp": "swiglu", "registers": 3}], ids=str)
def test_flops_of_a_masked_autoencoder_are_what_torch_counts(fields: dict[str, Any]) -> None:
    """FLOPs of the visible tokens in the encoder and of all tokens in the decoder, also recomputed ones."""
    config = variant("mu/4", (16, 24), 0, **fields)
    mae = MaskedAutoencoder(mask_ratio=0.75, decoder_width=16, decoder_depth=2, decoder_heads=2)
    order_BN = torch.arange(24)[None]
    totals = {}
    for remat in ("none", "full"):
        model = masked_autoencoder.MaskedAutoencoder(config, mae, attention="plain", remat=remat)
        with FlopCounterMode(display=False) as counter:
            loss = model(torch.zeros(1, 3, 16, 24), {PATCH_ORDER: order_BN}).sum()
            if remat == "none":
                assert sum(flops.in_training(config, mae).values()) == counter.get_total_flops()
            loss.backward()
        totals[remat] = counter.get_total_flops()
    if "mlp" not in fields:
        assert totals["full"] - totals["none"] == flops.recomputed(config, "full", mae)


@pytest.mark.parametrize(
    "fields",
    [{}, {"mlp": "swiglu", "registers": 3}, pytest.param({"stem_layers": (1, 2, 2)}, marks=pytest.mark.slow)],
    ids=str,
)
def test_flops_are_what_xla_counts(fields: dict[str, object]) -> None:
    """XLA counts norms, softmax and GELU too, and no products with padding: a few per cent of a Ti."""
    config = variant("Ti/16", 224 if "stem_layers" in fields else 64, 10, **fields)
    graph, state = nnx.split(nnx.eval_shape(lambda: vit_jax.ViT(config, rngs=nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), "float32")
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    counted = forward.lower(state, images).cost_analysis()["flops"]
    assert 1 <= counted / sum(flops.forward(config).values()) < 1.05
