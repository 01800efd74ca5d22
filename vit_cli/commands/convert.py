"""`vit convert`"""

import warnings
from typing import Annotated

from cyclopts import Parameter

from vit_cli import console, conversion_check
from vit_cli.masked import compare_decoders, open_with_decoder
from vit_cli.option_types import AS_RECORDED, OptionalSize, Place, ReadingOptions, Target, WrittenFormat
from vit_core.checkpoints import Checkpoint, save_checkpoint
from vit_core.checkpoints.overwriting import check_outside_runs
from vit_core.checkpoints.saving import express_for
from vit_core.checkpoints.verification import check_not_source
from vit_core.storage import location


def convert(
    source: Place,
    target: Target,
    /,
    *,
    to: WrittenFormat = "vit",
    reading: ReadingOptions = AS_RECORDED,
    image_size: OptionalSize = None,
    patch_size: OptionalSize = None,
    num_classes: int | None = None,
    method: Annotated[str, Parameter(metavar="METHOD")] | None = None,
    dtype: Annotated[str, Parameter(metavar="TYPE")] | None = None,
    allow_lossy: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    decoder: Annotated[bool, Parameter(negative=())] = False,
    check: bool = True,
) -> int:
    """Write a checkpoint in another format, and check that it is the same model.

    SOURCE is a checkpoint file or folder of any format, a training run or a saved step. The new checkpoint is then
    opened, and both run in float64 on random images; the new one also runs in the library that the format belongs to,
    if that is installed. The exit status is 1 if the outputs differ by more than 1e-12, or than 1e-5 if a value was
    computed and rounded to float32.

    TARGET may be missing, empty, or a checkpoint of the same format. To replace anything else, add --overwrite.

    Examples:
        vit convert ViT-B_16.npz b16_384 --image-size 384 --num-classes 10
        vit convert runs/cifar10 hub --to transformers
        vit convert deit_small.pth deit --set heads=6

    Args:
        source: Checkpoint to read.
        target: Folder or file to write.
        to: Format to write.
        reading: How the source is opened.
        image_size: Resample the position embeddings for another image size: 384, or height x width as 384x512.
        patch_size: Resize the patch kernel to another patch size, as in FlexiViT, and the position embeddings to the
            new grid.
        num_classes: Replace the head by a new one for this number of classes; 0 removes it.
        method: Method of resampling the position embeddings, such as bicubic (default: the checkpoint's own).
        dtype: Type to store: bfloat16, float16, float32 or float64 (default: the checkpoint's).
        allow_lossy: Accept a format that has a slightly different activation or epsilon; the outputs change a little.
        overwrite: Replace the contents of TARGET. Weights and configs of another checkpoint in it are removed, other
            files are kept.
        decoder: With --to transformers: write the decoder of a masked autoencoder too, as its ViTMAEForPreTraining;
            otherwise it is left out.
        check: Open the written checkpoint and compare its outputs.
    """
    opened = open_with_decoder(source, reading) if decoder else reading.open_and_report(source)
    check_not_source(target, source, location(opened.origin))
    check_outside_runs(target)
    checkpoint = opened.adapt(
        image_size=image_size, patch_size=patch_size, num_classes=num_classes, position_embedding_method=method
    )
    checkpoint = checkpoint.adapt(dtype=dtype)  # afterwards, so that positions are resampled from the stored values
    if opened.format == "vit":
        checkpoint = _with_source(checkpoint, source.name)
    expressed = express_for(checkpoint, to, allow_lossy, decoder=decoder)
    for note in expressed.notes:
        console.say(note)
    with console.working(f"writing {target}"):
        notes = save_checkpoint(target, expressed.checkpoint, format=to, overwrite=overwrite, decoder=decoder)
    for note in notes:
        console.say(note)
    console.say_wrote(target, contents=to)
    if not check:
        return 0
    with warnings.catch_warnings(action="ignore"):  # they were printed when the source was read
        if decoder:
            return int(not compare_decoders(target, expressed))
        return int(not conversion_check.compare_with_source(checkpoint, target, to, expressed).ok)


def _with_source(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint, with the name of its source in its provenance."""
    provenance = checkpoint.config.provenance.replace(source=name, source_format="vit-parity")
    return checkpoint.with_config(checkpoint.config.replace(provenance=provenance))
