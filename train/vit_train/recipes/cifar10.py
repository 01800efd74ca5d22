"""CIFAR-10 from scratch at 32 pixels with patches of 4; then at 48.

Small data need strong augmentation: crops, flips, mixup, CutMix, stochastic depth, and an average of the weights.
"""

from vit_core import CheckpointConfig, ViTConfig
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig


def pretrain() -> TrainConfig:
    model = ViTConfig(
        image_size=32,
        patch_size=4,
        width=192,
        depth=9,
        heads=3,
        mlp_dim=768,
        num_classes=10,
        pooling="gap",
        class_token=False,
        stochastic_depth=0.1,
    )
    return TrainConfig(
        model=model,
        data=Data(name="cifar10"),
        augmentation=Augmentation(crop_area=(0.4, 1.0), flip=0.5, mixup=0.2, cutmix=1.0),
        optimizer=Optimizer(learning_rate=2e-3, weight_decay=0.1, beta2=0.99, epsilon=1e-6, clip_norm=1.0),
        schedule=Schedule(warmup_steps=1000),
        label_smoothing=0.1,
        steps=39_000,  # 200 epochs
        batch_size=256,
        ema=0.999,
        log_every=50,
        evaluate_every=1950,
        save_every=1950,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    return TrainConfig(
        model=init.model.replace(image_size=48, stochastic_depth=0.1),
        data=Data(name="cifar10"),
        preprocessing=init.preprocessing,
        augmentation=Augmentation(crop_area=(0.6, 1.0), flip=0.5),
        optimizer=Optimizer(learning_rate=2e-4, weight_decay=0.1, layer_decay=0.8, epsilon=1e-6, clip_norm=1.0),
        schedule=Schedule(warmup_steps=100),
        label_smoothing=0.1,
        steps=1950,  # 10 epochs
        batch_size=256,
        evaluate_every=195,
        save_every=195,
    )
