"""Targets of training: the share of each class in an image, smoothed and mixed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_train.config import TrainConfig
from vit_train.data.classes import classes_of


def smooth_targets(labels: Sequence[Any], config: TrainConfig) -> np.ndarray:
    """float32 [B, C]: 1 at the classes of each label (an integer or several), else 0, smoothed as the config says."""
    classes, smoothing = config.model.num_classes, config.label_smoothing
    if config.masked is not None:
        return np.zeros((len(labels), 0), np.float32)
    targets_BC = np.full((len(labels), classes), smoothing / classes, np.float32)
    if len(labels):
        classes_B = [classes_of(label) for label in labels]
        rows_N = np.repeat(np.arange(len(labels)), [len(each) for each in classes_B])
        targets_BC[rows_N, np.concatenate(classes_B)] = 1 - smoothing + smoothing / classes
    return targets_BC


def targets_with_a_share(targets_BC: np.ndarray, partners_BC: np.ndarray, share_B1: np.ndarray) -> np.ndarray:
    """Targets of mixed images with all classes of both, except of an image whose share is 0."""
    return np.maximum(np.where(share_B1 > 0, targets_BC, 0), np.where(share_B1 < 1, partners_BC, 0))
