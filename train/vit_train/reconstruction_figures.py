"""The figure of a masked autoencoder's visible patches and predictions, as a PNG file."""

from collections.abc import Sequence

import matplotlib.pyplot as plt

from vit_core.storage import Location
from vit_train.attention_figures import draw_image
from vit_train.figures import save_figure
from vit_train.reconstruction import Reconstruction

ACROSS = 2
"""Images side by side."""
TITLES = {
    "original_HWC": "image",
    "visible_HWC": "visible",
    "completed_HWC": "completed",
    "means_HWC": "true mean only",
}
"""Field of a reconstruction -> its title, in the order of the columns."""
COMPLETED_BY_MORE = "completed, with true\nmean and deviation"
"""Title of the images of a run that predicts normalized patches."""


def titles_of(image: Reconstruction) -> dict[str, str]:
    """The fields of a reconstruction that are drawn, with their titles."""
    if image.means_HWC is None:
        return {field: title for field, title in TITLES.items() if field != "means_HWC"}
    return {**TITLES, "completed_HWC": COMPLETED_BY_MORE}


def completed_images(images: Sequence[Reconstruction], path: Location) -> Location:
    """Draws each image several times: the original, with the hidden patches gray, and with the predicted patches; for a
    run that predicts normalized patches, also with the true mean of each hidden patch alone, for comparison."""
    down = -(-len(images) // ACROSS)
    across, titles = min(ACROSS, len(images)), titles_of(images[0])
    wide = len(titles)
    size = (1.6 * wide * across + 0.2, 1.6 * down + 0.4)
    figure, panels = plt.subplots(down, wide * across, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat:
        panel.axis("off")
    for i, image in enumerate(images):
        row, first = i // across, wide * (i % across)
        for panel, (field, title) in zip(panels[row, first:], titles.items(), strict=False):
            draw_image(panel, getattr(image, field))
            if row == 0:
                panel.set_title(title, fontsize=9)
    return save_figure(figure, path)
