"""The packages of the two twins, imported when a command runs them."""

from typing import Any, Literal

from vit_cli.requirements import TWINS, missing, require

Framework = Literal["jax", "torch"]
TITLES = {"jax": "JAX", "torch": "PyTorch"}


def installed_twin() -> Framework | None:
    """An installed framework; PyTorch is preferred to JAX, because other libraries' models also run in it."""
    frameworks: tuple[Framework, Framework] = ("torch", "jax")
    return next((name for name in frameworks if not missing(TWINS[name])), None)


def twin(name: Framework) -> Any:
    """A twin's package, with float64 enabled. Raises InputError if its framework is not installed."""
    require(name, *TWINS[name])
    if name == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        import vit_jax

        return vit_jax
    import vit_torch

    return vit_torch
