"""`vit probe`"""

from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli.evaluation_data import DATA_OF_RUN, DataOrRunOptions, data_of_run
from vit_cli.option_types import (
    AS_RECORDED,
    IN_BATCHES,
    ComputingOptions,
    OptionalPlace,
    Place,
    ReadingOptions,
    at_least,
)
from vit_cli.requirements import require
from vit_core.errors import InputError


def probe(
    source: Place,
    test: OptionalPlace = None,
    /,
    *,
    data: DataOrRunOptions = DATA_OF_RUN,
    held_out: float = 0.2,
    split_seed: int = 0,
    neighbours: int = 20,
    c: float = 1.0,
    max_steps: int = 1000,
    shots: Annotated[tuple[int, ...], Parameter(metavar="NUMBER")] = (),
    layer: int = -1,
    pool: Literal["cls", "gap"] | None = None,
    norm: Annotated[bool, Parameter(negative=())] = False,
    computing: ComputingOptions = IN_BATCHES,
    compute_dtype: Literal["float32", "float64", "bfloat16"] = "float32",
    reading: ReadingOptions = AS_RECORDED,
) -> int:
    """Measure how well a model's features separate the classes of images.

    Classifiers of scikit-learn are fitted to the features of the training images: the nearest neighbours by cosine, and
    a logistic regression on standardized features (the linear probe); with --shots also a ridge regression on a few
    images of each class (big_vision's few-shot probe). The table shows their accuracy on the test
    images with its 95 % interval. The model itself is not trained.

    Examples:
        vit probe train.npy test.npy
        vit probe ViT-B_16.npz --data ./photos
        vit probe runs/photos
        vit probe train.npy test.npy --shots 1 --shots 10

    Args:
        source: File of features, as `vit features` writes them from class folders; or a training run; with --data, any
            checkpoint.
        test: File of the test images' features. Default: a fraction of each class in the first file is held out.
        data: The images whose features are computed. Of a run's own data, the test images are those that it held out.
        held_out: Fraction of each class for testing, if there is no test file or split.
        split_seed: Seed that selects these images, and those of --shots.
        neighbours: Number of neighbours that vote.
        c: C of the logistic regression; a larger value means less regularization.
        max_steps: Steps after which the logistic regression stops.
        shots: Number of images of each class for a few-shot probe, drawn by --split-seed. May be repeated.
        layer: Block after which the tokens are taken, from 0; -1 is the last.
        pool: The class token, or the mean of the patch tokens (gap). Default: the class token if there is one.
        norm: Apply the model's last LayerNorm to the tokens first.
        computing: How images pass through the model.
        compute_dtype: Type of the weights and the computation.
        reading: How the checkpoint is opened.
    """
    at_least(1, neighbours=neighbours, max_steps=max_steps, shots=min(shots, default=None))
    at_least(1, batch_size=computing.batch_size, threads=computing.threads)
    if not 0 < held_out < 1:
        raise InputError(f"--held-out {held_out:g}: expected more than 0 and less than 1")
    if not c > 0:
        raise InputError(f"--c {c:g}: expected more than 0")
    if data.name is not None and test is not None:
        raise InputError(f"{test}: with --data the images are those of {data.name}; leave out the second file")
    data.check_columns()
    require("train", "sklearn", "scipy")
    from vit_cli import probing
    from vit_train.probing import probe as probes

    of_run = None if test is not None else data_of_run(source, required=False)
    images = data.of(of_run, held_out=held_out, split_seed=split_seed)
    if images is None:
        train, tested = probing.from_files(source, test, held_out, split_seed)
    else:
        model = probing.Model(source, reading, computing, compute_dtype)
        train, tested = probing.from_images(model, images, layer=layer, pool=pool, norm=norm)
    found = probes(train, tested, neighbours=neighbours, c=c, steps=max_steps, shots=shots, seed=split_seed)
    probing.print_probes(train, tested, found)
    return 0
