"""The keys of transformers' config.json that are read here, or that cannot change what an image tower computes.

Source: huggingface/transformers, configuration_utils.py (versions 4 and 5) and the config class of each model.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.formats.known_keys import unknown_keys
from vit_core.checkpoints.formats.transformers.names import FAMILIES, TOWER_OF


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EVERY_MODEL = _words("""
    model_type architectures transformers_version dtype torch_dtype _name_or_path name_or_path _commit_hash
    id2label label2id num_labels problem_type finetuning_task task_specific_params
    return_dict use_return_dict output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss
    chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder tie_word_embeddings pruned_heads use_cache gradient_checkpointing
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    experts_implementation base_model_tp_plan base_model_pp_plan
    tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens
""")
"""Keys of every config: names of the model, and options of text generation, which configs of towers have too in version
4."""
EVERY_TOWER = _words("""
    hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps
    image_size patch_size num_channels head_dim initializer_range initializer_factor
    hidden_dropout_prob attention_probs_dropout_prob attention_dropout dropout
""")
OF_KIND: Mapping[str, frozenset[str]] = {
    "vit": _words("""
        qkv_bias encoder_stride pooler_output_size pooler_act mask_ratio norm_pix_loss decoder_num_attention_heads
        decoder_hidden_size decoder_num_hidden_layers decoder_intermediate_size
    """),
    "dinov2": _words("""
        qkv_bias mlp_ratio layerscale_value drop_path_rate use_swiglu_ffn num_register_tokens use_mask_token
        apply_layernorm reshape_hidden_states stage_names out_features out_indices _out_features _out_indices
    """),
    "dinov3": _words("""
        use_gated_mlp query_bias key_bias value_bias proj_bias mlp_bias num_register_tokens layerscale_value
        rope_theta pos_embed_shift pos_embed_jitter pos_embed_rescale drop_path_rate
        apply_layernorm reshape_hidden_states return_class_token stage_names out_features out_indices _out_features
        _out_indices
    """),
    "beit": _words("""
        use_mask_token use_absolute_position_embeddings use_relative_position_bias use_shared_relative_position_bias
        layer_scale_init_value drop_path_rate use_mean_pooling vocab_size pool_scales use_auxiliary_head
        auxiliary_loss_weight auxiliary_channels auxiliary_num_convs auxiliary_concat_input semantic_loss_ignore_index
        add_fpn reshape_hidden_states stage_names out_features out_indices _out_features _out_indices
        segmentation_indices
    """),
    "internvl": _words("""
        attention_bias use_qk_norm projection_dropout norm_type use_mask_token use_absolute_position_embeddings
        layer_scale_init_value use_mean_pooling
    """),
    "clip": _words("projection_dim vision_use_head num_patches"),
    "aimv2": _words("rms_norm_eps qkv_bias mlp_bias use_head is_native"),
}
"""Keys of each kind of tower. The second line of DINOv2's keys is about feature maps of a backbone."""
WITH_TEXT = _words("""
    vision_config vision_config_dict text_config text_config_dict projection_dim logit_scale_init_value
    initializer_factor initializer_range
""")
"""Keys of the configs that have an image tower and a text tower."""


def unknown_config_keys(config: Mapping[str, Any], tower: Mapping[str, Any], model_type: str) -> list[str]:
    """Notes on keys in config.json that are not known here and might change the model.

    config: the whole config.json. tower: its fields for the image tower, which may be the whole or a part. model_type:
    that of the tower.
    """
    of_tower = EVERY_MODEL | EVERY_TOWER | OF_KIND[FAMILIES[model_type].kind]
    if tower is config:
        with_text = WITH_TEXT if config.get("model_type") in TOWER_OF else frozenset[str]()
        return unknown_keys("config.json", config, of_tower | with_text)
    notes = unknown_keys("config.json", config, EVERY_MODEL | WITH_TEXT)
    return notes + unknown_keys("config.json: vision_config", tower, of_tower)
