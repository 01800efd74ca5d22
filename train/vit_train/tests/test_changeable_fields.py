"""Every field of a run is fixed or may change: the fixed fields are listed here, the others in the code."""

from typing import Any

import pytest

from vit_core import ViTConfig
from vit_train import run
from vit_train.config import TrainConfig, leaf_fields
from vit_train.config.changeable import CHANGEABLE_ON_RESUME, FREE_MODEL_FIELDS
from vit_train.run import CHANGEABLE, Request, differences
from vit_train.tests.small_run import CONFIG

FIXED_OF_MODEL = {
    "image_size", "patch_size", "channels", "width", "depth", "heads", "head_dim", "mlp_dim", "num_classes",
    "pooling", "class_token", "class_token_position", "distillation", "registers", "position_embedding",
    "final_norm", "representation", "pre_norm", "mlp", "activation", "norm_epsilon", "qkv_bias", "qk_norm",
    "proj_bias", "head_bias", "layer_scale", "patch_bias", "patch_norms", "embed_norm", "stem_layers", "stem_width",
    "rope", "relative_bias", "relative_bias_shared", "relative_bias_dim", "norm", "branch_norm", "parallel", "key_bias",
    "attention_norm", "mlp_norm", "pool_heads", "pool_mlp_dim", "pool_prefix",
}  # fmt: skip
"""Fields of a model that given weights determine."""

FIXED_OF_CONFIG = {
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
    *(f"model.{name}" for name in FIXED_OF_MODEL | FREE_MODEL_FIELDS),
}  # fmt: skip
"""Fields of a config that cannot change within a run: a folder that holds a run with another value is refused."""

FIXED_OF_REQUEST = {
    "format_version",
    "labels",
    "provenance.run",
    "provenance.step",
    "provenance.source",
    "provenance.source_format",
    "provenance.position_resampling",
    "examples",
    "teacher",
    "segments",
    *(f"config.{name}" for name in FIXED_OF_CONFIG),
}
"""Fields of a request that cannot change within a run."""


@pytest.mark.parametrize(
    ("schema", "one", "other"),
    [
        (TrainConfig, CHANGEABLE_ON_RESUME, FIXED_OF_CONFIG),
        (Request, CHANGEABLE, FIXED_OF_REQUEST),
        (ViTConfig, FREE_MODEL_FIELDS, FIXED_OF_MODEL),
    ],
    ids=["resuming a run", "resuming by run.json", "a model with given weights"],
)
def test_it_is_decided_for_every_field_whether_it_may_be_changed(schema: Any, one: set[str], other: set[str]) -> None:
    """A new field makes this test fail until it is in one of the sets; until then it counts as fixed."""
    assert one | other == set(leaf_fields(schema))
    assert not one & other


def test_a_field_that_is_not_decided_counts_as_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (Request(config=CONFIG.replace(threads=threads)) for threads in (1, 2))
    assert differences(here, there) == []
    monkeypatch.setattr(run, "CHANGEABLE", CHANGEABLE - {"config.threads"})
    assert differences(here, there) == ["threads is 2 there and 1 here"]
