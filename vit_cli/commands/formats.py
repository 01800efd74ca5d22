"""`vit formats`"""

from vit_cli import console
from vit_cli.requirements import require


def formats() -> int:
    """Check every checkpoint format on small random models.

    Each model is written, opened by the library that the format belongs to, and read back. The table shows whether the
    bits are equal, and how far the outputs of the other library are from ours in float64. The exit status is 1 when
    something is not as it should be. The libraries are installed by pip install 'vit-parity[test]'.

    Example:
        vit formats
    """
    require("test", "torch", "timm", "transformers", "torchvision", "vit_pytorch")
    from vit_cli.format_proofs import proofs, read_only_formats
    from vit_cli.reports.formats import print_proofs

    with console.working("writing, opening and reading small models"):
        found = list(proofs())
    print_proofs(found, read_only_formats())
    return int(not all(proof.ok for proof in found))
