"""L/16 on ImageNet-1k for 200 epochs, after "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377).

It is the recipe of that paper's supervised baseline (its table 11), for a slice of TPUs or a few large GPUs. Expected:
82.6 % top-1, with the moving average of the weights (the paper's table 3). `vit plan imagenet_l16 --topology v5e:16x16`
reports what it needs. With fewer than 16 devices: --mesh.fsdp 1.
"""

from vit_core import variant
from vit_train.config import Augmentation, Mesh, Optimizer, Schedule, TrainConfig
from vit_train.recipes._imagenet import IMAGENET_1K, RAND_M9, RESIZE_256


def pretrain() -> TrainConfig:
    return TrainConfig(
        model=variant("L/16", image_size=224, num_classes=1000, stochastic_depth=0.2),
        data=IMAGENET_1K,
        preprocessing=RESIZE_256,
        augmentation=Augmentation(crop_area=(0.08, 1.0), flip=0.5, rand_augment=RAND_M9, mixup=0.8, cutmix=1.0),
        optimizer=Optimizer(learning_rate=1.6e-3, weight_decay=0.3, beta2=0.95, clip_norm=1.0),
        schedule=Schedule(warmup_steps=6250),  # 20 epochs
        label_smoothing=0.1,
        steps=62_500,  # 200 epochs
        batch_size=4096,
        mesh=Mesh(fsdp=16),
        remat="dots",
        ema=0.9999,
        compute_dtype="bfloat16",
        threads=16,
        log_every=50,
        evaluate_every=3125,
        save_every=1000,
    )
