"""B/16 on ImageNet-1k for 800 epochs at 192 pixels, then 20 at 224, after DeiT III (arXiv:2204.07118, table 1).

Values are those of the commands in README_revenge.md of facebookresearch/deit; the recipe deit3_s16 says what differs.
Expected: 83.8 % top-1 after fine-tuning at 224 pixels (its table of models).
"""

from vit_core import CheckpointConfig, variant
from vit_train.config import TrainConfig
from vit_train.recipes import deit3_s16


def pretrain() -> TrainConfig:
    small = deit3_s16.pretrain()
    shape = variant("B/16", image_size=192, num_classes=1000)
    sizes = {name: getattr(shape, name) for name in ("image_size", "width", "depth", "heads", "mlp_dim")}
    return small.replace(
        model=small.model.replace(**sizes, stochastic_depth=0.2),
        optimizer=small.optimizer.replace(learning_rate=3e-3),
        schedule=small.schedule.replace(final=1e-5 / 3e-3),
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    """At 224 pixels for 20 epochs: README_revenge.md, "finetuning for ViT-B, L and H at resolution 224x224"."""
    return deit3_s16.finetune_at(init, 224, stochastic_depth=0.2)
