"""The PyTorch engine: the verbs of train.loop.Engine; under torchrun, one of several processes."""

import os
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import vit_torch
from vit_core.checkpoint import Checkpoint
from vit_core.masks import POSITIONS
from vit_core.parameters import parameters
from vit_core.preprocess import offset_and_scale
from vit_torch import arrays

from .config import TrainConfig
from .data import Batch
from .measured import Measured
from .optimizers_torch import Update, clip, squared_norms


class TorchEngine:
    """A module, its optimizer, and the moving average of its weights. Every process holds them whole."""

    name = "torch"

    def __init__(self, config: TrainConfig, weights: Checkpoint | None = None) -> None:
        self.config, self.rows = config, parameters(config.model)
        self.process, self.processes, self.device = join_processes()
        self.devices = self.processes
        if weights is None:
            model = vit_torch.from_seed(config.model, config.seed, dtype=config.dtype)
        else:
            model = vit_torch.load(config.fitted(weights), dtype=config.dtype)
        self.network = Network(model.train().to(self.device), config)
        self.params = dict(self.network.model.named_parameters())
        self.trained = tuple(config.optimizer.factors(self.rows))
        for name, p in self.params.items():
            p.requires_grad_(name in self.trained)
        self.shared = DistributedDataParallel(self.network) if self.processes > 1 else self.network
        trained = {name: self.params[name] for name in self.trained}
        self.update = Update(config.optimizer, self.rows, trained)
        self.average = {name: p.detach().clone() for name, p in trained.items()} if config.ema is not None else {}
        self.healthy = True

    def train_step(self, batch: Batch, step: int) -> Measured:
        """Update number `step` (from 0); gives what was found before it.

        From the first loss or gradient on that is not finite, the state stays as it is.
        """
        loss = self._gradients(batch)
        gradients = {name: gradient for name in self.trained if (gradient := self.params[name].grad) is not None}
        for name, gradient in gradients.items():
            if (key := self.rows[name].key_bias) is not None:
                gradient.view(self.rows[name].jax_shape)[key] = 0
        norms = squared_norms(gradients)
        # Off the device at once: whether it is finite decides about the update.
        measured = Measured(loss.cpu(), torch.stack([norms[name] for name in self.trained]).cpu())
        self.healthy &= bool(torch.isfinite(measured.loss) & torch.isfinite(measured.squared_norms.sum()))
        if self.healthy:
            if self.config.optimizer.clip_norm:
                clip(gradients, norms, self.config.optimizer.clip_norm)
            self.update.step(self.config.learning_rate(step), self.config.schedule.fraction(step, self.config.steps))
            self._follow()
        return measured

    @torch.no_grad()
    def logits(self, images_BHWC: np.ndarray, averaged: bool = False) -> np.ndarray:
        """Logits [B, classes] in evaluation, from uint8 images; of the moving average if asked for."""
        self.network.eval()
        averages = {f"model.{name}": value for name, value in self.average.items()} if averaged else {}
        logits_BC = functional_call(self.network, averages, (self._on_device(images_BHWC),))
        self.network.train()
        return logits_BC.cpu().to(getattr(torch, self.config.dtype)).numpy()

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The parameters, or their moving average, in the layout on disk."""
        values = {**self.params, **self.average} if averaged else self.params
        return {name: arrays.to_numpy(value).copy() for name, value in values.items()}

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's, and the moving average: "<kind>/<canonical name>" in the layout on disk."""
        averages = {f"average/{name}": arrays.to_numpy(value).copy() for name, value in self.average.items()}
        return self.update.statistics() | averages

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets what `statistics` gave after `step` updates (in either engine)."""
        self.update.restore(step, statistics)
        for name, average in self.average.items():
            average.copy_(arrays.from_numpy(statistics[f"average/{name}"]))

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum over all processes."""
        if self.processes == 1:
            return counts
        summed = torch.as_tensor(counts, device=self.device)
        dist.all_reduce(summed)
        return summed.cpu().numpy()

    def _gradients(self, batch: Batch) -> Tensor:
        """Sets the gradients of the mean loss over the examples that count, taken in `accumulation` parts; the loss."""
        self.network.zero_grad()
        count = self.total(batch.weights_B.sum()).clip(1)
        loss = torch.zeros((), dtype=getattr(torch, self.config.dtype), device=self.device)
        parts = self._parts(batch)
        for i, part in enumerate(parts):
            waits = i + 1 < len(parts) and self.processes > 1
            with self.shared.no_sync() if waits else nullcontext():  # type: ignore[operator]
                logits_BC = self.shared(part.images_BHWC, part)
                part_loss = total_loss(self.config, logits_BC, part).to(loss.dtype) / float(count)
                (part_loss * self.processes).backward()  # processes' gradients are averaged
            loss += part_loss.detach()
        if self.processes > 1:
            dist.all_reduce(loss)
        return loss

    def _parts(self, batch: Batch) -> list[Batch]:
        """The batch on the device, cut into parts."""
        size = len(batch.images_BHWC) // self.config.accumulation
        parts = []
        for first in range(0, len(batch.images_BHWC), size):
            cut = slice(first, first + size)
            images, targets, weights, own, boxes = (self._on_device(array[cut]) for array in batch[:5])
            # Sites in the blocks have a layer axis first.
            masks = {
                site: self._on_device(mask[cut] if site == POSITIONS else mask[:, cut])
                for site, mask in batch.masks.items()
            }
            parts.append(Batch(images, targets, weights, own, boxes, masks, ids_B=None))
        return parts

    @torch.no_grad()
    def _follow(self) -> None:
        for name, average in self.average.items():
            assert self.config.ema is not None
            average.mul_(self.config.ema).add_(self.params[name], alpha=1 - self.config.ema)

    def _on_device(self, array: np.ndarray) -> Tensor:
        return arrays.from_numpy(array).to(self.device)


