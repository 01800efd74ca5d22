"""The keys of timm's config.json and of training scripts' options that are read here, or that cannot change the model.

Source: huggingface/pytorch-image-models, timm/models/_pretrained.py, timm/models/vision_transformer.py and train.py;
facebookresearch/deit and facebookresearch/mae, whose scripts save their options in the same form.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.formats.known_keys import unknown_keys
from vit_core.checkpoints.formats.timm import architectures
from vit_core.checkpoints.formats.transformers.known_keys import EVERY_MODEL
from vit_core.errors import one_line


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PRETRAINED_CFG = _words("""
    url file state_dict hf_hub_id hf_hub_filename source architecture tag custom_load
    input_size test_input_size min_input_size fixed_input_size interpolation crop_pct test_crop_pct crop_mode mean std
    num_classes label_offset label_names label_descriptions pool_size test_pool_size first_conv classifier
    license description origin_url paper_name paper_ids notes
""")
HUB = _words("""
    architecture num_classes num_features global_pool model_args pretrained_cfg label_names label_descriptions labels
""")
TIMM_WRAPPER = EVERY_MODEL | _words("initializer_range do_pooling")
"""What transformers' TimmWrapperConfig adds."""
MODEL_ARGS = _words("""
    img_size patch_size in_chans num_classes global_pool embed_dim depth num_heads mlp_ratio qkv_bias qk_norm
    scale_attn_norm scale_mlp_norm proj_bias init_values class_token pos_embed no_embed_class reg_tokens pre_norm
    final_norm fc_norm pool_include_prefix dynamic_img_size dynamic_img_pad drop_rate pos_drop_rate patch_drop_rate
    proj_drop_rate attn_drop_rate drop_path_rate weight_init fix_init norm_layer act_layer attn_layer device dtype
    distilled pretrained checkpoint_path scriptable exportable no_jit cache_dir strict_img_size features_only
    out_indices
    num_kv_heads qkv_fused swiglu_mlp swiglu_align_to scale_mlp scale_attn_inner attn_type attn_only_layer_scale
    num_reg_tokens use_abs_pos_emb use_rot_pos_emb rope_type rope_grid_offset rope_grid_indexing rope_temperature
    rope_rotate_half rope_shift_coords rope_jitter_coords rope_rescale_coords use_post_norm use_pre_transformer_norm
    use_post_transformer_norm use_fc_norm attn_pool_num_heads attn_pool_mlp_ratio ref_feat_shape head_init_scale
    embed_norm_layer rope_mrope_section
    embed_proj_type patchify_channels_last pos_embed_grid_size pos_embed_interp_mode pos_embed_antialias
    pos_embed_align_corners rope_ref_feat_shape scale_attn_inner_norm
""")
"""Arguments of timm's VisionTransformer, Eva, NaFlexVit and create_model, but for those that replace modules
(`block_fn`, `mlp_layer`, `embed_layer`)."""
TRAIN_OPTIONS = _words("""
    aa amp amp_dtype amp_impl apex_amp native_amp aug_repeats aug_splits batch_size bce_loss bce_pos_weight bce_sum
    bce_target_thresh bn_eps bn_momentum bn_tf channels_last checkpoint_hist class_map clip_grad clip_mode color_jitter
    color_jitter_prob config cooldown_epochs crop_mode crop_pct cutmix cutmix_minmax data data_dir dataset
    dataset_download dataset_trust_remote_code decay_epochs decay_milestones decay_rate device device_modules dist_bn
    dist_backend dist_url distill_loss_weight distributed drop drop_block drop_connect drop_path epoch_repeats epochs
    eval_metric experiment fast_norm force_cpu fuser gaussian_blur_prob gp gpu grad_accum_steps grad_checkpointing
    grayscale_prob head_init_bias head_init_scale hflip img_size in_chans initial_checkpoint input_img_mode input_key
    input_size interpolation jsd_loss kd_distill_type kd_loss_type kd_model_name kd_student_feature_dim
    kd_teacher_feature_dim kd_temperature kd_token_distill_type layer_decay layer_decay_min_scale
    layer_decay_no_opt_scale local_rank log_interval log_wandb lr lr_base lr_base_scale lr_base_size lr_cycle_decay
    lr_cycle_limit lr_cycle_mul lr_k_decay lr_noise lr_noise_pct lr_noise_std mean min_lr mixup mixup_mode
    mixup_off_epoch mixup_prob mixup_switch_prob model model_dtype model_ema model_ema_decay model_ema_force_cpu
    model_ema_warmup model_kwargs momentum naflex_loader naflex_loss_scale naflex_max_seq_len naflex_patch_size_probs
    naflex_patch_sizes naflex_patchify_channels_first naflex_train_seq_lens no_aug no_ddp_bb no_prefetcher
    no_resume_opt num_classes num_gpu opt opt_betas opt_eps opt_kwargs output patience_epochs pin_mem prefetcher
    pretrained pretrained_path rank ratio recount recovery_interval remode reprob resplit resume save_images scale
    sched sched_on_updates seed smoothing split_bn start_epoch std sync_bn synchronize_step target_key
    task_loss_weight torchcompile torchcompile_mode torchscript train_batch_sizes train_batches_per_epoch
    train_crop_mode train_img_sizes train_interpolation train_num_samples train_size_probs train_size_random_mix
    train_size_schedule train_size_schedule_spread train_split tta use_multi_epochs_loader val_interval
    val_num_samples val_split validation_batch_size variable_batch_loss_scale vflip wandb_project wandb_resume_id
    wandb_tags warmup_epochs warmup_lr warmup_prefix weight_decay worker_seeding workers world_size
""")
"""Options of old and new versions of train.py, and values that it adds to them."""
OTHER_SCRIPTS = _words("""
    ThreeAugment accum_iter attn_only blr cosub data_path data_set dist_eval dist_on_itp
    distillation_alpha distillation_tau distillation_type eval eval_crop_ratio finetune inat_category log_dir nb_classes
    num_workers output_dir repeated_aug src teacher_model teacher_path train_mode unscale_lr
    _class_path _instantiator accelerator backbone data_root data_module devices learning_rate
    lr_scheduler max_epochs max_steps num_epochs optimizer precision scheduler warmup warmup_steps
    arch architecture backbone_name global_pool heads image_size label_smoothing
    depth embed_dim in_channels layer_norm_eps loss model_name n_heads name norm_eps num_heads num_layers patch_size
    pool pool_include_prefix pooling timm_model weights
""")
"""Options of DeiT's and MAE's scripts, and usual hyper-parameters of Lightning modules for training."""


def unknown_hub_keys(config: Mapping[str, Any]) -> list[str]:
    """Notes on keys in a hub folder's config.json that are not known here and might change the model."""
    nested = isinstance(config.get("pretrained_cfg"), Mapping)
    known = HUB if nested else HUB | PRETRAINED_CFG  # early files have its keys at the top level
    if config.get("model_type") == "timm_wrapper":
        known |= TIMM_WRAPPER
    notes = unknown_keys("config.json", config, known)
    if (name := str(config.get("architecture", ""))) and not architectures.is_known(name):
        notes.append(f"architecture {one_line(name)[:60]} is unknown: timm has none of this name")
    for name, keys in (("model_args", MODEL_ARGS), ("pretrained_cfg", PRETRAINED_CFG)):
        if isinstance(part := config.get(name), Mapping):
            notes += unknown_keys(f"config.json: {name}", part, keys)
    return notes
