"""The linear layers' products by oneDNN: what they compute, compared with float64, and where they are used."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit_torch import linear as module
from vit_torch.linear import AdaptedLinear, Linear, linear, linear_gelu

ONEDNN = torch.backends.mkldnn.is_available()
TYPES = [torch.float32] * ONEDNN + [torch.bfloat16] * (ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Torch without oneDNN, or a processor without its instructions, never comes to these products."""
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""How much rounding to a type changes a value relatively, at most."""


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets these small products count as large ones of a processor that multiplies faster by oneDNN."""
    for name, value in (("MKL_IS_SLOW", True), ("AVX512", True), ("FEWEST_PRODUCTS", 0)):
        monkeypatch.setattr(module, name, value)


def arrays(dtype: torch.dtype) -> list[Tensor]:
    """x [2, 5, 24], which is not contiguous, a weight [7, 24] and a bias [7], with values from -1 to 1."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (2 * torch.rand(shape, generator=generator) - 1 for shape in ((5, 24, 2), (7, 24), 7))
    return [leaf.to(dtype).requires_grad_() for leaf in (x.permute(2, 0, 1), weight, bias)]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_layer_and_its_gradients(dtype: torch.dtype) -> None:
    """Sums of n products and a bias in float32, rounded to the type once: |error| <= ((n + 1) u32 + u) sum |terms|."""
    x, weight, bias = leaves = arrays(dtype)
    assert module.uses_onednn(x, weight, bias)
    out = linear(x, weight, bias)
    assert "onednn_linear" in str(out.grad_fn.next_functions)  # behind the view with the axes of x
    factors = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(dtype)
    gradients = torch.autograd.grad(out, leaves, factors)

    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = F.linear(*wide)
    absolute = [leaf.detach().abs().requires_grad_() for leaf in wide]
    largest = F.linear(*absolute)
    references = expected, *torch.autograd.grad(expected, wide, factors.double())
    bounds = largest, *torch.autograd.grad(largest, absolute, factors.double().abs())
    terms = 24, 7, 10, 10
    for ours, theirs, bound, n in zip((out, *gradients), references, bounds, terms, strict=True):
        assert ours.dtype == dtype
        assert ((ours - theirs).abs() <= ((n + 1) * UNIT[torch.float32] + UNIT[dtype]) * bound).all()


def layer_and_input(dtype: torch.dtype = torch.bfloat16) -> tuple[Linear, Tensor]:
    x, weight, bias = (leaf.detach() for leaf in arrays(dtype))
    layer = Linear(24, 7, dtype=dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer, x


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("activation", "approximate"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_a_layer_and_its_gelu(activation: str, approximate: str, dtype: torch.dtype) -> None:
    """The result is rounded once. Before, there are the float32 sums of 24 products, whose errors GELU multiplies by
    less than 1.2, and GELU itself, a few operations of float32 on values up to |x|: 16 roundings are allowed for. In
    float32 the layer and the activation are computed apart, as with gradients."""
    layer, x = layer_and_input(dtype)
    with torch.no_grad():
        out = linear_gelu(layer, x, activation)
    assert (out is None) == (dtype == torch.float32)
    if out is not None:
        wide = [leaf.detach().double() for leaf in (x, layer.weight, layer.bias)]
        expected, largest = F.gelu(F.linear(*wide), approximate=approximate), F.linear(*(leaf.abs() for leaf in wide))
        before = (1.2 * 25 + 16) * UNIT[torch.float32] * largest
        assert ((out - expected).abs() <= UNIT[dtype] * (expected.abs() + before) + before).all()


def test_where_a_gelu_is_a_part_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "product", lambda x_TI, weight_OI, *_: x_TI.new_ones((len(x_TI), len(weight_OI))))
    layer, x = layer_and_input()
    assert linear_gelu(layer, x, "gelu") is None  # the gradient needs the values before it
    with torch.no_grad():
        assert torch.equal(linear_gelu(layer, x, "gelu"), torch.ones((2, 5, 7)))
        assert linear_gelu(layer, x, "quick_gelu") is None
        assert linear_gelu(AdaptedLinear(layer, rank=2, scale=1.0), x, "gelu") is None
        assert linear_gelu(*layer_and_input(torch.float32), "gelu") is None
        all_modules = torch.nn.modules.module
        for register in (
            layer.register_forward_hook,
            layer.register_forward_pre_hook,
            all_modules.register_module_forward_hook,
            all_modules.register_module_forward_pre_hook,
        ):
            handle = register(lambda *_: None)  # it would see values after the activation, or nothing
            assert linear_gelu(layer, x, "gelu") is None
            handle.remove()
        layer.forward = layer.forward
        assert linear_gelu(layer, x, "gelu") is None
        del layer.forward
        assert linear_gelu(layer, x, "gelu") is not None
        monkeypatch.setattr(module, "FEWEST_PRODUCTS", x.numel() * 7 + 1)
        assert linear_gelu(layer, x, "gelu") is None


def test_second_derivatives() -> None:
    """Derivatives of a gradient equal those of torch's layer: all values are integers, which float32 holds exactly."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (
        torch.randint(-3, 4, shape, generator=generator).float().requires_grad_() for shape in ((4, 6), (5, 6))
    )
    found = []
    for layer in (linear, F.linear):
        (gradient,) = torch.autograd.grad(layer(x, weight, None).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), (x, weight)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_gradients_in_several_directions() -> None:
    """The Jacobian by one call of the gradient for all directions, which is the weight at each place."""
    x, weight = torch.zeros(2, 24), torch.arange(168.0).reshape(7, 24)
    jacobian = torch.autograd.functional.jacobian(lambda x: linear(x, weight, None), x, vectorize=True)
    assert torch.equal(jacobian, torch.einsum("bc,oi->boci", torch.eye(2), weight))


