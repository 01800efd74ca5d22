"""`vit formats`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli import console
from vit_cli.requirements import require


def formats(
    *,
    twins: Annotated[bool, Parameter(negative=())] = False,
    families: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Check every checkpoint format on small random models.

    Each model is written, opened by the library that the format belongs to, and read back. The table shows whether the
    bits are equal, and how far the outputs of the other library are from ours in float64. The exit status is 1 if a
    check fails. The libraries are installed by pip install 'vit-parity[test]'.

    Examples:
        vit formats
        vit formats --twins
        vit formats --families

    Args:
        twins: Also compare every stage and the gradient of every parameter of the JAX and the PyTorch model, which
            takes some minutes.
        families: Compare the outputs and both twins only for the models of the newer families (DINOv3, NaFlex, BEiT,
            ...), and print a row for each family, with the formats that read and write it and the largest differences.
    """
    require("test", "torch", "timm", "transformers", "torchvision", "vit_pytorch")
    from vit_cli.format_checks import checks, examples, of_families, read_only_formats
    from vit_cli.reports.formats import print_checks, print_families
    from vit_cli.twins import twin

    found, packages = [], [twin("jax"), twin("torch")] if twins or families else []
    chosen = of_families() if families else examples()
    with console.progress() as bar:
        task = bar.add_task("formats", total=sum(map(len, chosen.values())), note="starting")
        for check in checks(chosen, packages):
            found.append(check)
            bar.update(task, advance=1, note=f"{check.format}: {check.model}")
    if families:
        print_families(found)
    else:
        print_checks(found, read_only_formats())
    return int(not all(check.ok for check in found))
