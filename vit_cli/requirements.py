"""The packages that a command needs, and the extras of vit-parity that install them."""

from importlib.util import find_spec

from vit_core.errors import InputError

TWINS = {"jax": ("jax", "flax"), "torch": ("torch",)}
"""Framework -> the packages that its twin needs."""
TRAINING = ("grain", "tensorflow_datasets", "scipy", "matplotlib", "tensorboardX")


def missing(packages: tuple[str, ...]) -> list[str]:
    """The packages that are not installed. Nothing is imported."""
    return [package for package in packages if find_spec(package) is None]


def require(extra: str, *packages: str) -> None:
    """Raises InputError, with the command that installs them, if packages are missing."""
    if absent := missing(packages):
        raise InputError(f"this command needs {', '.join(absent)}: pip install 'vit-parity[{extra}]'")