def test_a_result_can_be_changed_in_place() -> None:
    x, weight, bias = arrays(torch.float32)
    out = linear(x, weight, bias)
    out.mul_(2)
    (gradient,) = torch.autograd.grad(out.sum(), bias)
    assert torch.equal(gradient, torch.full((7,), 20.0))


def test_a_layer_is_torchs_layer() -> None:
    """Also with other numbers of outputs and without a bias; libraries such as peft look for torch's class."""
    layer = Linear(24, 3, bias=False)
    assert isinstance(layer, nn.Linear)
    x, plain = torch.arange(48.0).reshape(2, 24), nn.Linear(24, 3, bias=False)
    layer.load_state_dict({"weight": torch.arange(72.0).reshape(3, 24)})
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))  # integers below 2^24: every sum is exact


def under(change: Callable[[], AbstractContextManager]) -> bool:
    x, weight, bias = (leaf.detach() for leaf in arrays(torch.float32))
    with change():
        return module.uses_onednn(x, weight, bias)


CHANGES: dict[str, Callable[[], AbstractContextManager]] = {
    "the user's choice": lambda: torch.backends.mkldnn.flags(enabled=False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a dispatch mode": lambda: FlopCounterMode(display=False),
    "dual numbers": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("change", CHANGES)
def test_torch_multiplies(change: str) -> None:
    assert under(nullcontext)
    assert not under(CHANGES[change])


def test_where_onednn_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = arrays(torch.float32)
    low = [leaf.bfloat16() for leaf in (x, weight, bias)]
    assert module.uses_onednn(x, weight, None)
    assert module.uses_onednn(*low)
    assert not module.uses_onednn(*low[:2], None)  # torch calls oneDNN itself, and there is no bias to copy
    assert not module.uses_onednn(x.double(), weight.double(), bias.double())
    assert not module.uses_onednn(*(leaf.to("meta") for leaf in (x, weight, bias)))
    assert not module.uses_onednn(x, low[1], bias)
    assert not module.uses_onednn(x, weight, low[2])
    monkeypatch.setattr(module, "FEWEST_PRODUCTS", x.numel() * 7 + 1)
    assert not module.uses_onednn(x, weight, bias)
    monkeypatch.setattr(module, "FEWEST_PRODUCTS", x.numel() * 7)
    assert module.uses_onednn(x, weight, bias)
    monkeypatch.setattr(module, "MKL_IS_SLOW", False)
    assert not module.uses_onednn(x, weight, bias)
    assert module.uses_onednn(*low)
    monkeypatch.setattr(module, "AVX512", False)
    assert not module.uses_onednn(*low)


def test_programs_and_transformations_have_torchs_product() -> None:
    layer, x = Linear(24, 7), arrays(torch.float32)[0].detach()
    exported = torch.export.export(layer, (x,))
    traced = torch.jit.trace(layer, x)
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == ["aten.linear.default"]
    assert "aten::linear" in str(traced.inlined_graph)
    layer.load_state_dict({"weight": torch.arange(168.0).reshape(7, 24) % 5, "bias": torch.arange(7.0)})
    whole = torch.arange(240.0).reshape(2, 5, 24) % 3  # every sum is exact
    for_each = torch.func.vmap(torch.func.grad(lambda x: layer(x).square().sum()))(whole)
    at_once = whole.clone().requires_grad_()
    layer(at_once).square().sum().backward()
    assert torch.equal(for_each, at_once.grad)


def test_compiled_layers_call_onednn() -> None:
    layer, x, graphs = Linear(24, 7), arrays(torch.float32)[0].detach(), []

    def record(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=record, fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    assert ["onednn_linear" in str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"] == [
        True
    ]
