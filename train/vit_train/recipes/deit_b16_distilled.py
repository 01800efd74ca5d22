"""B/16 on ImageNet-1k for 300 epochs from a teacher, after DeiT (arXiv:2012.12877, table 9; its section 4).

A distillation token learns the teacher's predictions (hard distillation), the class token the labels; the result is the
mean of both heads. Values are those of table 9 and of main.py of facebookresearch/deit; its run_with_submitit.py
trains on 16 GPUs with 64 images each. Expected: 81.9 % top-1 with DeiT-B as the teacher (table 2), 83.4 % with
RegNetY-16GF (README_deit.md), a convolutional network, which is no teacher here.

Other than there: the cosine begins after the warm-up, where theirs has passed 5 of 300 epochs by then, and the learning
rate changes with each step, where theirs does with each epoch.

Name the teacher: --distillation.teacher CHECKPOINT, of any format.
"""

from vit_core import variant
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Distillation, Optimizer, Schedule, TrainConfig
from vit_train.recipes._imagenet import IMAGENET_1K, LARGE_RUN, META, RAND_M9, TRAIN_1K, steps_of

BATCH = 1024
PEAK = 5e-4 * BATCH / 512


def pretrain() -> TrainConfig:
    return TrainConfig(
        model=variant(
            "B/16",
            image_size=224,
            num_classes=1000,
            distillation="head",
            activation="gelu",
            stochastic_depth=0.1,
        ),
        data=IMAGENET_1K,
        preprocessing=Preprocessing(image_size=224, crop_fraction=224 / 256, **META),
        augmentation=Augmentation(
            crop_area=(0.08, 1.0),
            flip=0.5,
            rand_augment=RAND_M9,
            erasing=0.25,
            erasing_fill="noise",
            repeats=3,
            mixup=0.8,
            cutmix=1.0,
        ),
        optimizer=Optimizer(learning_rate=PEAK, weight_decay=0.05),
        schedule=Schedule(warmup_steps=steps_of(5, TRAIN_1K, BATCH), final=1e-5 / PEAK),
        label_smoothing=0.1,
        distillation=Distillation(teacher="TEACHER", kind="hard", weight=0.5),
        steps=steps_of(300, TRAIN_1K, BATCH),
        batch_size=BATCH,
        **LARGE_RUN,
    )
