"""The models in PyTorch of `vit bench model`: each with its forward pass and its train step with torch's AdamW."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch._dynamo  # torch's first optimizer imports it, for seconds, unless a library has: timm and transformers do
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import vit_torch
from vit_cli.benchmarks.implementations import CLASSES, Kind, Setting, Stopwatch, Turn
from vit_core.checkpoints.formats.lucidrains import arguments
from vit_core.config import ViTConfig
from vit_torch.references.timm import registered_model, timm_model
from vit_train.engines.torch.peak import matmul_flops


class TorchRunner:
    """A model of a PyTorch library on the GPU, or on the CPU without one; see implementations.Runner.

    With bfloat16, the parameters of the forward pass are bfloat16. Training keeps them in float32: the twin casts them
    and uses torch's fused AdamW, as in the trainer; other libraries run under autocast with torch's default AdamW, as
    their users would. GELU is exact, because vit-pytorch has no other (models in JAX use the tanh approximation,
    because big_vision has no other).
    """

    def __init__(self, name: str, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype: torch.dtype = getattr(torch, setting.dtype)
        self.compile: Callable[[Any], Any] = torch.compile if setting.compiled else lambda model: model
        self.setting, self.build, self.ours = setting, BUILDERS[name], name == "vit_torch"
        by_tanh = setting.model.activation == "gelu_tanh"
        self.model = setting.model.replace(activation="gelu") if by_tanh else setting.model
        size = setting.batch_size, setting.model.channels, *setting.model.image_size
        self.images_BCHW = torch.randn(size, device=self.device)
        self.labels_B = torch.randint(CLASSES, (setting.batch_size,), device=self.device)
        self.prepared: dict[Kind, Callable[[], None]] = {}

    def run(self, kind: Kind, calls: int) -> Turn:
        if kind not in self.prepared:
            prepare = self._prepare_forward if kind == "forward" else self._prepare_train
            self.prepared[kind] = prepare(self.build(self.model).to(self.device))
        call = self.prepared[kind]
        self._wait()
        watch = Stopwatch(calls)
        for _ in range(calls):
            call()
        watch.handed_over()
        self._wait()
        return watch.turn()

    def peak(self) -> float:
        return matmul_flops(self.setting.dtype, self.device)

    def device_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def _prepare_forward(self, model: nn.Module) -> Callable[[], None]:
        compute, images_BCHW = self.compile(model.eval().to(self.dtype)), self.images_BCHW.to(self.dtype)

        @torch.inference_mode()
        def forward() -> None:
            compute(images_BCHW)

        return forward

    def _prepare_train(self, model: nn.Module) -> Callable[[], None]:
        fused = True if self.ours else None  # None: torch's choice
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=0.05, fused=fused)
        casts, compute = self.ours and self.dtype != torch.float32, self.compile(model)
        autocast = self.dtype != torch.float32 and not self.ours
        images_BCHW = self.images_BCHW.to(self.dtype) if casts else self.images_BCHW

        def train() -> None:
            with torch.autocast(self.device.type, self.dtype) if autocast else nullcontext():
                logits_BC = self._cast(model, compute, images_BCHW) if casts else compute(images_BCHW)
                loss = F.cross_entropy(_logits(logits_BC).float(), self.labels_B)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return train

    def _cast(self, model: nn.Module, compute: Any, images_BCHW: Tensor) -> Tensor:
        prefix = "" if compute is model else "_orig_mod."  # the module that torch.compile returns has the model in it
        cast = {prefix + name: p.to(self.dtype) for name, p in model.named_parameters()}
        return functional_call(compute, cast, (images_BCHW,))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _logits(output: Any) -> Tensor:
    """The logits of an output; transformers' models return them in an object with other values."""
    return output if isinstance(output, Tensor) else output.logits


def _transformers(config: ViTConfig) -> nn.Module:
    library = importlib.import_module("transformers")
    fields = library.ViTConfig(
        image_size=config.image_size[0],
        patch_size=config.patch_size[0],
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_dim,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=config.num_classes,
    )
    model: nn.Module = library.ViTForImageClassification(fields)
    return model


BUILDERS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    "vit_torch": vit_torch.ViT,
    "timm": lambda config: timm_model(config) if config.rope is None else registered_model(config),
    "transformers": _transformers,
    "vit-pytorch": lambda config: importlib.import_module("vit_pytorch").ViT(**arguments(config)),
}
"""Implementation -> its network for a config."""
