"""Recipes: a file each, with `pretrain()`, `finetune(init)` or both, giving a TrainConfig. Copy one and change it."""
