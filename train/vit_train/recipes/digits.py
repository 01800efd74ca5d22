"""Handwritten digits (8 x 8 pixels, embedded): minutes on a laptop. The recipe of `vit demo`."""

from vit_core import CheckpointConfig, ViTConfig
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig


def pretrain() -> TrainConfig:
    model = ViTConfig(
        image_size=16,
        patch_size=4,
        channels=1,
        width=96,
        depth=4,
        heads=3,
        mlp_dim=384,
        num_classes=10,
        pooling="gap",
        class_token=False,
        stochastic_depth=0.05,
    )
    return TrainConfig(
        model=model,
        data=Data(name="digits"),
        augmentation=Augmentation(rotation=8, shift=0.06),
        optimizer=Optimizer(learning_rate=1.5e-3, weight_decay=0.3, epsilon=1e-6, clip_norm=1.0),
        schedule=Schedule(warmup_steps=100),
        label_smoothing=0.1,
        steps=1400,
        batch_size=64,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    recipe = pretrain()
    return recipe.replace(
        model=init.model.replace(image_size=24, stochastic_depth=0.05),
        preprocessing=init.preprocessing,
        optimizer=recipe.optimizer.replace(learning_rate=6e-4),
        schedule=Schedule(warmup_steps=40),
        steps=400,
    )
