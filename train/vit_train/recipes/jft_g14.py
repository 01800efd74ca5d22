"""G/14 at 224 pixels, after "Scaling Vision Transformers" (arXiv:2106.04560, section 3), at its study's batch of 4096.

The paper trains on JFT-3B, which is not public: name your own set with --data.name, and the number of its classes with
--model.num-classes. The paper's weight decay of 3.0 on the head alone is left out. The two billion parameters, with
Adafactor's momentum in bfloat16, take 12 GB: `vit plan jft_g14 --topology v5e:16x16` reports what is on each device.
"""

from vit_core import variant
from vit_train.config import Augmentation, Data, Mesh, Optimizer, Schedule, TrainConfig


def pretrain() -> TrainConfig:
    model = variant("G/14", image_size=224, num_classes=30_000, pooling="map", class_token=False, head_bias_init=-10.0)
    return TrainConfig(
        model=model,
        data=Data(name="jft"),
        augmentation=Augmentation(crop_area=(0.05, 1.0), flip=0.5),
        optimizer=Optimizer(
            name="adafactor", learning_rate=8e-4, weight_decay=0.03, moment_dtype="bfloat16", clip_norm=1.0
        ),
        schedule=Schedule(name="rsqrt", warmup_steps=10_000, cooldown_steps=50_000),
        loss="sigmoid",
        steps=1_000_000,
        batch_size=4096,
        mesh=Mesh(fsdp=16),
        remat="full",
        compute_dtype="bfloat16",
        threads=16,
        log_every=50,
        evaluate_every=10_000,
        save_every=2000,
    )
