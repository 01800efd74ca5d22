"""B/16 on ImageNet-21k for 300 epochs, after "How to train your ViT?" (arXiv:2106.10270, section 3 and figure 4).

Augmentation is the paper's "light2" (RandAugment of 2 operations at magnitude 10, Mixup 0.2), which big_vision's
configs/vit_i21k.py takes for B/16; the paper found no use for dropout and stochastic depth on ImageNet-21k. The weight
decay of 0.1 in the paper counts times its learning rate of 0.001. Expected: 85.49 % top-1 on ImageNet-1k after
fine-tuning at 384 pixels (transfer_imagenet1k), for the published checkpoint, which has "medium1" (RandAugment 15).

Other than there: Mixup draws a weight for each pair of images, not for the whole batch.
"""

from vit_core import variant
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.recipes._imagenet import (
    IMAGENET_21K,
    LARGE_RUN,
    RESIZE_256,
    TRAIN_21K,
    rand_augment_of_big_vision,
    steps_of,
)


def pretrain() -> TrainConfig:
    return TrainConfig(
        model=variant("B/16", image_size=224, num_classes=21_843, head_bias_init=-10.0),
        data=IMAGENET_21K,
        preprocessing=RESIZE_256,
        augmentation=Augmentation(
            crop_area=(0.05, 1.0), flip=0.5, rand_augment=rand_augment_of_big_vision(2, 10.0), mixup=0.2
        ),
        optimizer=Optimizer(
            learning_rate=1e-3, weight_decay=1e-4, decay="independent", moment_dtype="bfloat16", clip_norm=1.0
        ),
        schedule=Schedule(warmup_steps=10_000),
        loss="sigmoid",
        steps=steps_of(300, TRAIN_21K, 4096),
        batch_size=4096,
        **LARGE_RUN,
    )
