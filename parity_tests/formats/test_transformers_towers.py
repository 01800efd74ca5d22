"""transformers' BEiT, Data2VecVision, InternVL, AIMv2, SigLIP 2 and towers that are CLIP's, against its own classes.

Its RMSNorm computes in float32 whatever the type of the model: it is compared within that bound, and exactly once the
norm computes in the type of the model. Its SigLIP 2 resamples positions in float32, also to the grid they have: values
of float32 then stay as they are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.aimv2.modeling_aimv2 import Aimv2RMSNorm
from transformers.models.internvl.modeling_internvl import InternVLVisionRMSNorm

from parity_tests.formats.foreign import (
    assert_same_bits,
    assumed,
    images,
    largest_difference,
    nchw,
    opened,
    randomized,
    save,
)
from parity_tests.formats.transformers_models import FIVE, MLP, SDPA, SIZES, TEXT, opened_there
from vit_core import parity, save_checkpoint
from vit_core.errors import InputError
from vit_core.naflex import patchify

BIAS: dict[str, Any] = {"use_relative_position_bias": True}
SHARED: dict[str, Any] = {"use_shared_relative_position_bias": True}
NAFLEX = {key: value for key, value in SIZES.items() if key != "image_size"} | {**MLP, "num_patches": 16}


def beit(model: Any = hf.BeitForImageClassification, options: Any = None, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: model(hf.BeitConfig(**SIZES, **MLP, **{**FIVE, **fields}, **SDPA), **(options or {}))


def data2vec(model: Any, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: model(hf.Data2VecVisionConfig(**SIZES, **MLP, **FIVE, **fields, **SDPA))


def internvl(**fields: Any) -> Callable[[], nn.Module]:
    return lambda: hf.InternVLVisionModel(hf.InternVLVisionConfig(**SIZES, **MLP, **fields, **SDPA))


def aimv2(**fields: Any) -> Callable[[], nn.Module]:
    return lambda: hf.Aimv2VisionModel(hf.Aimv2VisionConfig(**SIZES, **MLP, **fields, **SDPA))


def siglip2(**fields: Any) -> Callable[[], nn.Module]:
    return lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**NAFLEX, **fields, **SDPA))


def two_towers(model: Any, config: Any, vision: Any, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: model(config(vision_config=vision, text_config=TEXT, **fields, **SDPA))


CASES: dict[str, Callable[[], nn.Module]] = {
    "BEiT": beit(**BIAS),
    "BEiT: shared, class token": beit(**SHARED, use_mean_pooling=False),
    "BEiT: positions, no LayerScale": beit(use_absolute_position_embeddings=True, layer_scale_init_value=0.0),
    "BEiT: tanh gelu": beit(**BIAS, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-5),
    "BeitModel": beit(hf.BeitModel, **SHARED, use_mask_token=True),
    "BeitModel: class token": beit(hf.BeitModel, **BIAS, use_mean_pooling=False, use_absolute_position_embeddings=True),
    "BeitModel: no pooler": beit(hf.BeitModel, {"add_pooling_layer": False}, **BIAS),
    "BeitForMaskedImageModeling": beit(hf.BeitForMaskedImageModeling, **BIAS, use_mask_token=True, vocab_size=7),
    "Data2VecVision": data2vec(hf.Data2VecVisionForImageClassification, **BIAS),
    "Data2VecVisionModel": data2vec(hf.Data2VecVisionModel, **SHARED),
    "InternVL": internvl(use_mask_token=True),
    "InternVL: biases, norm": internvl(attention_bias=True, use_mean_pooling=False),
    "InternVL: RMSNorm": internvl(norm_type="rms_norm"),
    "AIMv2": aimv2(use_head=False),
    "AIMv2: pooling head, biases": aimv2(qkv_bias=True, mlp_bias=True),
    "AIMv2: native resolution": aimv2(is_native=True, use_head=False),
    "Aimv2Model": two_towers(hf.Aimv2Model, hf.Aimv2Config, {**SIZES, **MLP}, projection_dim=5),
    "SigLIP 2": siglip2(),
    "SigLIP 2: no head": siglip2(vision_use_head=False),
    "Siglip2Model": two_towers(hf.Siglip2Model, hf.Siglip2Config, NAFLEX),
    "Siglip2ForImageClassification": two_towers(hf.Siglip2ForImageClassification, hf.Siglip2Config, NAFLEX, **FIVE),
    "AltCLIPVisionModel": lambda: hf.AltCLIPVisionModel(hf.AltCLIPVisionConfig(**SIZES, **MLP, **SDPA)),
    "ChineseCLIPVisionModel": lambda: hf.ChineseCLIPVisionModel(hf.ChineseCLIPVisionConfig(**SIZES, **MLP, **SDPA)),
    "CLIPSegVisionModel": lambda: hf.CLIPSegVisionModel(hf.CLIPSegVisionConfig(**SIZES, **MLP, **SDPA)),
    "MetaClip2VisionModel": lambda: hf.MetaClip2VisionModel(hf.MetaClip2VisionConfig(**SIZES, **MLP, **SDPA)),
    "MetaClip2Model": two_towers(hf.MetaClip2Model, hf.MetaClip2Config, {**SIZES, **MLP}, projection_dim=5),
}
BY_HAND = (
    *("BEiT: shared, class token", "BEiT: positions, no LayerScale", "BeitModel", "Data2VecVision", "InternVL"),
    *("AIMv2: pooling head, biases", "AIMv2: native resolution", "Aimv2Model", "SigLIP 2: no head", "Siglip2Model"),
)
"""One case for each form of the names in memory."""
WRITTEN = (
    *("BEiT", "BEiT: shared, class token", "BEiT: tanh gelu", "BeitModel", "BeitModel: class token"),
    *("AIMv2", "AIMv2: native resolution"),
)


def in_own_type(self: Any, x: Tensor) -> Tensor:
    scaled: Tensor = self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return scaled


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """RMSNorms in the type of the model."""
    for norm in (Aimv2RMSNorm, InternVLVisionRMSNorm):
        monkeypatch.setattr(norm, "forward", in_own_type)


def built(case: str) -> Any:
    model: Any = randomized(CASES[case](), seed=len(case))
    for name, parameter in model.named_parameters():
        if "position_embedding.weight" in name:
            parameter.data = parameter.data.float().double()
    return model


def expected_of(model: Any, x_BHWC: Any, pooling: str) -> Tensor:
    """Logits, image features, what the class pools, or else its tokens pooled."""
    inputs: dict[str, Any] = {"pixel_values": nchw(x_BHWC)}
    if "Siglip2" in type(model).__name__:
        patches_BNP = torch.stack([torch.from_numpy(patchify(x_HWC, (4, 4))) for x_HWC in x_BHWC]).double()
        ones_BN = torch.ones(patches_BNP.shape[:2], dtype=torch.long)
        grids_B2 = torch.tensor([[side // 4 for side in x_BHWC.shape[1:3]]] * len(x_BHWC))
        inputs = {"pixel_values": patches_BNP, "pixel_attention_mask": ones_BN, "spatial_shapes": grids_B2}
    with torch.no_grad():
        if isinstance(model, hf.BeitForMaskedImageModeling):
            tokens: Tensor = model.layernorm(model.beit(**inputs).last_hidden_state)
            return tokens[:, 0]
        out = model.get_image_features(**inputs) if hasattr(model, "get_image_features") else model(**inputs)
    for name in ("logits", "pooler_output"):
        if out.get(name) is not None:
            found: Tensor = out[name]
            return found
    tokens = out.last_hidden_state
    has_class_token = not isinstance(model, hf.Aimv2VisionModel | hf.Siglip2VisionModel)
    return tokens[:, 0] if pooling == "cls" else tokens[:, int(has_class_token) :].mean(1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("exact_norms")
def test_a_folder(case: str, tmp_path: Path) -> None:
    """The outputs, in both twins; nothing but the pooling of tokens is assumed."""
    model = built(case)
    model.save_pretrained(tmp_path)
    found = opened(tmp_path)
    expected = expected_of(model, images(found.config.model), found.config.model.pooling)
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert set(assumed(found)) <= {"pooling"}


@pytest.mark.parametrize("case", ["AIMv2", "InternVL: RMSNorm"])
def test_their_own_norms(case: str, tmp_path: Path) -> None:
    """RMSNorms in float32 are some of the roundings of a whole model in float32, whose bound holds."""
    model = built(case)
    model.save_pretrained(tmp_path)
    found = opened(tmp_path)
    expected = expected_of(model, images(found.config.model), found.config.model.pooling)
    assert parity.FLOAT64_BOUND < largest_difference(found, expected) <= parity.FLOAT32_BOUND


@pytest.mark.parametrize("case", BY_HAND)
@pytest.mark.usefixtures("exact_norms")
def test_a_state_dict_saved_by_hand(case: str, tmp_path: Path) -> None:
    """The names in memory; fields that no array shows are assumed, and set here."""
    model = built(case)
    model.save_pretrained(tmp_path / "folder")
    whole = opened(tmp_path / "folder").config.model
    told = {name: getattr(whole, name) for name in ("image_size", "heads", "activation", "norm_epsilon", "pooling")}
    told |= {"position_embedding": whole.position_embedding}
    path = save(tmp_path / "model.pth", model.state_dict())
    found = opened(path, **told)
    assert largest_difference(found, expected_of(model, images(whole), whole.pooling)) <= parity.FLOAT64_BOUND
    assert assumed(opened(path, image_size=16)).keys() >= {"activation", "norm_epsilon"}


@pytest.mark.parametrize("case", WRITTEN)
@pytest.mark.usefixtures("exact_norms")
def test_written_again(case: str, tmp_path: Path) -> None:
    """Their folder -> ours -> their folder: it opens there, computes the same, and has every bit."""
    model = built(case)
    model.save_pretrained(tmp_path / "theirs")
    found = opened(tmp_path / "theirs")
    save_checkpoint(tmp_path / "again", found, format="transformers")
    there = opened_there(tmp_path / "again")
    x_BHWC, pooling = images(found.config.model), found.config.model.pooling
    before_BC, after_BC = (expected_of(one, x_BHWC, pooling).numpy() for one in (model, there))
    assert parity.difference(after_BC, before_BC)[1] <= parity.FLOAT64_BOUND
    again = opened(tmp_path / "again")
    assert again.config.model == found.config.model
    assert_same_bits(again.arrays, found.arrays)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two relative biases": (beit(**BIAS, **SHARED), "a shared relative bias in addition to one of each block"),
    "an oblong BEiT": (beit(**BIAS, image_size=[16, 32]), "Beit treats positions of an image that is not square"),
    "norms of all heads": (internvl(use_qk_norm=True), "a norm over the queries and keys of all heads"),
    "two kinds of norms": (internvl(norm_type="rms_norm", use_mean_pooling=False), "RMSNorm in the blocks and LayerN"),
    "one bias": (aimv2(qkv_bias=True), "a bias on only one of attention and MLP"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_schema_cannot_say(case: str, tmp_path: Path) -> None:
    build, reason = REFUSED[case]
    if case == "an oblong BEiT":
        fields = {**SIZES, "image_size": (16, 32)}
        hf.BeitModel(hf.BeitConfig(**fields, **MLP, **BIAS)).save_pretrained(tmp_path)
    else:
        build_any: Any = build()
        build_any.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=reason):
        opened(tmp_path)


def contradictions() -> dict[str, tuple[str, dict[str, Any], str]]:
    return {
        "pooling": ("BEiT", {"use_mean_pooling": False}, "use_mean_pooling False, but the arrays show True"),
        "bias": ("BEiT", {"use_relative_position_bias": False}, "position_bias False, but the arrays show True"),
        "size": ("BEiT", {"image_size": 32}, "image_size 32, but the arrays show 52 rows of relative bias"),
        "heads": ("BEiT", {"num_attention_heads": 8}, "num_attention_heads 8, but the arrays show 4"),
        "gate": ("AIMv2", {"hidden_act": "gelu"}, "hidden_act 'gelu' for a gated MLP"),
        "head": ("AIMv2", {"use_head": True}, "use_head True, but the arrays show False"),
        "patches": ("SigLIP 2", {"num_patches": 64}, "num_patches 64, but the arrays show 16"),
        "patch": (
            "SigLIP 2",
            {"patch_size": 8},
            "expects 48 values of a patch, not those of patch_size 8 and 3 channels",
        ),
    }


@pytest.mark.parametrize("case", contradictions())
def test_a_config_of_another_checkpoint(case: str, tmp_path: Path) -> None:
    model, change, message = contradictions()[case]
    built(model).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError) as error:
        opened(tmp_path)
    assert message in str(error.value)


def test_siglip_2_without_its_config(tmp_path: Path) -> None:
    """Square patches of three channels, said; oblong ones by --set."""
    path = save(tmp_path / "model.safetensors", built("SigLIP 2").state_dict())
    assert assumed(opened(path))["patch_size"] == (4, 4)
    assert opened(path, patch_size=(2, 8)).config.model.patch_size == (2, 8)
    with pytest.raises(InputError, match="use --set patch_size=HEIGHTxWIDTH and --set channels=N"):
        opened(path, patch_size=(2, 7))


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "vision_tower."])
def test_a_language_model_with_an_image_tower(prefix: str, tmp_path: Path) -> None:
    """Named, with the tower that could be saved alone; its arrays without config.json open as that tower."""
    vision = hf.CLIPVisionConfig(**SIZES, **MLP, **SDPA)
    tower: Any = randomized(hf.CLIPVisionModel(vision))
    state = {f"{prefix}vision_model.{name.removeprefix('vision_model.')}": x for name, x in tower.state_dict().items()}
    state |= {"model.language_model.embed_tokens.weight": torch.ones(3, 8)}
    save(tmp_path / "model.safetensors", state)
    config: Any = hf.LlavaConfig(vision_config=vision.to_dict())
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        opened(tmp_path)
    module = prefix.removesuffix(".")
    assert "model_type 'llava', which cannot be read; its image tower, a clip_vision_model, can be" in str(error.value)
    assert f"save only that module ('{module}') with its save_pretrained(FOLDER)" in str(error.value)
    (tmp_path / "config.json").unlink()
    found = opened(tmp_path, heads=4)
    with torch.no_grad():
        expected = tower(pixel_values=nchw(images(found.config.model))).pooler_output
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def test_a_file_of_beit_has_the_names_of_old_versions(tmp_path: Path) -> None:
    """What the tests above read of a folder is not what they read of a state dict."""
    built("BEiT").save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table" in names
    assert not set(names) & {name for name in built("BEiT").state_dict() if ".layers." in name}
