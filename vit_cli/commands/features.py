"""`vit features`"""

from functools import partial
from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli.option_types import AS_RECORDED, IN_BATCHES, ComputingOptions, Place, ReadingOptions, Target, at_least
from vit_cli.requirements import require
from vit_core.features import Pool
from vit_core.field_text import parse_preprocessing


def features(
    checkpoint: Place,
    images: Annotated[tuple[str, ...], Parameter(metavar="IMAGE")] = (),
    /,
    *,
    out: Annotated[Target, Parameter(metavar="FILE")],
    stdin: Annotated[bool, Parameter(negative=())] = False,
    layer: int = -1,
    pool: Pool | None = None,
    norm: Annotated[bool, Parameter(negative=())] = False,
    label_column: Annotated[str | None, Parameter(name="--data.label-column", metavar="NAME")] = None,
    computing: ComputingOptions = IN_BATCHES,
    compute_dtype: Literal["float32", "float64", "bfloat16"] = "float32",
    reading: ReadingOptions = AS_RECORDED,
) -> int:
    """Write the features of images: the tokens after a block of the model.

    They equal those of timm's forward_intermediates. Rows are written as they are computed, so memory does not grow
    with the number of images; the file appears when it is complete. An interrupted command leaves no file, and the next
    one starts from the beginning, because images, weights and options may have changed. For very many images, write
    several files with a part of the images in each. For an array (.npy, which can be opened as a memory map, or
    .safetensors), a table of the same name (.csv) gives the path and the label of each row's image; a parquet file has
    them as columns. The label, which `vit probe` uses, is that of a table, or the name of the image's folder directly
    below the given folder.

    Examples:
        vit features ViT-B_16.npz ./photos/train --out train.npy
        vit features runs/folder ./photos --layer 5 --pool tokens --out all.npy

    Args:
        checkpoint: Checkpoint of any format, training run or saved step.
        images: Files, folders (with all subfolders), patterns such as "photos/*.jpg", and tables (.csv, .tsv, .jsonl)
            with a column of paths, relative to their folder.
        out: File to write, which ends in .npy, .safetensors or .parquet.
        stdin: Read the paths of images from standard input, one in each line; - is short for it.
        layer: Block after which the tokens are taken, from 0; -1 is the last.
        pool: The class token, the mean of the patch tokens (gap), or all tokens: class and register tokens first.
            Default: the class token if there is one, otherwise gap.
        norm: Apply the model's last LayerNorm to the tokens first.
        label_column: Column of the labels in the tables. Default: label, class, category or a similar name.
        computing: How images pass through the model.
        compute_dtype: Type of the weights and the computation. Features are stored in float32, or in float64.
        reading: How the checkpoint is opened.
    """
    from vit_cli.console import say, say_wrote
    from vit_cli.inference import Extraction, each_image, fitting_batch, import_twin, warnings_said
    from vit_cli.named_images import named_images, text_of
    from vit_core.feature_files import check_target, feature_file, table_beside

    at_least(1, batch_size=computing.batch_size, threads=computing.threads)
    check_target(out)
    if out.suffix == ".parquet":
        require("parquet", "pyarrow")
    twin, named = import_twin(computing.framework, compute_dtype), named_images(images, stdin, label_column)
    with warnings_said():
        extraction = Extraction.of(
            twin,
            reading.open_and_report(checkpoint).adapt(image_size=computing.image_size),
            layer=layer,
            pool=pool,
            norm=norm,
            dtype=compute_dtype,
            preprocessing=parse_preprocessing(computing.preprocessing),
        )
    size = fitting_batch(named, computing.batch_size)
    try:
        with feature_file(out, extraction.shape, "float64" if compute_dtype == "float64" else "float32") as add:
            used = each_image(
                f"features ({computing.framework})",
                named.paths,
                named.count,
                partial(extraction.stream, batch_size=size, threads=computing.threads),
                lambda path, values: add(text_of(path), named.label_of(path), values),
                unreadable=computing.unreadable,
                batch_size=computing.batch_size,
                hardware=extraction.function.hardware,
            )
    except KeyboardInterrupt:
        say(f"{out}: not written; the next command starts again (for many images, write several files)")
        raise
    shape = " x ".join(map(str, (used, *extraction.shape)))
    say_wrote(out, contents=shape if out.suffix == ".parquet" else f"{shape}, images in {table_beside(out)}")
    return 0
