"""Figures of a model's attention, as PNG files. The values are computed by vit_core.attention_maps."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from vit_core import attention_maps
from vit_core.config import ViTConfig
from vit_core.storage import Location
from vit_train.figures import save_figure

MOST_HEADS, MOST_LAYERS = 16, 24
"""Largest number of columns and rows in the figure of all heads; of a larger model, evenly spaced ones are drawn."""


def query_token(model: ViTConfig) -> tuple[int | None, str]:
    """The token whose attention is drawn, and its name: the class token, or the mean over all patches."""
    return (0, "the class token") if model.class_token else (None, "a patch on average")


def attention_by_head(
    model: ViTConfig, pixels_HWC: np.ndarray, weights_LTNN: Sequence[np.ndarray], path: Location
) -> Location:
    """Draws the attention of the class token (without one: the mean over all patches) to the patches of an image, with
    a row for each layer and a column for each head, each map on its own scale; the image is left of the first row."""
    layers = _spread(len(weights_LTNN), MOST_LAYERS)
    heads = _spread(len(weights_LTNN[0]), MOST_HEADS)
    query, name = query_token(model)
    size = (1.1 * (len(heads) + 1) + 0.6, 1.1 * len(layers) + 0.6)
    figure, panels = plt.subplots(len(layers), len(heads) + 1, figsize=size, squeeze=False, layout="constrained")
    for row, layer in zip(panels, layers, strict=True):
        row[0].axis("off")
        row[1].set_ylabel(f"layer {layer + 1}", fontsize=8)
        for panel, head in zip(row[1:], heads, strict=True):
            weights_hw = attention_maps.attended_patches(
                weights_LTNN[layer][head], model.grid, model.prefix_tokens, query
            )
            panel.imshow(weights_hw, cmap="magma", vmin=0)
            panel.set(xticks=[], yticks=[])
    for panel, head in zip(panels[0, 1:], heads, strict=True):
        panel.set_title(f"head {head + 1}", fontsize=8)
    draw_image(panels[0, 0], pixels_HWC)
    figure.suptitle(f"attention of {name}", fontsize=10)
    return save_figure(figure, path)


def attention_rollout(
    model: ViTConfig, pixels_HWC: np.ndarray, weights_LTNN: Sequence[np.ndarray], path: Location
) -> Location:
    """Draws an image, its attention rollout, and the product of both (figure 6 of arXiv:2010.11929)."""
    query, name = query_token(model)
    rolled_hw = attention_maps.attended_patches(
        attention_maps.rollout(weights_LTNN), model.grid, model.prefix_tokens, query
    )
    light_hw = rolled_hw / rolled_hw.max()
    light_HW = np.kron(light_hw, np.ones(model.patch_size))
    figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.2), layout="constrained")
    draw_image(panels[0], pixels_HWC)
    map_ = panels[1].imshow(rolled_hw, cmap="magma", vmin=0)
    figure.colorbar(map_, ax=panels[1], shrink=0.8)
    draw_image(panels[2], (pixels_HWC / np.iinfo(pixels_HWC.dtype).max) * light_HW[..., None])
    for panel, title in zip(panels, ("image", f"rollout of {name}", "image times rollout"), strict=True):
        panel.set_title(title, fontsize=9)
        panel.axis("off")
    return save_figure(figure, path)


def attention_distance(distances_LT: np.ndarray, images: int, path: Location) -> Location:
    """Draws the mean attention distance of every head by layer, in pixels, and the mean over the heads."""
    figure, panel = plt.subplots(figsize=(5.6, 3.6), layout="tight")
    layers = np.arange(1, len(distances_LT) + 1)
    panel.plot(np.repeat(layers, distances_LT.shape[1]), distances_LT.ravel(), "o", markersize=4, alpha=0.7)
    panel.plot(layers, distances_LT.mean(axis=1), "_-", color="C1", linewidth=1, label="mean over heads")
    top = 1.08 * float(distances_LT.max()) or 1.0  # matplotlib's own limit cuts the highest point
    panel.set(xlabel="layer", ylabel="mean attention distance (pixels)", ylim=(0, top), xticks=layers)
    panel.set_title(f"one point for each head; mean over {images} image{'s' if images > 1 else ''}", fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    return save_figure(figure, path)


def register_attention(model: ViTConfig, weights_LTNN: Sequence[np.ndarray], path: Location) -> Location:
    """Draws the attention of each register in the last layer (mean over heads), and by layer the share of all tokens'
    attention to the registers, to the other tokens before the patches, and to the patches."""
    before = model.prefix_tokens - model.registers
    mean_LNN = np.stack([weights_TNN.mean(axis=0) for weights_TNN in weights_LTNN])
    figure = plt.figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    columns = min(model.registers, 4)
    panels = left.subplots(-(-model.registers // columns), columns, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for i, panel in zip(range(model.registers), panels.flat, strict=False):
        weights_hw = attention_maps.attended_patches(mean_LNN[-1], model.grid, model.prefix_tokens, before + i)
        panel.imshow(weights_hw, cmap="magma", vmin=0)
        panel.set_title(f"register {i + 1}", fontsize=8)
    shares = {
        "registers": mean_LNN[..., before : model.prefix_tokens],
        "other tokens before the patches": mean_LNN[..., :before],
        "patches": mean_LNN[..., model.prefix_tokens :],
    }
    axis, layers = right.subplots(), np.arange(1, len(mean_LNN) + 1)
    for name, part_LNM in shares.items():
        if part_LNM.shape[-1]:
            axis.plot(layers, part_LNM.sum(axis=-1).mean(axis=-1), marker="o", markersize=3, label=name)
    axis.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1), xticks=layers)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return save_figure(figure, path)


def draw_image(panel: plt.Axes, image_HWC: np.ndarray) -> None:
    """Draws an image with any number of channels: 1 or 3 as they are, otherwise their mean."""
    if np.issubdtype(image_HWC.dtype, np.integer):
        image_HWC = image_HWC / np.iinfo(image_HWC.dtype).max
    shown = image_HWC if image_HWC.shape[-1] == 3 else image_HWC.mean(axis=-1)
    panel.imshow(shown, cmap="gray", vmin=0, vmax=1)


def _spread(count: int, most: int) -> list[int]:
    """Numbers from 0 to count - 1: all, or `most` of them, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
