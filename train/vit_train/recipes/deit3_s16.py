"""S/16 on ImageNet-1k for 800 epochs at 224 pixels, after DeiT III (arXiv:2204.07118, table 1, column "Ours").

Values are those of the command in README_revenge.md of facebookresearch/deit: LayerScale, 3-Augment, binary cross
entropy, LAMB, repeated augmentation. Expected: 81.4 % top-1 at 224 pixels (its table of models), and 83.4 % after
fine-tuning at 384, which the stage `finetune` does.

Other than there: stochastic depth grows from block to block up to the given rate, where DeiT III has this rate in all
blocks; LAMB adapts every tensor, where apex's adapts those with weight decay; the loss is the sum over classes, where
theirs is the mean, which changes nothing but clipping (apex clips at norm 1), so gradients are not clipped here.
"""

from vit_core import CheckpointConfig, variant
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.recipes._imagenet import IMAGENET_1K, LARGE_RUN, META, RAND_M9, TRAIN_1K, steps_of

BATCH = 2048


def pretrain() -> TrainConfig:
    return TrainConfig(
        model=variant(
            "S/16",
            image_size=224,
            num_classes=1000,
            class_token_position=False,
            activation="gelu",
            layer_scale=1e-4,
            stochastic_depth=0.05,
        ),
        data=IMAGENET_1K,
        preprocessing=Preprocessing(image_size=224, **META),
        augmentation=Augmentation(
            crop_area=(0.08, 1.0),
            flip=0.5,
            three_augment=True,
            color_jitter=(0.3, 0.3, 0.3, 0.0),
            repeats=3,
            mixup=0.8,
            cutmix=1.0,
            mixed_targets="all",
        ),
        optimizer=Optimizer(name="lamb", learning_rate=4e-3, weight_decay=0.05),
        schedule=Schedule(warmup_steps=steps_of(5, TRAIN_1K, BATCH), final=1e-5 / 4e-3),
        loss="sigmoid",
        steps=steps_of(800, TRAIN_1K, BATCH),
        batch_size=BATCH,
        **LARGE_RUN,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    """At 384 pixels for 20 epochs: README_revenge.md, "finetuning for ViT-S, B and L at resolution 384x384"."""
    return finetune_at(init, 384, stochastic_depth=0.0)


def finetune_at(init: CheckpointConfig, image_size: int, stochastic_depth: float) -> TrainConfig:
    """AdamW for 20 epochs at another resolution, with RandAugment in place of 3-Augment."""
    return TrainConfig(
        model=init.model.replace(image_size=image_size, stochastic_depth=stochastic_depth),
        data=IMAGENET_1K,
        preprocessing=init.preprocessing,
        augmentation=Augmentation(crop_area=(0.08, 1.0), flip=0.5, rand_augment=RAND_M9, mixup=0.8, cutmix=1.0),
        optimizer=Optimizer(learning_rate=1e-5, weight_decay=0.1),
        schedule=Schedule(warmup_steps=steps_of(5, TRAIN_1K, 512), final=1.0),  # the least rate there is 1e-5 too
        label_smoothing=0.1,
        steps=steps_of(20, TRAIN_1K, 512),
        batch_size=512,
        **LARGE_RUN,
    )
