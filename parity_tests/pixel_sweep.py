"""Image processors of other libraries at small sizes, and the images they are compared on.

`python -m parity_tests.pixel_sweep` prints how far the pixels of transformers' processors are from ours, with either of
their backends. The PIL backend is held to equal pixels by test_pixels_transformers.py. The torchvision backend, which
resizes with other roundings, is only measured.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import transformers as hf
from PIL import Image

from vit_core import ViTConfig
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.transformers.image_processors import FILE, read_preprocessing
from vit_core.preprocess import Preprocessing, normalize, resize_image

IMAGE_SIZES = [
    *((height, 40) for height in range(17, 41)),
    *((40, width) for width in range(17, 40)),
    *((23, width) for width in (23, 24, 25, 31, 57)),
    *((16, 16), (17, 16), (9, 13), (13, 9), (1, 1), (3, 41), (90, 64)),
]
"""(height, width): margins of every remainder by 4 on both sides, for each processor below that crops."""
SIDE = 16
"""Height and width of the images that come out."""
CROPS = (16, 17, 18, 19, 21, 23)
"""Sides that an image is resized to before the crop: margins of 0, 1, 2, 3, 5 and 7 on the shorter side."""


@dataclass(frozen=True)
class Processor:
    """A processor of transformers with one set of options."""

    model: str
    """The model it is the processor of, for people."""
    model_type: str
    kind: str
    """Class without its suffix: "Bit"."""
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.model}-{'-'.join(f'{name}={_short(value)}' for name, value in self.options)}"

    def build(self, backend: str) -> Any:
        """The processor with a backend: "pil" or "torchvision"."""
        name = f"{self.kind}ImageProcessor{'Pil' if backend == 'pil' else ''}"
        return getattr(hf, name)(**dict(self.options))

    def preprocessing(self, side: int = SIDE) -> Preprocessing:
        """What we read from the file that it saves, for a model of images of so many pixels."""
        with TemporaryDirectory() as folder:
            self.build("pil").save_pretrained(folder)
            fields = json.loads((Path(folder) / FILE).read_text())
        return read(fields, self.model_type, side=side)


def _short(value: Any) -> str:
    return "x".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def read(fields: dict[str, Any], model_type: str = "vit", *, channels: int = 3, side: int = SIDE) -> Preprocessing:
    """Preprocessing from the fields of a processor's file; AssertionError, with the notes, where it has none."""
    sizes = {"image_size": side, "patch_size": side // 4, "channels": channels}
    model = ViTConfig(**sizes, width=8, depth=1, heads=2, mlp_dim=8, num_classes=2)
    source = Source(Path("folder"), LazyArrays({}), preprocessor=fields)
    preprocessing, notes = read_preprocessing(source, model, model_type, None)
    assert preprocessing is not None, notes
    assert notes == []
    return preprocessing


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _processors() -> Iterator[Processor]:
    for model, model_type, kind in (("ViT", "vit", "ViT"), ("SigLIP", "siglip_vision_model", "Siglip")):
        for resample in (0, 1, 2, 3):
            yield Processor(model, model_type, kind, (("size", square(SIDE)), ("resample", resample)))
    for whole in CROPS:
        size, crop = ("size", square(whole)), ("crop_size", square(SIDE))
        yield Processor("DeiT", "deit", "DeiT", (size, crop))
        edge = ("size", {"shortest_edge": whole})
        yield Processor("CLIP", "clip_vision_model", "CLIP", (edge, crop))
        yield Processor("DINOv2", "dinov2", "Bit", (edge, crop))
    for resample in (0, 1, 2):
        edge, crop = ("size", {"shortest_edge": 19}), ("crop_size", square(SIDE))
        yield Processor("CLIP", "clip_vision_model", "CLIP", (edge, crop, ("resample", resample)))
        yield Processor("DINOv2", "dinov2", "Bit", (edge, crop, ("resample", resample)))
        yield Processor(
            "DeiT", "deit", "DeiT", (("size", square(23)), ("crop_size", square(SIDE)), ("resample", resample))
        )


PROCESSORS = tuple(_processors())
PUBLISHED = (
    Processor("ViT", "vit", "ViT", (("size", square(224)),)),
    Processor("DeiT", "deit", "DeiT"),
    Processor("BEiT", "beit", "Beit"),
    Processor("CLIP", "clip_vision_model", "CLIP"),
    Processor("SigLIP", "siglip_vision_model", "Siglip"),
    Processor("DINOv2", "dinov2", "Bit", (("size", {"shortest_edge": 256}), ("crop_size", square(224)))),
)
"""As on the hub: 224 pixels."""


def picture(height: int, width: int, channels: int = 3) -> Image.Image:
    """Noise over a gradient, so that every pixel differs from its neighbors and a shift by one shows."""
    slope = np.linspace(0, 128, height)[:, None, None] + np.linspace(0, 64, width)[None, :, None]
    noise = np.random.default_rng(height * 1000 + width).integers(0, 64, (height, width, channels))
    pixels_HWC = (slope + noise).astype(np.uint8)
    return Image.fromarray(pixels_HWC if channels > 1 else pixels_HWC[..., 0])


def ours(image: Image.Image, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """An image as we make it an array: uint8 [H, W, C] after resize and crop, and float32 [H, W, C] normalized."""
    pixels_HWC = resize_image(image, preprocessing)
    return pixels_HWC, normalize(pixels_HWC, preprocessing)


def levels(normalized_HWC: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A normalized array in levels of 0 to 255 again, float64."""
    mean, std = np.float64(preprocessing.mean), np.float64(preprocessing.std)
    return (normalized_HWC.astype(np.float64) * std + mean) * 255


def distances(processor: Processor, backend: str) -> tuple[int, float, int]:
    """Over the sweep: number of images with other pixels, mean and largest distance in levels of 255."""
    preprocessing, theirs = processor.preprocessing(), processor.build(backend)
    apart_N = []
    for height, width in IMAGE_SIZES:
        image = picture(height, width)
        normalized_CHW = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
        found_HWC = np.round(levels(normalized_CHW.transpose(1, 2, 0), preprocessing))
        apart_N.append(np.abs(found_HWC - ours(image, preprocessing)[0]))
    return sum(bool(apart.any()) for apart in apart_N), float(np.mean(apart_N)), int(np.max(apart_N))


def main() -> None:
    """Prints the table."""
    print(f"{len(IMAGE_SIZES)} image sizes; distances in levels of 255")
    print("| processor | PIL: other images, largest | torchvision: other images, mean, largest |\n|---|---|---|")
    for processor in PROCESSORS:
        other, _, largest = distances(processor, "pil")
        other_there, mean, largest_there = distances(processor, "torchvision")
        print(f"| {processor} | {other}, {largest} | {other_there}, {mean:.3f}, {largest_there} |")


if __name__ == "__main__":
    main()
