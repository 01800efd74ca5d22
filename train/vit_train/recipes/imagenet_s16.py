"""S/16 on ImageNet-1k for 90 epochs, after "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580, table 1).

Values are those of big_vision's configs/vit_s16_i1k.py. Expected: 76.5 % top-1. The recipe imagenet_s16_300 is its run
of 300 epochs. Mixup draws a weight for each pair of images, not for the whole batch. Prepare the images with
`vit prepare`, or name a folder with train and val.
"""

from vit_core import CheckpointConfig, variant
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.recipes import transfer_imagenet1k
from vit_train.recipes._imagenet import (
    IMAGENET_1K_99,
    LARGE_RUN,
    RESIZE_256,
    TRAIN_1K_99,
    rand_augment_of_big_vision,
    steps_of,
)


def pretrain() -> TrainConfig:
    model = variant(
        "S/16",
        image_size=224,
        num_classes=1000,
        pooling="gap",
        class_token=False,
        position_embedding="sincos2d_big_vision",
        representation=384,
    )
    return TrainConfig(
        model=model,
        data=IMAGENET_1K_99,
        preprocessing=RESIZE_256,
        augmentation=Augmentation(
            crop_area=(0.05, 1.0), flip=0.5, rand_augment=rand_augment_of_big_vision(2, 10.0), mixup=0.2
        ),
        optimizer=Optimizer(
            learning_rate=1e-3, weight_decay=1e-4, decay="independent", moment_dtype="bfloat16", clip_norm=1.0
        ),
        schedule=Schedule(warmup_steps=10_000),
        steps=steps_of(90, TRAIN_1K_99, 1024),
        batch_size=1024,
        **LARGE_RUN,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    """At 384 pixels, as the ViT paper fine-tunes (arXiv:2010.11929, appendix B.1.1)."""
    return transfer_imagenet1k.finetune(init)
