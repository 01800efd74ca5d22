"""B/16 on ImageNet-1k for 300 epochs, after the ViT paper (arXiv:2010.11929, appendix B.1, table 3).

The loss (sigmoid) and the bias of the head (-10) are not in the paper; see the recipe vit_imagenet21k. Expected top-1:
74.79 % after these 300 epochs at 224 pixels (issue 62 of google-research/vision_transformer), and 77.91 % after
fine-tuning at 384 (the paper's table 5), which the recipe transfer_imagenet1k does.

Not reproduced: the paper's dropout of 0.1, as in vit_imagenet21k.
"""

from vit_core import variant
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.recipes._imagenet import IMAGENET_1K_99, LARGE_RUN, RESIZE_256, TRAIN_1K_99, steps_of


def pretrain() -> TrainConfig:
    return TrainConfig(
        model=variant("B/16", image_size=224, num_classes=1000, representation=768, head_bias_init=-10.0),
        data=IMAGENET_1K_99,
        preprocessing=RESIZE_256,
        augmentation=Augmentation(crop_area=(0.05, 1.0), flip=0.5),
        optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.3, clip_norm=1.0),
        schedule=Schedule(warmup_steps=10_000),
        loss="sigmoid",
        steps=steps_of(300, TRAIN_1K_99, 4096),
        batch_size=4096,
        **LARGE_RUN,
    )
