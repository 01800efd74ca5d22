"""The PyTorch engine: the verbs of train.run.Engine; under torchrun, one of several processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import vit_torch
from vit_core.checkpoint import Checkpoint, CheckpointConfig
from vit_core.errors import InputError
from vit_core.masks import POSITIONS
from vit_core.parameters import Parameter, parameters
from vit_core.preprocess import offset_and_scale
from vit_torch import arrays

from . import steps
from .config import TrainConfig
from .data import Batch
from .measured import Measured
from .optimizers_torch import Update, clip, squared_norms
from .processes_torch import join
from .sharing_torch import mesh_of, part, part_of, shard, summed, waiting, whole


class TorchEngine:
    """A module, its optimizer, and the moving average of its weights: whole in every process, or a slice in each.

    weights: to begin from; without, new ones by the config's seed. saved: a step's folder, to go on from instead.
    """

    name = "torch"
    primary = True

    def __init__(self, config: TrainConfig, weights: Checkpoint | None = None, saved: Path | None = None) -> None:
        self.config, self.table = config, parameters(config.model)
        joined = join()
        self.process, self.processes, self.total = joined.index, joined.count, joined.total
        self.devices = self.shares = self.processes
        self.device, self.hardware = joined.device, joined.hardware
        mesh, step, statistics = mesh_of(config, joined), 0, None
        if saved is not None:
            weights, step, statistics = steps.read(saved)
        if weights is None:
            model = vit_torch.from_seed(config.model, config.seed, dtype=config.dtype, remat=config.remat)
        else:
            model = vit_torch.load(config.fitted(weights), dtype=config.dtype, remat=config.remat)
        self.trained = tuple(config.optimizer.factors(self.table))
        for name, p in model.named_parameters():
            p.requires_grad_(name in self.trained)
        self.network = Network(model.train(), config)
        if mesh.fsdp > 1:
            shard(model, mesh, self.device, self.network.compute)
        self.network.to(self.device)
        several = self.processes > 1 and mesh.fsdp == 1
        self.shared = DistributedDataParallel(self.network) if several else self.network
        self.params: dict[str, Tensor] = dict(model.named_parameters())
        self.own = {name: part(p) for name, p in self.params.items()}
        self.key_biases = {
            name: part_of(key_bias(self.table[name]), self.params[name]).to(self.device)
            for name in self.trained
            if self.table[name].key_bias is not None
        }
        self.update = Update(config.optimizer, self.table, self.own)
        averaged = self.trained if config.ema is not None else ()
        self.average = {name: self.own[name].clone() for name in averaged}
        self.skipped = 0
        if statistics is not None:
            self.restore(step, statistics)

    @property
    def held(self) -> dict[str, tuple[int, int]]:
        """Bytes of each tensor of the state, in all and here."""
        found = {}
        for key, x in ({f"params/{name}": x for name, x in self.own.items()} | self._statistics()).items():
            name = key.partition("/")[2]
            elsewhere = self.params[name].numel() - self.own[name].numel()
            found[key] = x.nbytes + elsewhere * x.element_size(), x.nbytes
        return found

    def rows(self, size: int) -> np.ndarray:
        """Which of a batch's rows this process makes. InputError where they cannot be shared evenly."""
        count, rest = divmod(size, self.processes)
        if rest:
            raise InputError(
                f"batch_size: {size} cannot be shared by {self.processes} processes; make it a multiple of them"
            )
        return np.arange(self.process * count, (self.process + 1) * count)

    def train_step(self, batch: Batch, step: int, stop: bool = False) -> Measured:
        """Update number `step` (from 0), by this process's rows; gives what was found before it.

        A loss or gradient that is not finite, or a loss that has exploded, leaves the state as it is; so does
        everything from the first one on that is more than the config lets be skipped.
        """
        loss, stopping = self._gradients(batch, stop)
        gradients = {name: part(gradient) for name in self.trained if (gradient := self.params[name].grad) is not None}
        for name, key in self.key_biases.items():
            gradients[name].masked_fill_(key, 0)
        norms_P = summed(squared_norms(gradients), self.params[self.trained[0]])
        # Off the device at once: what they are decides about the update.
        found = torch.cat((loss[None], norms_P, stopping[None])).cpu()
        measured = Measured(found[0], found[1:-1], found[-1])
        if self.skipped > self.config.skippable:
            return measured
        if not (measured.loss <= self.config.loss_limit and torch.isfinite(measured.squared_norms.sum())):
            self.skipped += 1
            return measured
        if self.config.optimizer.clip_norm:
            clip(gradients, norms_P, self.config.optimizer.clip_norm)
        fraction = self.config.schedule.fraction(step, self.config.steps)
        self.update.step(gradients, self.config.learning_rate(step), fraction)
        self._follow()
        return measured

    @torch.no_grad()
    def logits(self, images_BHWC: np.ndarray, averaged: bool = False) -> np.ndarray:
        """Logits [B, classes] in evaluation, from uint8 images; of the moving average if asked for.

        Every process must ask, as often as the others.
        """
        self.network.eval()
        with self._exchanged() if averaged else nullcontext():
            logits_BC = self.network(self._on_device(images_BHWC))
            if isinstance(self.network.model, FSDPModule):
                self.network.model.reshard()  # it keeps what a backward pass would need, past a change of weights
        self.network.train()
        return logits_BC.cpu().to(getattr(torch, self.config.dtype)).numpy()

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The parameters, or their moving average, in the layout on disk: in process 0; every process must ask."""
        return self._gathered(self.own | self.average if averaged else self.own)

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's, and the moving average: "<kind>/<canonical name>" in the layout on disk; "skipped" updates.

        In process 0; every process must ask.
        """
        # The one too many is not among them: it will be tried again.
        skipped = np.asarray(min(self.skipped, self.config.skippable), np.int64)
        return self._gathered(self._statistics()) | {"skipped": skipped}

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets what `statistics` gave before step number `step` (in either engine, among however many processes)."""
        own = {
            key: part_of(arrays.from_numpy(array), self.params[name])
            for key, array in statistics.items()
            if (name := key.partition("/")[2]) in self.params
        }
        self.skipped = int(statistics.get("skipped", np.zeros(())))
        # They have been left out, when more were allowed.
        self.config = self.config.replace(skippable=max(self.config.skippable, self.skipped))
        self.update.restore(step - self.skipped, own)
        for name, average in self.average.items():
            average.copy_(own[f"average/{name}"])

    def save(self, folder: Path, config: CheckpointConfig) -> None:
        """Writes a step's folder."""
        weights, statistics = self.export(), self.statistics()
        if self.process == 0:
            steps.write(folder, config, weights, statistics)

    def saved(self) -> None:
        """Nothing is written in the background."""

    def _gradients(self, batch: Batch, stop: bool) -> tuple[Tensor, Tensor]:
        """Sets the gradients of the mean loss over the examples that count, taken in `accumulation` parts.

        Gives the loss, and how many processes are to stop.
        """
        self.network.zero_grad()
        dtype = getattr(torch, self.config.dtype)
        counts = torch.tensor((batch.weights_B.sum(), stop), dtype=dtype, device=self.device)
        if self.processes > 1:
            dist.all_reduce(counts)
        count, loss = counts[0].clamp(min=1), torch.zeros((), dtype=dtype, device=self.device)
        parts = self._parts(batch)
        for i, some in enumerate(parts):
            with waiting(self.shared, self.network.model) if i + 1 < len(parts) else nullcontext():
                logits_BC = self.shared(some.images_BHWC, some)
                part_loss = total_loss(self.config, logits_BC, some).to(dtype) / count
                (part_loss * self.processes).backward()  # processes' gradients are averaged
            loss += part_loss.detach()
        if self.processes > 1:
            dist.all_reduce(loss)
        return loss, counts[1]

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
            average.mul_(self.config.ema).add_(self.own[name], alpha=1 - self.config.ema)

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Within it the moving average and the weights have changed places."""

        def exchange() -> None:
            for name, average in self.average.items():
                held = self.own[name].clone()
                self.own[name].copy_(average)
                average.copy_(held)

        exchange()
        try:
            yield
        finally:
            exchange()

    def _statistics(self) -> dict[str, Tensor]:
        """This process's slices of them."""
        return self.update.statistics() | {f"average/{name}": x for name, x in self.average.items()}

    def _gathered(self, slices: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Whole arrays in process 0, nothing in the others, from the slices of all; keys end in canonical names."""
        found = {}
        for key, x in slices.items():
            tensor = whole(x, self.params[key.rpartition("/")[2]])
            if self.process == 0:
                found[key] = arrays.to_numpy(tensor).copy()
        return found

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
        # FSDP casts as it gathers.
        if isinstance(self.model, FSDPModule) or next(self.model.parameters()).dtype == self.compute:
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


def key_bias(row: Parameter) -> Tensor:
    """Where a parameter on disk holds a bias of the keys: bool."""
    found = torch.zeros(row.jax_shape, dtype=torch.bool)
    found[row.key_bias] = True
    return found.reshape(row.shape)


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
