"""The work of a device in a compiled program, compared with counts computed by hand."""

import os
import subprocess
import sys

import pytest

from vit_core import ViTConfig, flops
from vit_train.planning.hlo import Program
from vit_train.planning.work import work_of

TPU = """\
HloModule step, is_scheduled=true, num_partitions=16

%layer (stack: bf16[3,17,64], i: s32[]) -> bf16[1,17,64] {
  %stack = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  ROOT %one = bf16[1,17,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%stack, %i), dynamic_slice_sizes={1,17,64}
}

%kept (stack.1: bf16[3,17,64], one.1: bf16[1,17,64]) -> bf16[3,17,64] {
  %stack.1 = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %one.1 = bf16[1,17,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %set = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%stack.1, %one.1)
}

%condition (state: (s32[], bf16[3,17,64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  %state = (s32[]{:T(128)}, bf16[3,17,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%n, %bound), direction=LT
}

%body (state.1: (s32[], bf16[3,17,64])) -> (s32[], bf16[3,17,64]) {
  %state.1 = (s32[]{:T(128)}, bf16[3,17,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n.1 = s32[]{:T(128)S(6)} get-tuple-element(%state.1), index=0
  %all = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=1
  %mine = bf16[1,17,64]{2,1,0:T(8,128)(2,1)} fusion(%all, %n.1), kind=kLoop, calls=%layer, backend_config={"estimated_cycles":"100"}
  %new = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} fusion(%all, %mine), kind=kLoop, calls=%kept, backend_config={"estimated_cycles":"10"}
  ROOT %next = (s32[]{:T(128)}, bf16[3,17,64]{2,1,0:T(8,128)(2,1)}) tuple(%n.1, %new)
}

%product (q: bf16[4,17,4,64], k: bf16[4,17,4,64]) -> bf16[4,4,17,17] {
  %q = bf16[4,17,4,64]{3,1,2,0:T(8,128)(2,1)S(1)} parameter(0)
  %k = bf16[4,17,4,64]{3,1,2,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %scores = bf16[4,4,17,17]{3,2,1,0:T(8,128)(2,1)} convolution(%q, %k), window={size=4x4 stride=3x3 lhs_dilate=4x4}, dim_labels=0b1f_0o1i->01bf
}

ENTRY %main (first: (s32[], bf16[3,17,64]), x: f32[8,16], w: f32[16,4], q.1: bf16[4,17,4,64]) -> f32[8,4] {
  %first = (s32[]{:T(128)}, bf16[3,17,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %x = f32[8,16]{1,0} parameter(1)
  %w = f32[16,4]{1,0} parameter(2)
  %q.1 = bf16[4,17,4,64]{3,1,2,0:T(8,128)(2,1)S(1)} parameter(3)
  %loop = (s32[]{:T(128)}, bf16[3,17,64]{2,1,0:T(8,128)(2,1)}) while(%first), condition=%condition, body=%body
  %buffer = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %halves = bf16[3,17,64]{2,1,0:T(8,128)(2,1)} custom-call(%buffer, %buffer), custom_call_target="ConcatBitcast"
  %kernel = f32[16,4]{1,0} custom-call(%w), custom_call_target="tpu_custom_call"
  %begin = (f32[16,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%w), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %scores.1 = bf16[4,4,17,17]{3,2,1,0:T(8,128)(2,1)} fusion(%q.1, %q.1), kind=kOutput, calls=%product
  %end = f32[32,4]{1,0} all-gather-done(%begin)
  %alone = f32[16,4]{1,0} all-reduce(%w), channel_id=2, replica_groups={{0,1}}
  ROOT %result = f32[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""  # noqa: E501

COMPILED = """
import jax
from vit_core import ViTConfig
from vit_train.config import Mesh, TrainConfig
from vit_train.engines.jax.mesh import make_mesh
from vit_train.engines.jax.train_step import TrainStep
from vit_train.planning.hlo import Program
from vit_train.planning.plan import target
from vit_train.planning.topologies import parse
from vit_train.planning.work import work_of

config = TrainConfig(
    model=ViTConfig(image_size=32, patch_size=8, width=256, depth=3, heads=4, mlp_dim=1024, num_classes=16),
    steps=10, batch_size=64, compute_dtype="bfloat16", mesh=Mesh(data=4, fsdp=4), reduce_dtype=None,
)
devices = target(parse("v5e:4x4")).devices
for reduce_dtype, mesh in ((None, Mesh(data=4, fsdp=4)), ("float32", Mesh(data=16))):
    changed = config.replace(mesh=mesh, reduce_dtype=reduce_dtype)
    program = Program(TrainStep(changed, make_mesh(mesh, config.model, devices)).lower().compile().as_text())
    print(work_of(program).model_dump_json())
    print(max((each.size, each.shape) for each in program.collectives)[1])
"""


def test_a_program_of_a_tpu() -> None:
    found = work_of(Program(TPU))
    assert found.flops == 2 * 4 * 4 * 17 * 17 * 64 + 2 * 8 * 16 * 4, "one product of each pair of heads"
    # Rows of 64 numbers are padded to 128, and 17 rows to 24. A layer of the stack is read and written, twice.
    # Allocating its memory and joining adjacent arrays cause no traffic.
    layer, scores = 24 * 128 * 2, 4 * 4 * 24 * 128 * 2
    assert found.moved == 3 * 4 * layer + scores + 4 * (8 * 16 + 16 * 4 + 8 * 4) + 2 * 4 * 16 * 4
    assert found.cycles == 3 * 110
    assert found.kernels == 1
    assert (found.received, found.hidden) == (32 * 4 * 4 // 2 + 16 * 4 * 4, 32 * 4 * 4 // 2)


@pytest.mark.release
def test_the_train_step_executes_the_products_of_the_model() -> None:
    """Compiled for 16 chips. Gathers of shared weights overlap with products; gradients are float32 if the config sets
    this."""
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model = ViTConfig(image_size=32, patch_size=8, width=256, depth=3, heads=4, mlp_dim=1024, num_classes=16)
    counts = flops.forward(model)
    shared, _, whole, largest = done.stdout.splitlines()
    for line in (shared, whole):
        # The gradient of the images is not computed.
        assert f'"flops":{4 * (3 * sum(counts.values()) - counts["patch_embed"])}.0' in line
    assert '"hidden":0' not in shared
    assert '"hidden":0' in whole
    assert "f32[" in largest
    assert "bf16[" not in largest
