"""The PyTorch engine: the verbs of train.loop.Engine."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import vit_torch
from vit_core.checkpoint import Checkpoint
from vit_core.parameters import parameters
from vit_core.preprocess import offset_and_scale
from vit_torch import arrays

from .config import Optimizer, TrainConfig
from .data import Batch


class TorchEngine:
    """A module and torch's own optimizer."""

    name = "torch"

    def __init__(self, config: TrainConfig, weights: Checkpoint | None = None) -> None:
        self.config, self.rows = config, parameters(config.model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if weights is None:
            model = vit_torch.from_seed(config.model, config.seed, dtype=config.dtype)
        else:
            model = vit_torch.load(config.fitted(weights), dtype=config.dtype)
        self.model = model.to(self.device)
        self.params = dict(self.model.named_parameters())
        self.optimizer = optimizer_for(config.optimizer, self._groups())

    def train_step(self, batch: Batch, learning_rate: float) -> Tensor:
        """One update; gives the loss before it, still on the device."""
        self.model.train()
        masks = {site: torch.as_tensor(mask, device=self.device) for site, mask in batch.masks.items()}
        logits_BC = self.model(self._normalise(batch.images_BHWC), masks)
        loss = mean_loss(self.config, logits_BC, batch)
        self.optimizer.zero_grad()
        loss.backward()
        for name, row in self.rows.items():
            if row.key_bias is not None and (gradient := self.params[name].grad) is not None:
                gradient.view(row.jax_shape)[row.key_bias] = 0
        if self.config.optimizer.clip_norm:
            clip_by_global_norm(self.params.values(), self.config.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._decay_decoupled(learning_rate)
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def logits(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Logits [B, classes] in evaluation, from uint8 images."""
        self.model.eval()
        return arrays.to_numpy(self.model(self._normalise(images_BHWC)))

    def export(self) -> dict[str, np.ndarray]:
        """The parameters in the layout on disk."""
        return {name: arrays.to_numpy(value).copy() for name, value in self.params.items()}

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimizer's statistics, "<kind>/<canonical name>" in the layout on disk."""
        states = {name: self.optimizer.state[p] for name, p in self.params.items()}
        return {
            f"{kind}/{name}": arrays.to_numpy(state[field]).copy()
            for kind, field in STATISTICS.items()
            for name, state in states.items()
            if state.get(field) is not None
        }

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets the optimizer to what optimizer_arrays gave after `step` updates (of either engine)."""
        for name, p in self.params.items():
            state = {
                field: arrays.from_numpy(statistics[f"{kind}/{name}"]).to(self.device)
                for kind, field in STATISTICS.items()
                if f"{kind}/{name}" in statistics
            }
            if state and self.config.optimizer.name == "adamw":
                state["step"] = torch.tensor(float(step))
            self.optimizer.state[p].update(state)

    def _groups(self) -> list[dict[str, object]]:
        """Parameters that decay, and those that do not."""
        decayed = [p for name, p in self.params.items() if self.rows[name].decay]
        others = [p for name, p in self.params.items() if not self.rows[name].decay]
        return [{"params": decayed, "weight_decay": self._torch_decay()}, {"params": others, "weight_decay": 0.0}]

    def _torch_decay(self) -> float:
        optimizer = self.config.optimizer
        return 0.0 if self._decays_itself() else optimizer.weight_decay

    def _decays_itself(self) -> bool:
        """torch.optim.SGD knows only coupled decay."""
        return self.config.optimizer.name == "sgd" and self.config.optimizer.decay == "decoupled"

    @torch.no_grad()
    def _decay_decoupled(self, learning_rate: float) -> None:
        if self._decays_itself():
            for p in self.optimizer.param_groups[0]["params"]:
                p.mul_(1 - learning_rate * self.config.optimizer.weight_decay)

    def _normalise(self, images_BHWC: np.ndarray) -> Tensor:
        offset, scale = (torch.as_tensor(c, device=self.device) for c in offset_and_scale(self.config.preprocessing))
        x_BHWC = arrays.from_numpy(images_BHWC).to(self.device).float()
        return ((x_BHWC - offset) * scale).permute(0, 3, 1, 2).to(getattr(torch, self.config.dtype))


STATISTICS = {"momentum": "momentum_buffer", "first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
"""Our name of an optimizer's statistic -> torch's."""


def optimizer_for(optimizer: Optimizer, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """torch's optimizer; Optimizer states the formulas."""
    if optimizer.name == "adamw":
        return torch.optim.AdamW(groups, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.epsilon)
    return torch.optim.SGD(groups, momentum=optimizer.momentum)


@torch.no_grad()
def clip_by_global_norm(params: Iterable[Tensor], limit: float) -> None:
    """Gradients times limit / max(norm, limit). (torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.)"""
    gradients = [p.grad for p in params if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    factor = limit / norm.clamp(min=limit)
    for g in gradients:
        g.mul_(factor)


def mean_loss(config: TrainConfig, logits_BC: Tensor, batch: Batch) -> Tensor:
    """The loss over the examples that count."""
    targets_BC = torch.as_tensor(batch.targets_BC).to(logits_BC)
    weights_B = torch.as_tensor(batch.weights_B).to(logits_BC)
    if config.loss == "softmax":
        losses_B = F.cross_entropy(logits_BC, targets_BC, reduction="none")
    else:
        losses_B = F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").sum(dim=-1)
    return (losses_B * weights_B).sum() / weights_B.sum()
