"""The description of an exported program's inputs and outputs, which is written into the program or next to it."""

import json
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from vit_core.checkpoints import Checkpoint, Provenance
from vit_core.config import ViTConfig
from vit_core.preprocess import DecodedImage, Preprocessing, normalize, pixels_of, resize_image
from vit_core.schema import Flag, Positive, Schema
from vit_core.traced_pixels import why_not_traceable

Target = Literal["onnx", "torch-export", "jax-export", "stablehlo"]
Input = Literal["image", "pixels", "normalised"]
"""Decoded images of any size, resized by the program; images of the model's size; those, normalized."""
Precision = Literal["float32", "float16", "int8"]
"""Type of the weights and the computation; int8: weights and the inputs of matrix products are rounded to 8 bits."""
SUFFIXES: dict[str, Target] = {
    ".onnx": "onnx", ".pt2": "torch-export", ".jaxexport": "jax-export", ".mlirbc": "stablehlo"
}  # fmt: skip
"""Extension of a file -> its target."""
DESCRIPTION = "deployment.json"
"""Name of the description inside a torch.export file."""


class Deployment(Schema):
    """A checkpoint as an exported program: its input, its output, and all that a user of the program has to know."""

    format_version: Literal[1] = 1
    target: Target
    input: Input
    """"image": uint8 [batch, height, width, C] of any height and width, decoded but not resized. "pixels": the same, of
    the model's size. "normalised": float32, pixels that were normalized: [batch, C, height, width] for onnx and
    torch-export, [batch, height, width, C] for the others."""
    batch: Positive | None = None
    """Number of images; none: any."""
    any_size: Flag = False
    """Whether the model runs at any multiples of its patch, two or more, with its positions resampled in the
    program."""
    precision: Precision = "float32"
    """Type of the weights and the computation; the output is float32."""
    model: ViTConfig
    preprocessing: Preprocessing
    """How images become input; what `input` leaves out, the program does."""
    labels: tuple[str, ...] | None = None
    """Name of each output."""
    probabilities: Literal["softmax", "sigmoid"] | None = None
    """What makes probabilities of the logits: softmax, if an image has one class; sigmoid, if each class is decided by
    itself. None: the outputs are features."""
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _expressible(self) -> Self:
        if self.input == "image" and self.any_size:
            raise ValueError("input: 'image' is resized to the model's size; use 'pixels' or 'normalised' for any size")
        if self.input == "image" and (reason := why_not_traceable(self.preprocessing)):
            raise ValueError(f"input: 'image' cannot be resized in the program ({reason}); use 'pixels'")
        if self.precision == "int8" and self.target != "onnx":
            raise ValueError(f"precision: int8 is made by onnxruntime's quantizer; {self.target} has none, use onnx")
        if self.target == "stablehlo" and (self.batch is None or self.any_size or self.input == "image"):
            raise ValueError(
                "stablehlo: a dynamic shape (tensor<?x...>, stablehlo.get_dimension_size) is compiled only by loaders "
                "that refine it to a fixed one; use --batch N and a fixed size, or --to jax-export"
            )
        return self

    @classmethod
    def of(cls, checkpoint: Checkpoint, preprocessing: Preprocessing, **fields: object) -> Self:
        """The deployment of a checkpoint; fields: `target`, `input` and what else is chosen."""
        config = checkpoint.config
        return cls(
            model=config.model,
            preprocessing=preprocessing,
            labels=config.labels,
            probabilities=(config.probabilities or "softmax") if config.model.num_classes else None,
            provenance=config.provenance,
            **fields,
        )

    @property
    def framework(self) -> Literal["torch", "jax"]:
        """The twin that is exported."""
        return "torch" if self.target in ("onnx", "torch-export") else "jax"

    @property
    def channels_first(self) -> bool:
        """Whether channels come before height and width in the input."""
        return self.input == "normalised" and self.framework == "torch"

    @property
    def input_type(self) -> np.dtype[np.generic]:
        """Type of the input: that of the pixels, or float32."""
        return np.dtype(np.float32) if self.input == "normalised" else self.preprocessing.pixel_type

    @property
    def output(self) -> str:
        """Name of the output."""
        return "logits" if self.model.num_classes else "features"

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """Shape of the input, with names for axes of any length."""
        size = ("height", "width") if self.input == "image" or self.any_size else self.model.image_size
        channels = self.model.channels
        shape = (channels, *size) if self.channels_first else (*size, channels)
        return (self.batch or "batch", *shape)

    def input_of(self, image: DecodedImage) -> np.ndarray:
        """The program's input for a decoded image, without the batch axis."""
        if self.input == "image":
            return pixels_of(image)
        return self.input_of_pixels(resize_image(image, self.preprocessing))

    def input_of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The program's input for pixels [..., H, W, C] of the model's size."""
        if self.input != "normalised":
            return pixels
        normalized = normalize(pixels, self.preprocessing)
        return np.moveaxis(normalized, -1, -3) if self.channels_first else normalized

    def to_json(self) -> str:
        """The description as JSON, with the type and shape of input and output."""
        program = {
            "input": {"name": "images", "type": str(self.input_type), "shape": self.input_shape},
            "output": {"name": self.output, "type": "float32"},
        }
        return json.dumps({"program": program, **self.model_dump(mode="json")}, indent=2)
