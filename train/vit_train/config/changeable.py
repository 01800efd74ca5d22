"""Which fields of a run's config may be changed, answered for every field.

A field that is in neither of two sets counts as fixed, and fails the test that compares them with the schemas.
"""

FREE_MODEL_FIELDS = {
    "dropout",
    "attention_dropout",
    "stochastic_depth",
    "head_bias_init",
    "patch_embedding",
    "position_resampling",
}
"""Fields of a model that a run may choose freely for given weights: they change no output of the trained network.
(So do shift, jitter and rescale in `rope`, which is fixed otherwise.)"""

FIXED_MODEL_FIELDS = {
    "image_size", "patch_size", "channels", "width", "depth", "heads", "head_dim", "mlp_dim", "num_classes",
    "pooling", "class_token", "class_token_position", "distillation", "registers", "position_embedding",
    "final_norm", "representation", "pre_norm", "mlp", "activation", "norm_epsilon", "qkv_bias", "qk_norm",
    "proj_bias", "head_bias", "layer_scale", "patch_bias", "patch_norms", "embed_norm", "stem_layers", "stem_width",
    "rope", "relative_bias", "relative_bias_shared", "relative_bias_dim", "norm", "branch_norm", "parallel", "key_bias",
    "attention_norm", "mlp_norm", "pool_heads", "pool_mlp_dim", "pool_prefix",
}  # fmt: skip
"""Fields of a model that given weights determine."""

CHANGEABLE_IN_SEGMENTS = {"steps", "batch_size", "accumulation", "compute_dtype", "optimizer.learning_rate"}
"""Fields that `vit resume` changes from a saved step on, which begins a new segment of the run (vit_train.run.Segment).
They are among those of FIXED_ON_RESUME: the command that began the run does not change them."""

CHANGEABLE_ON_RESUME = {
    "data.name", "data.directory", "data.eval_split", "data.image_column", "data.label_column", "data.split_column",
    "data.label_separator", "data.label_columns", "distillation.teacher",
    "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.prefetch", "scan", "attention", "compile", "remat",
    "log_every", "evaluate_every", "save_every", "keep", "keep_every", "keep_best", "evaluation_batch",
    "threads", "workers", "image_cache", "image_cache_folder", "fingerprints", "profile", "tensorboard", "loggers",
    "skippable", "explosion", "allow_undecodable", "undecodable_limit",
}  # fmt: skip
"""Fields that change no weights of a run (except by rounding), so a run that is resumed may change them. Its data may
move to another place, and so may its teacher; that they are the same is checked by fingerprints of the splits and a
digest of the teacher."""

FIXED_ON_RESUME = {
    "mae.mask_ratio", "mae.decoder_width", "mae.decoder_depth", "mae.decoder_heads", "mae.decoder_mlp_dim",
    "mae.normalize_target",
    "data.train_split", "data.labelled", "data.held_out", "data.split_seed", "data.group",
    "preprocessing.image_size", "preprocessing.channels", "preprocessing.bit_depth", "preprocessing.mean",
    "preprocessing.std",
    "preprocessing.crop_fraction", "preprocessing.interpolation", "preprocessing.resize",
    "preprocessing.crop_rounding", "preprocessing.exif_rotation",
    "augmentation.crop_area", "augmentation.crop_ratio", "augmentation.flip", "augmentation.rotation",
    "augmentation.shift", "augmentation.mixup", "augmentation.cutmix", "augmentation.mix_probability",
    "augmentation.mixed_targets",
    "augmentation.random_crop", "augmentation.crop_padding", "augmentation.three_augment", "augmentation.color_jitter",
    "augmentation.erasing", "augmentation.erasing_fill", "augmentation.repeats", "augmentation.rand_augment.layers",
    "augmentation.auto_augment", "augmentation.rand_augment.operations", "augmentation.rand_augment.magnitude",
    "augmentation.rand_augment.deviation", "augmentation.rand_augment.limit", "augmentation.rand_augment.probability",
    "optimizer.name", "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.decay", "optimizer.beta1",
    "optimizer.beta2", "optimizer.epsilon", "optimizer.momentum", "optimizer.nesterov", "optimizer.moment_dtype",
    "optimizer.clip_norm",
    "optimizer.layer_decay", "optimizer.frozen",
    "distillation.kind", "distillation.weight", "distillation.temperature",
    "lora.rank", "lora.alpha", "lora.root", "lora.targets",
    "schedule.name", "schedule.warmup_steps", "schedule.cooldown_steps", "schedule.timescale", "schedule.final",
    "loss", "label_smoothing", "class_weights", "sampling", "steps", "batch_size", "accumulation", "continues", "ema",
    "ema_warmup", "seed", "dtype", "compute_dtype", "reduce_dtype", "head", "patch_sizes",
    "sequence_lengths", "preprocessing.max_patches", "preprocessing.patch_size",
    *(f"model.{name}" for name in FIXED_MODEL_FIELDS | FREE_MODEL_FIELDS),
}  # fmt: skip
"""Fields that make it another run: a folder that holds a run with another value is refused."""
