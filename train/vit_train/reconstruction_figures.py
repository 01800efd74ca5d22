"""The figure of a masked autoencoder's visible patches and predictions, as a PNG file."""

from collections.abc import Sequence

import matplotlib.pyplot as plt

from vit_core.storage import Location
from vit_train.attention_figures import draw_image
from vit_train.figures import save_figure
from vit_train.reconstruction import Reconstruction

ACROSS = 2
"""Images side by side."""
TITLES = ("image", "visible", "completed")


def completed_images(images: Sequence[Reconstruction], path: Location) -> Location:
    """Draws each image three times: the original, with the hidden patches grey, and with the predicted patches."""
    down = -(-len(images) // ACROSS)
    across = min(ACROSS, len(images))
    size = (1.6 * 3 * across + 0.2, 1.6 * down + 0.3)
    figure, panels = plt.subplots(down, 3 * across, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat:
        panel.axis("off")
    for i, image in enumerate(images):
        row, first = i // across, 3 * (i % across)
        for panel, title, pixels_HWC in zip(panels[row, first:], TITLES, image, strict=False):
            draw_image(panel, pixels_HWC)
            if row == 0:
                panel.set_title(title, fontsize=9)
    return save_figure(figure, path)
