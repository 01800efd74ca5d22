"""Collectives read from compiled programs, compared with counts and bytes computed by hand."""

import os
import subprocess
import sys

import pytest

from vit_train.planning.hlo import Collective, Program, array_bytes, by_kind, group_size

EIGHT = """
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

def inner(x, _):
    gathered = jnp.sin(lax.all_gather(x, "x", tiled=True))  # f32[128,4]
    return lax.psum_scatter(gathered, "x", tiled=True), None  # f32[16,4]

def outer(x, _):
    x, _ = lax.scan(inner, x, length=3)
    return lax.psum(jnp.cos(x), "x") / 8 + x, None  # f32[16,4]

def run(x):
    x, _ = lax.scan(outer, x, length=5)
    x = lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])
    return lax.all_to_all(jnp.tan(x), "x", 0, 0, tiled=True).astype(jnp.bfloat16)

run = jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
print(jax.jit(run).lower(jax.ShapeDtypeStruct((128, 4), "float32")).compile().as_text())
"""

TPU = """\
HloModule step, num_partitions=16

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%begun (p: bf16[1,256,64]) -> (bf16[1,256,64], bf16[1,1024,64]) {
  %p = bf16[1,256,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[1,1024,64]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16], dimensions={1}
  ROOT %start = (bf16[1,256,64]{2,1,0:T(8,128)(2,1)}, bf16[1,1024,64]{2,1,0:T(8,128)(2,1)S(1)}) custom-call(%gather.1)
}

%ended (q: bf16[1,256,64]) -> bf16[1,1024,64] {
  %q = bf16[1,256,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.2 = bf16[1,1024,64]{2,1,0:T(8,128)(2,1)} all-gather(%q), channel_id=7, replica_groups=[4,4]<=[16], dimensions={1}
}

%all-reduce-scatter.1 (input: bf16[1024,64]) -> bf16[256,64] {
  %input = bf16[1024,64]{1,0} parameter(0)
  %whole = bf16[1024,64]{1,0} all-reduce(%input), channel_id=8, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[256,64]{1,0} dynamic-slice(%whole)
}

%condition (state: (s32[], bf16[1024,64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  %state = (s32[]{:T(128)}, /*index=1*/bf16[1024,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (state.1: (s32[], bf16[1024,64])) -> (s32[], bf16[1024,64]) {
  %state.1 = (s32[]{:T(128)}, bf16[1024,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %a = (bf16[1,256,64]{2,1,0}, bf16[1,1024,64]{2,1,0}) fusion(%state.1), kind=kCustom, calls=%begun, metadata={op_name="jit(step)/gathered"}
  %b = bf16[1,1024,64]{2,1,0} fusion(%a), kind=kCustom, calls=%ended
  %c = bf16[256,64]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/scattered"}
  ROOT %next = (s32[]{:T(128)}, bf16[1024,64]{1,0:T(8,128)(2,1)}) tuple(%a, %c)
}

ENTRY %main (first: (s32[], bf16[1024,64])) -> (s32[], bf16[1024,64]) {
  %first = (s32[]{:T(128)}, bf16[1024,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %begin = (bf16[24,8]{1,0}, bf16[24,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%first), channel_id=1, source_target_pairs={{0,1}}
  %end = bf16[24,8]{1,0} collective-permute-done(%begin)
  %loss = (f32[3]{0}, f32[]) all-reduce(%first, %end), channel_id=2, replica_groups=mesh['a'=4,'b'=2,'c'=2], device_ids=([4,4]T(1,0)) {'a','c'}, use_global_device_ids=true, to_apply=%add
  ROOT %loop = (s32[]{:T(128)}, bf16[1024,64]{1,0:T(8,128)(2,1)}) while(%first), condition=%condition, body=%body
}
"""  # noqa: E501


def counted(text: str) -> dict[str, tuple[int, int, int]]:
    """Kind -> times, bytes of the results, bytes received."""
    return {
        kind: (
            sum(each.times for each in found),
            sum(each.times * each.size for each in found),
            sum(each.received for each in found),
        )
        for kind, found in by_kind(Program(text).collectives).items()
    }


def test_a_program_of_eight_cpus() -> None:
    """Three times in each of five iterations: all-gathers of 128 x 4 float32 (2 KiB), reduce-scatters of 16 x 4."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert counted(done.stdout) == {
        "all-gather": (15, 15 * 2048, 15 * 2048 * 7 // 8),
        "reduce-scatter": (15, 15 * 256, 15 * 256 * 7),
        "all-reduce": (5, 5 * 256, 5 * 2 * 256 * 7 // 8),
        "all-to-all": (1, 256, 256 * 7 // 8),
        "collective-permute": (1, 256, 256),
    }
    assert Program(done.stdout).uncounted == []


def test_a_program_of_a_tpu() -> None:
    """An all-gather in two fusions counts once; a fused all-reduce with a slice is a reduce-scatter."""
    gathered, scattered = 1024 * 64 * 2, 256 * 64 * 2
    assert counted(TPU) == {
        "all-gather": (12, 12 * gathered, 12 * gathered * 3 // 4),
        "reduce-scatter": (12, 12 * scattered, 12 * scattered * 3),
        "all-reduce": (1, 16, 2 * 16 * 7 // 8),
        "collective-permute": (1, 24 * 8 * 2, 24 * 8 * 2),
    }
    where = {each.kind: each.where for each in Program(TPU).collectives}
    assert where["all-gather"] == "jit(step)/gathered"
    assert where["reduce-scatter"] == "jit(step)/scattered"


def test_a_loop_of_unknown_length_is_named() -> None:
    text = TPU.replace("direction=LT", "direction=NE")
    assert Program(text).uncounted == ["loop"]
    assert counted(text)["all-gather"][0] == 1
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert Program(known).uncounted == []
    assert counted(known)["all-gather"][0] == 7


@pytest.mark.parametrize(
    ("written", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[2,8]<=[4,4]T(1,0), dimensions={0}", 8),
        ("replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}", 4),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([4,2]T(1,0)) {'x':(1)2,'y'}, dimensions={0}", 4),
        ("replica_groups={}, to_apply=%add", 16),
    ],
)
def test_group_size(written: str, members: int) -> None:
    assert group_size(written, everyone=16) == members


@pytest.mark.parametrize(
    ("array", "count"),
    [("bf16[2,3]", 12), ("f32[]", 4), ("pred[7]", 7), ("s4[8]", 4), ("f8e4m3fn[5]", 5), ("c64[2]", 16)],
)
def test_array_bytes(array: str, count: int) -> None:
    assert array_bytes(array) == count


def test_bytes_received() -> None:
    """In a ring of 4 devices, for an array of 100 bytes."""
    received = {
        kind: Collective(kind, "", 100, 4, 3, "").received for kind in ("all-gather", "reduce-scatter", "all-reduce")
    }
    assert received == {"all-gather": 3 * 75, "reduce-scatter": 3 * 300, "all-reduce": 3 * 150}
