"""Every image model that transformers exports: its type is read, or its folder is refused by the name of its type.

A class of a type that is in neither list makes the test fail, so that no new one is forgotten. What is read is compared
with the classes in the tests beside this one; here a state dict without config.json, which is recognized by its names
alone, is held to the classes that have such names, at full width and a depth of two, on the meta device.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from parity_tests.formats.foreign import source_of
from vit_core.arrays import LazyArray
from vit_core.checkpoints import open_checkpoint
from vit_core.checkpoints.formats.transformers.names import FAMILIES, TOWER_OF
from vit_core.checkpoints.opening import read_source, recognized_format
from vit_core.errors import InputError

_ENDS = re.compile(
    r"(Model|ForImageClassification\w*|Backbone|WithProjection|ForPreTraining|ForMaskedImageModeling|Pretrained\w*)$"
)
_IMAGES = re.compile(r"Vision|ViT|Vit[A-Z]|Beit|Dino|DINO|Aimv|Siglip|Hiera|JEPA|CLIP|Perce|Sam")


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


REFUSED_TYPES = words("""
    aimv2_text_model align_vision_model altclip altclip_text_model apertus1p5_vision_tokenizer aya_vision bit
    blip-2 blip_2_vision_model blip_vision_model chinese_clip_text_model clip_text_model clipseg_text_model
    cohere2_vision cohere_compass_vision conditional_detr convnext convnextv2 cosmos3_edge_vision cvt d_fine
    dab-detr deepseek_ocr2_vision deformable_detr deimv2 depth_pro detr dinat dinov3_convnext donut-swin
    dots3_note_vision_encoder dpt edgetam edgetam_video edgetam_vision_model efficientloftr efficientnet
    ernie4_5_vl_moe_vision exaone4_5_vision flava_image_model florence_vision focalnet gemma4_vision
    git_vision_model glm4v_moe_vision glm4v_vision glm5_next_vision glm_image_vision glm_ocr_vision glpn
    granite4_vision granite4_vision_text granite_docling_vision grounding-dino groupvit groupvit_text_model
    groupvit_vision_model hgnet_v2 hiera hy_v4_vl_vision hyperclovax_vision_v2 inkling2_vision inkling_vision
    instructblip instructblip_vision_model instructblipvideo instructblipvideo_vision_model janus_vision_model
    kimi_k25_vision kosmos-2 levit lfm3_vl_vision llama4_vision_model lw_detr lw_detr_vit mask2former maskformer
    maskformer-swin minicpm_ocr_vision minicpmv4_7_vision minimax_m3_vl_vision mlcd_vision_model
    mllama_vision_model mm-grounding-dino mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 molmo2_vision
    muse_glimmer_vision muse_spark_vision owlv2_vision_model owlvit owlvit_text_model owlvit_vision_model
    paddleocr_vl_vision perceiver perception_lm phi4_multimodal_vision pix2struct_vision_model pixio pixtral
    poolformer pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_formulanet pp_formulanet_text
    pp_formulanet_vision pp_lcnet pp_lcnet_v3 pp_lcnet_v4 pp_ocrv5_mobile_det pp_ocrv5_mobile_rec
    pp_ocrv5_server_det pp_ocrv5_server_rec pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec
    pp_ocrv6_tiny_rec pvt pvt_v2 qianfan_ocr_vision qwen2_5_vl_vision qwen3_5_moe_vision qwen3_5_vision
    qwen3_vl_moe_vision qwen3_vl_vision qwen4_exp_vision radio regnet resnet rf_detr rf_detr_dinov2 rt_detr
    rt_detr_resnet rt_detr_v2 sam sam2 sam2_hiera_det_model sam2_video sam2_vision_model sam3 sam3_lite_text
    sam3_lite_text_text_model sam3_tracker sam3_tracker_video sam3_video sam3_vision_model sam3_vit_model sam_hq
    sam_hq_vision_model sam_vision_model sapiens2 segformer seggpt siglip2_text_model siglip_text_model slanet
    slanext step3p5_vision swiftformer swin swin2sr swinv2 table-transformer textnet timesformer timm_backbone
    tipsv2_vision_model unlimited_ocr_vision uvdoc uvdoc_backbone video_llama_3_vision videomae videoprism
    videoprism_vision_model vision-encoder-decoder vision-text-dual-encoder vitdet vitpose_backbone vivit vjepa2
    xclip xclip_text_model xclip_vision_model yolos
