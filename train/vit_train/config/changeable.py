"""Which fields of a run's config may be changed.

All others are fixed. The test test_changeable_fields.py lists these too, so that a new field fails it until it is in
one of the lists.
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

CHANGEABLE_IN_SEGMENTS = {"steps", "batch_size", "accumulation", "compute_dtype", "optimizer.learning_rate"}
"""Fields that `vit resume` changes from a saved step on, which begins a new segment of the run (vit_train.run.Segment).
They are not in CHANGEABLE_ON_RESUME: the command that began the run does not change them."""

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
