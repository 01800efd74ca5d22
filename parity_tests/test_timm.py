"""Against timm, whose code is not ours: the PyTorch twin's state dict loads as it is, and everything computed agrees.

Every parameter is random, nothing is downloaded. The bound is parity.FLOAT64_BOUND on every stage (attention weights
and what `forward_features` gives among them), the logits and every gradient, where a test does not derive another.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vit_jax
import vit_torch
from parity_tests.timm_twin import AFTER, NO_TOKEN, SMALL, STEM, timm_twin
from parity_tests.twins import assert_one_model, checkpoint
from vit_core import parity, variants
from vit_core.parameters import count, parameters

# fmt: off
FIELDS: dict[str, dict[str, Any]] = {
    "token": {},
    "token, fc_norm": AFTER,
    "avg": {"pooling": "gap"},
    "avg, fc_norm": {"pooling": "gap", **AFTER},
    "map": {"pooling": "map"},
    "map, fc_norm": {"pooling": "map", **AFTER},
    "no class token, avg": {"pooling": "gap", **NO_TOKEN},
    "no class token, map": {"pooling": "map", **NO_TOKEN},
    "class token without position": {"class_token_position": False},
    "no positions": {"position_embedding": "none", "class_token_position": None},
    "layer scale": {"layer_scale": 0.1},
    "no qkv bias": {"qkv_bias": False},
    "exact gelu": {"activation": "gelu"},
    "exact gelu in map": {"activation": "gelu", "pooling": "map"},
    "epsilon": {"norm_epsilon": 1e-3, "pooling": "map"},
    "one channel": {"channels": 1},
    "no head": {"num_classes": 0},
    "square image": {"image_size": 12},
    "patch not square": {"patch_size": (4, 3)},
    "unfolded patches": {"patch_embedding": "unfold", "patch_size": (4, 3)},
    "head_dim": {"head_dim": 5},
    "depth 1": {"depth": 1},
    "depth 5": {"depth": 5},
    "registers": {"registers": 3, "class_token_position": False},
    "registers, map": {"registers": 3, "class_token_position": False, "pooling": "map"},
    "registers, no class token, avg": {"registers": 2, "pooling": "gap", **NO_TOKEN},
    "two heads": {"distillation": "head"},
    "no heads": {"distillation": "head", "num_classes": 0},
    "quick gelu": {"activation": "quick_gelu", "pooling": "map"},
    "swiglu": {"mlp": "swiglu"},
    "swiglu without bias": {"mlp": "swiglu", "proj_bias": False},
    "norm before the blocks": {"pre_norm": True, "patch_bias": False},
    "normed queries and keys": {"qk_norm": True, "head_dim": 5},
    "no projection bias": {"proj_bias": False},
    "no patch bias": {"patch_bias": False},
    "root": {**STEM, "stem_layers": ()},
    "root, no patch bias": {**STEM, "stem_layers": (), "patch_bias": False},
    "ResNet": {**STEM, "stem_layers": (2, 1), "patch_size": (8, 16)},
}
# fmt: on


def timm_trace(model: VisionTransformer, x_BHWC: np.ndarray, probe_BC: np.ndarray) -> dict[str, np.ndarray]:
    """The result of vit_torch.trace, by timm's code: fused attention for the output, plain attention for the stages."""
    x_BCHW, stages = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2), {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, output: stages.update({name: output})

    model.eval()
    output_BC = model(x_BCHW)
    (output_BC * torch.from_numpy(probe_BC)).sum().backward()
    model.blocks.register_forward_pre_hook(lambda module, args: stages.update(embed=args[0]))
    for i, block in enumerate(model.blocks):
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(keep(f"blocks.{i}.attn"))
        block.register_forward_hook(keep(f"blocks.{i}"))
    with torch.no_grad():
        stages["norm"] = tokens = model.forward_features(x_BCHW)
        stages |= {"pool": model.pool(tokens), "logits": model.forward_head(tokens), "output": output_BC}
    gradients = {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {name: tensor.detach().numpy() for name, tensor in (stages | gradients).items()}


@pytest.fixture
def timm_resamples_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm resamples `posemb.float()`; in float64 its arithmetic can be compared with the bound 1e-12 too."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


@pytest.mark.parametrize("name", FIELDS)
def test_state_dict_loads_as_it_is_and_everything_agrees(name: str) -> None:
    config = SMALL.replace(**FIELDS[name])
    ours, theirs, images = vit_torch.load(checkpoint(config)), timm_twin(config), parity.probe(config, 1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_one_model(parity.compare(vit_torch.trace(ours, *images), timm_trace(theirs, *images)))


@pytest.mark.parametrize("pooling", ["cls", "gap", "map"])
def test_jax(pooling: str) -> None:
    config = SMALL.replace(pooling=pooling)
    weights, theirs, images = checkpoint(config), timm_twin(config), parity.probe(config, 1)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.arrays.items()}, strict=True)
    in_jax = vit_jax.trace(vit_jax.load(weights), *images)
    assert_one_model(parity.compare(in_jax, timm_trace(theirs, *images)))


@pytest.mark.parametrize("fields", [{}, {"class_token_position": False}, {"pooling": "map", **NO_TOKEN}], ids=str)
@pytest.mark.parametrize("size", [(24, 8), (20, 28), (12, 8)], ids=str)
@pytest.mark.usefixtures("timm_resamples_in_float64")
def test_positions_resampled_at_load(size: tuple[int, int], fields: dict[str, Any]) -> None:
    config = SMALL.replace(**fields)
    weights, theirs, images = checkpoint(config), timm_twin(config), parity.probe(config, 1, image_size=size)
    theirs.load_state_dict(vit_torch.load(weights).state_dict(), strict=True)
    theirs.set_input_size(img_size=size)
    ours = vit_torch.load(weights.adapt(image_size=size, position_embedding_method="bicubic_antialias"))
    assert_one_model(parity.compare(vit_torch.trace(ours, *images), timm_trace(theirs, *images)))


@pytest.mark.usefixtures("timm_resamples_in_float64")
def test_positions_resampled_at_run_time() -> None:
    config = SMALL.replace(position_resampling="bicubic_antialias")
    images = parity.probe(config, 1, image_size=(20, 8))
    ours, theirs = vit_torch.load(checkpoint(config)), timm_twin(config, dynamic_img_size=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    a, b = vit_torch.trace(ours, *images, interpolate=True), timm_trace(theirs, *images)
    assert_one_model(parity.compare(a, b))


def test_positions_resampled_by_timm_as_it_is() -> None:
    """In float32 a coordinate among n points is off by n * 2**-24 on each axis, which counts with the difference of two
    neighbours, at most twice the largest value (vit_core/tests/test_position_embeddings.py): n * 2**-22."""
    weights, theirs = checkpoint(SMALL), timm_twin(SMALL)
    theirs.load_state_dict(vit_torch.load(weights).state_dict(), strict=True)
    theirs.set_input_size(img_size=(20, 28))
    ours = weights.adapt(image_size=(20, 28), position_embedding_method="bicubic_antialias").arrays["pos_embed"]
    assert parity.difference(ours, theirs.pos_embed.detach().numpy())[1] <= max(SMALL.grid) * 2.0**-22


def test_stochastic_depth_rates() -> None:
    """timm takes torch.linspace in float32: rate, step, product and sum are each rounded by 2**-24 of the value."""
    config = SMALL.replace(depth=5, stochastic_depth=0.3)
    theirs = [getattr(block.drop_path1, "drop_prob", 0.0) for block in timm_twin(config).blocks]
    assert config.drop_path_rates == pytest.approx(theirs, rel=4 * 2.0**-24, abs=0)


SIGLIP: dict[str, Any] = {"num_classes": 0, "pooling": "map", **NO_TOKEN}
DINOV2: dict[str, Any] = {"num_classes": 0, "image_size": 518, "layer_scale": 1e-5}
REG4: dict[str, Any] = {**DINOV2, "registers": 4, "class_token_position": False}
GIANT: dict[str, Any] = {**DINOV2, "depth": 40, "heads": 24, "width": 1536, "mlp_dim": 4096, "mlp": "swiglu"}
CLIP: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "num_classes": 512}
MEDIUM: dict[str, Any] = {"image_size": 256, "pooling": "gap", "qkv_bias": False, "layer_scale": 1e-6, **NO_TOKEN}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "fields", "expected"),
    [
        ("vit_tiny_patch16_224", "Ti/16", {}, 5_717_416),
        ("vit_small_patch16_224", "S/16", {}, 22_050_664),
        ("vit_small_patch32_224", "S/32", {}, 22_878_952),
        ("vit_medium_patch16_gap_256", "M/16", MEDIUM, 38_861_288),
        ("vit_base_patch16_224", "B/16", {}, 86_567_656),
        ("vit_base_patch32_224", "B/32", {}, 88_224_232),
        ("vit_base_patch16_siglip_224", "B/16", SIGLIP, 92_884_224),
        ("vit_large_patch14_224", "L/14", {}, 304_203_752),
        ("vit_large_patch16_224", "L/16", {}, 304_326_632),
        ("vit_large_patch32_224", "L/32", {}, 306_535_400),
        ("vit_so400m_patch14_siglip_224", "So400m/14", SIGLIP, 427_680_704),
        ("vit_huge_patch14_224", "H/14", {}, 632_045_800),
        ("vit_giant_patch14_224", "g/14", {}, 1_012_611_432),
        ("vit_gigantic_patch14_224", "G/14", {}, 1_844_440_680),
        ("deit_base_distilled_patch16_224", "B/16", {"distillation": "head"}, 87_338_192),
        ("vit_base_patch16_clip_quickgelu_224", "B/16", CLIP, 86_193_152),
        ("vit_base_patch14_dinov2", "B/14", DINOV2, 86_579_712),
        ("vit_base_patch14_reg4_dinov2", "B/14", REG4, 86_582_016),
        ("vit_giant_patch14_dinov2", "g/14", GIANT, 1_136_479_232),
        ("vit_tiny_r_s16_p8_224", "Ti/32", {"stem_layers": ()}, 6_337_704),
        ("vit_small_r26_s32_224", "S/32", {"stem_layers": (2, 2, 2, 2)}, 36_431_912),
        ("vit_base_r50_s16_224", "B/16", {"stem_layers": (3, 4, 9)}, 98_659_112),
        ("vit_large_r50_s32_224", "L/32", {"stem_layers": (3, 4, 6, 3)}, 328_994_856),
    ],
)
def test_published_architectures(name: str, variant: str, fields: dict[str, Any], expected: int) -> None:
    config = variants.variant(variant, **{"image_size": 224, "num_classes": 1000, **fields})
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=config.num_classes)
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert shapes == {name: row.shape for name, row in parameters(config).items()}
    assert count(config) == sum(parameter.numel() for parameter in theirs.parameters()) == expected


@pytest.mark.release
def test_full_size_base_with_timms_defaults() -> None:
    config = variants.variant("B/16", image_size=224, num_classes=1000, activation="gelu")
    ours, theirs = vit_torch.load(checkpoint(config)), timm.create_model("vit_base_patch16_224").double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = parity.probe(config, 1)
    assert_one_model(parity.compare(vit_torch.trace(ours, *images), timm_trace(theirs, *images)))