""")
"""Types of image models that are not read: they are no plain ViT, or a whole of which a tower would be one."""
CANNOT_SAY = ("CLIPForImageClassification", "MetaClip2ForImageClassification")
"""Classes of types that are read, which compute what the schema cannot say."""
SAME_ARRAYS = words("""
    AltCLIPModel Cohere2VisionModel DPTModel DepthProModel FlavaImageModel GitVisionModel Kosmos2Model
    VisionTextDualEncoderModel
    Tipsv2VisionBackbone Tipsv2VisionModel VisionEncoderDecoderModel Cosmos3EdgeVisionModel Phi4MultimodalVisionModel
    PaddleOCRVisionModel RfDetrDinov2Backbone
""")
"""Classes of types that are not read, whose state dict has the arrays of one that is, as its tower. Those of the last
line compute other outputs from these arrays; without a config.json nothing shows which it is, which an assumption says
(test_same_arrays.py)."""


def image_models() -> dict[str, Any]:
    """Name -> class, of every class that transformers exports and that takes images."""
    found: dict[str, Any] = {}
    for name in filter(_ENDS.search, dir(hf)):
        model = getattr(hf, name)
        if name.endswith("PreTrainedModel") or not isinstance(model, type) or not issubclass(model, hf.PreTrainedModel):
            continue
        takes_pixels = "pixel" in (getattr(model, "main_input_name", "") or "")
        if model.config_class is not None and (takes_pixels or _IMAGES.search(name)):
            found[name] = model
    return found


def is_read(model_type: str) -> bool:
    return model_type in FAMILIES or model_type in TOWER_OF


def on_meta(model: Any) -> dict[str, LazyArray] | None:
    """Names and shapes of a model of its class's default sizes, two layers deep; None where its defaults build none."""
    try:
        config = model.config_class()
        for part in (config, *vars(config).values()):
            for key in ("num_hidden_layers", "depth"):
                if isinstance(getattr(part, key, None), int):
                    setattr(part, key, 2)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = model(config).state_dict()
    except Exception:  # each has its own reasons
        return None
    return {
        name: LazyArray(tuple(x.shape), "float32", lambda shape=tuple(x.shape): np.zeros(shape, "float32"))  # type: ignore[misc]
        for name, x in state.items()
    }


def opens(arrays: dict[str, LazyArray]) -> bool:
    source = source_of(arrays)
    try:
        read_source(recognized_format(source), source, {})
    except InputError:
        return False
    return True


@pytest.mark.release
def test_each_type_has_an_answer(tmp_path: Path) -> None:
    """With the config that the class itself saves, and arrays with any names."""
    torch.save({"weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    unknown = list[str]()
    for name, model in image_models().items():
        model_type = model.config_class.model_type
        if is_read(model_type) or model_type == "timm_wrapper":
            continue
        if model_type not in REFUSED_TYPES:
            unknown.append(f"{name} ({model_type})")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [name]}))
        with pytest.raises(InputError) as error:
            open_checkpoint(tmp_path)
        text = str(error.value)
        assert f"model_type {model_type!r}, which cannot be read" in text
        assert "\n" not in text
    assert unknown == [], "new in transformers: read it, or add its type to those that are refused"


@pytest.mark.release
def test_a_state_dict_alone_is_not_taken_for_another_class() -> None:
    taken, refused = set[str](), list[str]()
    for name, model in image_models().items():
        if (arrays := on_meta(model)) is None:
            continue
        read = is_read(model.config_class.model_type)
        if opens(arrays):
            taken |= set() if read else {name}
        elif read and name not in CANNOT_SAY:
            refused.append(name)
    assert taken == SAME_ARRAYS
    assert {
        name for name in refused if not name.startswith(("Beit", "Data2Vec"))
    } == set()  # whose defaults have no table
