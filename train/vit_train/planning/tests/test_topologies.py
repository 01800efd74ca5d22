"""Slices by name: those that libtpu knows, and names that are refused."""

import pytest

from vit_core import InputError
from vit_train.planning.plan import target
from vit_train.planning.topologies import parse

pytestmark = pytest.mark.usefixtures("without_hardware")


@pytest.mark.parametrize(
    ("name", "devices"), [("v5e:16x16", 256), ("v6e:2x4", 8), ("v5p:8x8x4", 256), ("v4:2x2x1", 4), ("v5e:1x1", 1)]
)
def test_slices_that_libtpu_knows(name: str, devices: int) -> None:
    """A slice's name gives the number of devices that JAX sees, of the kind in the table."""
    topology = parse(name)
    seen = target(topology).devices
    assert len(seen) == topology.devices == devices
    assert {device.device_kind for device in seen} == {topology.family.chip.kind}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "v5f:4x4",
            "unknown topology 'v5f:4x4'; expected the sides of a slice in chips: v4:4x4x4, v5e:16x16",
        ),
        ("v5e", "expected the chips along each side of the slice, as v5e:16x16"),
        ("v5e:0x4", "expected the chips along each side"),
        ("v5e:4x4x4", "v5e slices have 2 sides, as v5e:16x16"),
        ("v5p:8x8", "v5p slices have 3 sides, as v5p:8x8x4"),
        ("v5e:3x5", "hosts are 2 x 2 chips, so the first two sides must be even"),
        ("v5e:32x32", "1024 chips; the largest v5e slice has 256"),
    ],
)
def test_impossible_slices_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(name)
    assert message in str(error.value)
