"""Recognizes networks that cannot be read by the names of their arrays, for messages.

Most of these names affect only the text of an InputError. The functions `check_...` refuse files: their networks
compute other outputs than a plain Vision Transformer from arrays of the same names, or their arrays are empty or
packed.
"""

import re
from collections.abc import Sequence

from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.linear_head import AFTER_BACKBONE
from vit_core.errors import InputError, abbreviate, one_line

_OTHER_POSITIONS = (
    (
        r"(^|[./])rope(_embed)?[./](?!(freqs|periods)$)|(^|[./])(?<!rope[./])(?<!rope_reg[./])freqs(_cos|_sin)?$",
        "rotary positions, as in EVA-02 and rope-vit",
    ),
    (
        # The names of timm's Beit and VisionTransformerRelPos and of transformers' Beit are read, so they are excluded.
        # Swin's names are one level further down.
        r"^(?!.*(?<!layers[./]\d[./])blocks[./]\d+[./]attn[./]|(.*[./])?(shared_rel_pos|rel_pos_bias)[./]"
        r"|(?!.*[./]blocks[./]).*(relative|shared)_position_bias[./])"
        r".*(relative_position_bias_table$|[./]rel_pos[./])|[./]rel_pos_[hw]$",
        "relative positions, as in Swin and SAM",
    ),
)
_OTHER_BLOCKS = (
    (r"^(.*[./])?blocks_token_only[./]|[./]attn[./]proj_[lw][./]", "talking heads, as in CaiT"),
    (r"[./]attn[./](gating_param|pos_proj[./]weight)$", "gated attention by position, as in ConViT"),
)
_BESIDE = ((r"(^|[./])projector[./](projector_layer|stages)[./]", "attention within windows, as in RF-DETR"),)
"""Names of arrays outside the model which show that it computes other outputs than its own arrays suggest."""
_PARAMETRISED = re.compile(r"[./](weight_(orig|mask)|parametrizations[./]weight[./]original\d*)$")
_FIRST_NORM = re.compile(r"blocks[./]\d+[./]norm1[./]weight$")
_PATCHES_OVER_TIME = re.compile(r"patch_embed(dings?)?[./](proj|projection|patch_embed)[./]weight$")
_OTHER_KIND = "only plain Vision Transformers can be opened; give the file of one"
_JOIN = "join its parts with zero_to_fp32.py, which is in the same folder, and give the result"
_IN_4_BITS = re.compile(r"[./](quant_state[./].*|(nested_)?(absmax|quant_map))$")
_SAME_LAYERS = "copy its weights, by their shapes, into a model of timm or transformers, and save that"
_FULL = "save the full state dict (StateDictType.FULL_STATE_DICT), and give that"
_NETWORKS = (
    (r"(^|[./])_?flat_param(_\d+)?$", "one process's part of FSDP's flat parameters", _FULL),
    (r"fp32_flat_groups|single_partition_of_fp32_groups", "one part of a DeepSpeed ZeRO checkpoint", _JOIN),
    (
        r"(^|[./])lora_[AB]([./]|$)|lora_(up|down)[./]|[./]linear_[ab]_[qkv][./]",
        "LoRA adapters",
        "merge them into the model and save that",
    ),
    (
        r"(^|[./])(ia3_l|hada_[wt]\d(_[abm])?|lokr_[wt]\d(_[ab])?|b?oft_[rRsS]|vera_lambda_[bd]|hra_u|fourierft_spectrum)([./]|$)",
        "adapters of peft that are no LoRA (IA3, LoHa, LoKr, OFT or others)",
        "merge them into the model (merge_and_unload) and save that",
    ),
    (
        r"(^|[./])qweight$|[./](qzeros|SCB|zero_point)$|weight_(scale|format)(_inv)?$"
        r"|[./]weight[./]_(data|scale)$|[./]_packed_params",
        "quantized weights",
        "save the model before quantization",
    ),
    (r"(^|[./])patch_embedding[./]patch_embeddings[./]", "MONAI's ViT", _SAME_LAYERS),
    (r"^visual\.layer1\.", "the ResNet tower of a CLIP model", _OTHER_KIND),
    (r"(^|[./])layer1[./]0[./]conv1[./]weight$", "a ResNet", _OTHER_KIND),
    (r"(^|[./])layers[./]0[./]blocks[./]0[./]attn[./]", "a Swin Transformer", _OTHER_KIND),
    (r"(^|[./])stages?[./]0[./](blocks[./])?0[./](conv_dw|dwconv|gamma)", "a ConvNeXt", _OTHER_KIND),
    (r"(^|[./])features[./]0[./]0[./]weight$", "a convolutional network of torchvision", _OTHER_KIND),
    (r"[./](mlp_tokens|linear_tokens|mlp_channels)[./]", "a network of MLPs without attention", _OTHER_KIND),
    (r"[./]attn[./]temperature$", "attention over channels, as in XCiT", _OTHER_KIND),
    (
        r"(^|[./])((pos|cls)_(embed|token)_?[0-9]|pixel_pos|patch_pos)$"
        r"|(^|[./])(stages|levels|network|transformers)[./]\d+[./].*[./]attn[./]",
        "a Transformer of several resolutions (such as MViT, PVT, CrossViT, PiT, TNT or CoaT)",
        _OTHER_KIND,
    ),
    (r"[./](running_mean|num_batches_tracked)$", "a network with batch normalization", _OTHER_KIND),
    (r"(^|[./])self_attn[./]q_proj[./]|[./]attn[./]c_attn[./]|token_embd", "a language model", ""),
    (r"(^|[./])attention[./]self[./]query[./]", "a BERT or BEiT of transformers", ""),
    (r"(^|[./])encoder[./]layers[./]layers_0[./]|(^|[./])decoder[./]", "a text model or a decoder", ""),
    (r"(^|[./])down_blocks[./]0[./]|^model\.diffusion_model\.", "a diffusion model", ""),
    (
        r"(^|[./])(mu|nu|exp_avg|opt_state|momentum)[./]",
        "the statistics of an optimizer",
        "give the item with the parameters",
    ),
)
_DEEPSPEED = ("ds_config", "ds_version", "param_shapes")
"""Keys of DeepSpeed's own files."""
_NEXT_STEP = "give the file of the image model, or save its state_dict with one of these libraries and give --from"


