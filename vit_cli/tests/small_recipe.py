"""A recipe that trains in seconds, for the tests."""

SMALL = """
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig
from vit_core import ViTConfig


def pretrain():
    return TrainConfig(
        model=ViTConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4),
        data=Data(name={folder!r}),
        augmentation=Augmentation(crop_area=(0.5, 1.0), flip=0.5),
        optimizer=Optimizer(learning_rate=3e-3, clip_norm=1.0),
        schedule=Schedule(warmup_steps=2),
        steps=8, batch_size=16, log_every=4, evaluation_batch=8,
    )


def finetune(init):
    return pretrain().replace(model=init.model.replace(image_size=12), preprocessing=init.preprocessing)
"""
"""Its text; `folder` is the folder of images."""
