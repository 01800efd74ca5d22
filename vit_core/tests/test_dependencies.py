"""What each extra brings: deploying one twin never installs the other framework."""

from importlib.metadata import requires

from packaging.requirements import Requirement

FRAMEWORKS = {"jax": {"jax", "jaxlib", "flax", "optax"}, "torch": {"torch", "torchvision", "timm", "transformers"}}


def brought_by(extra: str) -> set[str]:
    """Names required with one extra (or "" for none), those of extras it names included."""
    found = set()
    for requirement in map(Requirement, requires("vit-parity") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found |= set().union(*map(brought_by, requirement.extras)) if requirement.name == "vit-parity" else set()
            found.add(requirement.name)
    return found


def test_extras() -> None:
    assert not brought_by("") & (FRAMEWORKS["jax"] | FRAMEWORKS["torch"])
    assert "torch" in brought_by("torch")
    assert not brought_by("torch") & FRAMEWORKS["jax"]
    assert {"jax", "flax"} <= brought_by("jax")
    assert not brought_by("jax") & FRAMEWORKS["torch"]
    assert {"jax", "flax", "torch", "grain", "optax"} <= brought_by("train")
    assert {"tensorflow", "tensorflow-cpu"} & brought_by("test") == set()