def check_positions(source: Source) -> None:
    """Raises InputError for arrays of positions, blocks and patches that a plain Vision Transformer does not have,
    unless config.json states the type of the model."""
    if source.config.get("model_type", "timm_wrapper") != "timm_wrapper":
        return
    for name, entry in source.arrays.entries.items():
        if len(entry.shape) == 5 and _PATCHES_OVER_TIME.search(name):
            raise InputError(
                f"{source.path}: {name} has shape {list(entry.shape)}: patches over several frames, as in models for "
                "video and for language (VideoMAE, V-JEPA, Qwen-VL), which ViTConfig cannot express"
            )
    if found := [name for name in source.arrays if _PARAMETRISED.search(name) and not AFTER_BACKBONE.match(name)]:
        raise InputError(
            f"{source.path}: {abbreviate(found, most=1)} belongs to a layer whose weight is computed from other arrays "
            "(pruned, or with weight or spectral normalization); make it permanent (prune.remove, "
            "parametrize.remove_parametrizations) and save again"
        )
    widths = {entry.shape for name, entry in source.arrays.entries.items() if _FIRST_NORM.match(name)}
    if len(widths) > 1:
        several = ", ".join(str(size) for shape in sorted(widths) for size in shape)
        raise InputError(
            f"{source.path}: its blocks have the widths {several}, as in Hiera and SAM 2, which ViTConfig cannot "
            "express"
        )
    _check_first_small(source)
    inside, beside = (*_OTHER_POSITIONS, *_OTHER_BLOCKS), _BESIDE
    known = [*((one, source.arrays) for one in inside), *((one, source.beside) for one in beside)]
    for (pattern, what), arrays in known:
        if found := [name for name in arrays if re.search(pattern, name)]:
            raise InputError(
                f"{source.path}: {abbreviate(found, most=1)} belongs to {what}, which ViTConfig cannot express"
            )


def _check_first_small(source: Source) -> None:
    """Raises InputError for the sizes of vit_small_patch16_224 in timm 0.3 and PaddleClas. Its attention has no bias of
    queries, keys and values, and multiplies scores by 768 ** -0.5, although its heads have width 96."""
    shapes = source.arrays.shapes
    sizes = (shapes.get("blocks.7.mlp.fc1.weight"), shapes.get("blocks.7.mlp.fc2.weight"))
    others = {"blocks.8.norm1.weight", "blocks.7.attn.qkv.bias"}
    if sizes == ((2304, 768), (768, 2304)) and not others & shapes.keys():
        raise InputError(
            f"{source.path}: 8 blocks of width 768 with MLPs of 2304 and no bias of qkv are those of "
            "vit_small_patch16_224 in timm 0.3 and in PaddleClas, whose attention scales by 768 ** -0.5, which "
            "ViTConfig cannot express; if it is another network, use --from timm --set heads=N"
        )


def check_quantized(source: Source) -> None:
    """Raises InputError for weights that bitsandbytes has quantized to 4 bits."""
    if found := [name for name in source.arrays if _IN_4_BITS.search(name)]:
        raise InputError(
            f"{source.path}: {one_line(min(found))[:100]} belongs to weights in 4 bits (bitsandbytes), which cannot be "
            "read; save the model before quantization, or after its dequantize()"
        )


def check_deepspeed(source: Source) -> None:
    """Raises InputError for a file of DeepSpeed whose weights are in the other files of its folder (ZeRO stage 3)."""
    empty = [name for name, entry in source.arrays.entries.items() if 0 in entry.shape]
    if 2 * len(empty) > len(source.arrays) and any(key in source.facts for key in _DEEPSPEED):
        raise InputError(
            f"{source.path}: a file of DeepSpeed ZeRO stage 3 with the names of {len(empty)} arrays but not their "
            f"values; {_JOIN}"
        )


def advice_about(names: Sequence[str]) -> str | None:
    """The network that unused arrays are typical of, and what the user can do; None if no known network has such
    names."""
    looks, step = _look_alike(list(names))
    return f"they look{looks.removeprefix(',').replace(' as of', ' like those of', 1)}; {step}" if looks else None


def unrecognized(source: Source, formats: tuple[str, ...]) -> InputError:
    """The error for arrays that no format recognizes: it names some of them, the network that has such names, if known,
    and what the user can do."""
    names = list(source.arrays)
    first = ", ".join(names[:3]) or "none"
    more = ", ..." if len(names) > 3 else ""
    looks, step = _look_alike(names)
    unread = [note for note in source.notes if note.startswith("left out, because")]
    found = f"found {len(names)} arrays ({first}{more}){looks}" + "".join(f" ({note})" for note in unread)
    return InputError(
        f"{source.path}: {found}, but no Vision Transformer with the names of {', '.join(formats)}; {step}"
    )


def _look_alike(names: list[str]) -> tuple[str, str]:
    for pattern, network, step in _NETWORKS:
        if any(re.search(pattern, name) for name in names):
            return f", as of {network}", step or _NEXT_STEP
    return "", _NEXT_STEP