class Network(nn.Module):
    """uint8 images to logits, in the compute dtype: normalised, mixed where a batch says so, through the model."""

    def __init__(self, model: vit_torch.ViT, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.compute = getattr(torch, config.compute_dtype or config.dtype)

    def forward(self, images_BHWC: Tensor, batch: Batch | None = None) -> Tensor:
        x_BCHW, masks = self.normalise(images_BHWC, batch), None if batch is None else batch.masks
        if next(self.model.parameters()).dtype == self.compute:
            return self.model(x_BCHW, masks)
        cast = {name: p.to(self.compute) for name, p in self.model.named_parameters()}
        return functional_call(self.model, cast, (x_BCHW, masks))

    def normalise(self, images_BHWC: Tensor, mix: Batch | None = None) -> Tensor:
        offset, scale = (
            torch.as_tensor(c, device=images_BHWC.device) for c in offset_and_scale(self.config.preprocessing)
        )
        x_BHWC = (images_BHWC.float() - offset) * scale
        if mix is not None and self.config.augmentation.mixes:
            x_BHWC = mixed(x_BHWC.to(torch.promote_types(self.compute, torch.float32)), mix)
        return x_BHWC.permute(0, 3, 1, 2).to(self.compute)


def join_processes() -> tuple[int, int, torch.device]:
    """(process, processes, device) of this process; under torchrun, joins the others."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if processes == 1:
        return 0, 1, device
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), processes, device


def mixed(x_BHWC: Tensor, batch: Batch) -> Tensor:
    """Images mixed with the others of their pairs, by the batch's shares and boxes."""
    B, H, W, C = x_BHWC.shape
    partner_BHWC = x_BHWC.reshape(B // 2, 2, H, W, C).flip(1).reshape(B, H, W, C)
    top, left, bottom, right = (side[:, None, None] for side in batch.boxes_B4.T)
    y_H1, x_1W = torch.arange(H, device=x_BHWC.device)[:, None], torch.arange(W, device=x_BHWC.device)
    inside_BHW = (y_H1 >= top) & (y_H1 < bottom) & (x_1W >= left) & (x_1W < right)
    own_BHW1 = torch.where(inside_BHW, 0, batch.own_B[:, None, None])[..., None].to(x_BHWC)
    return own_BHW1 * x_BHWC + (1 - own_BHW1) * partner_BHWC


def total_loss(config: TrainConfig, logits_BC: Tensor, batch: Batch) -> Tensor:
    """The loss summed over the examples that count, in float32 at least."""
    logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    targets_BC, weights_B = batch.targets_BC.to(logits_BC), batch.weights_B.to(logits_BC)
    if config.loss == "softmax":
        losses_B = F.cross_entropy(logits_BC, targets_BC, reduction="none")
    else:
        losses_B = F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").sum(dim=-1)
    return (losses_B * weights_B).sum()
