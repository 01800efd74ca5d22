"""B/16 on ImageNet-21k for 240 epochs, then ImageNet-1k for 50, after DeiT III (arXiv:2204.07118, table 1).

Values are those of the commands in README_revenge.md of facebookresearch/deit, "Training on ImageNet-21k": LAMB,
CutMix, 3-Augment, the simple random crop, label smoothing 0.1. Expected: 85.7 % top-1 on ImageNet-1k at 224 pixels
after the stage `finetune` (its table of models). Stochastic depth and LAMB differ as in the recipe deit3_s16.
"""

from vit_core import CheckpointConfig
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.recipes import deit3_b16
from vit_train.recipes._imagenet import IMAGENET_1K, IMAGENET_21K, TRAIN_1K, TRAIN_21K, steps_of

AUGMENTATION = Augmentation(
    random_crop=True,
    crop_padding=4,
    flip=0.5,
    three_augment=True,
    color_jitter=(0.3, 0.3, 0.3, 0.0),
    cutmix=1.0,
)


def pretrain() -> TrainConfig:
    smaller = deit3_b16.pretrain()
    return smaller.replace(
        model=smaller.model.replace(image_size=224, num_classes=21_843, stochastic_depth=0.1),
        data=IMAGENET_21K,
        augmentation=AUGMENTATION,
        optimizer=Optimizer(name="lamb", learning_rate=1e-3, weight_decay=0.02),
        schedule=Schedule(warmup_steps=steps_of(5, TRAIN_21K, smaller.batch_size), final=1e-5 / 1e-3),
        loss="softmax",
        label_smoothing=0.1,
        steps=steps_of(240, TRAIN_21K, smaller.batch_size),
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    """On ImageNet-1k for 50 epochs: README_revenge.md, "finetuning on ImageNet-1k"."""
    begun = pretrain()
    return begun.replace(
        model=init.model.replace(stochastic_depth=0.15),
        data=IMAGENET_1K,
        preprocessing=init.preprocessing,
        optimizer=begun.optimizer.replace(learning_rate=3e-4),
        schedule=Schedule(warmup_steps=steps_of(5, TRAIN_1K, begun.batch_size), final=1e-5 / 3e-4),
        steps=steps_of(50, TRAIN_1K, begun.batch_size),
    )
