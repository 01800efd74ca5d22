"""The registry of checkpoint formats: one line for each."""

from vit_core.checkpoints.formats import (
    big_vision,
    bonsai,
    jimm,
    lucidrains,
    meta,
    mmpretrain,
    pytorch_ports,
    torchvision,
    vit5,
)
from vit_core.checkpoints.formats.google import lineage as google
from vit_core.checkpoints.formats.interface import Format, Writer
from vit_core.checkpoints.formats.keras_hub import lineage as keras_hub
from vit_core.checkpoints.formats.open_clip import lineage as open_clip
from vit_core.checkpoints.formats.timm import lineage as timm
from vit_core.checkpoints.formats.transformers import lineage as transformers
from vit_core.errors import unknown_name

_FOREIGN = (
    transformers.FORMAT,  # ViT, DeiT, ViTMAE, Dinov2, SigLIP and CLIP vision towers of Hugging Face
    vit5.FORMAT,  # ViT-5 as its authors released it
    meta.FORMAT,  # DINO, DINOv2, MAE and DeiT as Meta released them
    timm.FORMAT,  # state dicts of timm's vit_* models, and the folders that its hub creates
    torchvision.FORMAT,  # state dicts of vit_b_16 ... vit_h_14
    open_clip.FORMAT,  # image towers of open_clip and of OpenAI's CLIP
    lucidrains.FORMAT,  # state dicts of lucidrains/vit-pytorch
    google.FORMAT,  # google-research/vision_transformer .npz
    big_vision.FORMAT,  # google-research/big_vision .npz
    bonsai.FORMAT,  # NNX states of jax-ml/bonsai's ViT
    jimm.FORMAT,  # NNX states of jimm's ViT, CLIP and SigLIP
    mmpretrain.FORMAT,  # checkpoints of OpenMMLab's mmpretrain and mmcls
    pytorch_ports.JEONSWORLD,  # state dicts of jeonsworld/ViT-pytorch
    pytorch_ports.LUKEMELAS,  # state dicts of pytorch-pretrained-vit
    keras_hub.FORMAT,  # presets, archives and weights of keras_hub's models
)
FOREIGN_FORMATS: dict[str, Format] = {format.name: format for format in _FOREIGN}
"""Name -> format, in the order in which `recognizes` is called."""
FORMATS = ("vit", *FOREIGN_FORMATS)
"""Names of the formats that are read. "vit" is this project's own: checkpoint folder, training run or saved step."""
WRITERS: dict[str, Writer] = {format.name: format.writer for format in _FOREIGN if format.writer}
"""The foreign formats that are written."""
MASKED_WRITERS: dict[str, Writer] = {format.name: format.masked_writer for format in _FOREIGN if format.masked_writer}
"""The formats that can also store the decoder of a masked autoencoder."""
TARGETS = ("vit", *WRITERS)
"""Names of the formats that are written."""


def foreign_format(name: str) -> Format:
    """The format of a name. Raises InputError, with the nearest name, for an unknown one."""
    if name not in FOREIGN_FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FOREIGN_FORMATS[name]
