"""The PyTorch engine; under torchrun, one of several processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import filterfalse
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

import vit_torch
from vit_core import flops
from vit_core.arrays import convert
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.image_batches import ImageArrays
from vit_core.lora import adapter_rows
from vit_core.masks import rows_of
from vit_core.naflex import PatchedImages
from vit_core.parameters import DECODER, Parameter, initial_value
from vit_core.storage import Location
from vit_torch import arrays, lora, masked_autoencoder
from vit_torch.layers import mean_of_heads
from vit_train.config import Mesh, TrainConfig
from vit_train.data.batches import Batch
from vit_train.engine import Predictor
from vit_train.engines.torch import many_tensors
from vit_train.engines.torch.losses import distillation_loss, total_loss
from vit_train.engines.torch.member import Member
from vit_train.engines.torch.network import Network
from vit_train.engines.torch.optimizers import OptimizerUpdate, clip, is_whole
from vit_train.engines.torch.peak import matmul_flops
from vit_train.engines.torch.recorded import RecordedUpdate, may_be_recorded
from vit_train.engines.torch.sharding import (
    accumulating,
    blocks_of,
    gather_slices,
    is_sharded,
    local_slice,
    resolve_mesh,
    shard,
    share,
    slice_like,
    slicing_of,
)
from vit_train.engines.torch.transfers import Arriving
from vit_train.processes import read_together
from vit_train.step_folders import read_step, write_step
from vit_train.step_rates import step_rates
from vit_train.step_result import StepResult


class TorchEngine(Member):
    """A module, its optimizer, and the moving average of its weights: complete in every process, or a slice in each.

    weights: to begin from; without them, new ones by the config's seed. saved: the folder of a step, to resume at
    instead; DamagedError, in every process, where one of them finds it damaged. teacher: of a run that distills.
    """

    def __init__(
        self,
        config: TrainConfig,
        weights: Checkpoint | None = None,
        saved: Location | None = None,
        teacher: Checkpoint | None = None,
    ) -> None:
        super().__init__()
        if self.device.type == "cuda":
            torch.set_num_threads(1)  # the host only copies: idle threads would spin and take cores from the workers
        self.config, self.table = config, config.table
        self.skippable = config.skippable
        mesh, step, statistics = resolve_mesh(config, self.joined), 0, None
        if saved is not None:
            weights, step, statistics = read_together(self.joined, lambda: read_step(saved, config))
        model = self._model(weights)
        lora.attach(model, config.lora, self._adapters(weights))
        self.trained = tuple(config.factors())
        for name, p in model.named_parameters():
            p.requires_grad_(name in self.trained)
        compute = getattr(torch, config.compute_dtype or config.dtype)
        reduce = getattr(torch, config.reduce_dtype or config.dtype)
        self.network = Network(model.train(), config.preprocessing, compute, config.augmentation.mixes)
        if mesh.fsdp > 1:
            shard(model, mesh, self.device, compute, reduce)
        self.network.to(self.device)
        self._compile(model)
        self.teacher = None if teacher is None else self._network_of(teacher, mesh, compute)
        self.teacher_flops = 0 if teacher is None else sum(flops.forward(teacher.config.model).values())
        several = self.processes > 1 and mesh.fsdp == 1
        self.parallel = share(self.network, reduce) if several else self.network
        self.params: dict[str, Tensor] = dict(model.named_parameters())
        self.slices = {name: local_slice(p) for name, p in self.params.items()}
        self.key_biases = {
            name: slice_like(key_bias(self.table[name]), self.params[name]).to(self.device)
            for name in self.trained
            if self.table[name].key_bias is not None
        }
        self.skipped_updates = torch.zeros((), device=self.device)
        self.slicing = slicing_of(self.params[self.trained[0]])
        self.update = OptimizerUpdate(config.optimizer, self.table, config.factors(), self.slices, self.slicing)
        averaged = self.trained if config.ema is not None else ()
        self.averages = {name: self.slices[name].clone() for name in averaged}
        recordable = self._compiles and self.device.type == "cuda" and self.update.on_device
        self.recorded = RecordedUpdate() if recordable and may_be_recorded(config, self.processes) else None
        if statistics is not None:
            self.restore(step, statistics)

    def _model(self, weights: Checkpoint | None) -> vit_torch.ViT:
        """The model to train, with given weights, or new ones by the config's seed; new are those of a decoder."""
        config = self.config
        if config.masked is not None:
            given = {} if weights is None else config.fitted(weights).arrays
            values = {
                name: convert(given[name] if name in given else initial_value(row, config.seed), config.dtype)
                for name, row in self.table.items()
            }
            return masked_autoencoder.from_arrays(config.model, config.masked, values, remat=config.remat)
        if weights is None:
            return vit_torch.from_seed(config.model, config.seed, dtype=config.dtype, remat=config.remat)
        own = config.fitted(weights).with_arrays(weights.arrays)  # without adapters
        return vit_torch.load(own, dtype=config.dtype, remat=config.remat)

    @property
    def state_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes of each tensor of the state, in total and in this process."""
        sizes = {}
        state = {f"params/{name}": x for name, x in self.slices.items()} | self._statistics()
        for key, x in state.items():
            name = key.partition("/")[2]
            elsewhere = 0 if is_whole(key) else self.params[name].numel() - self.slices[name].numel()
            sizes[key] = x.nbytes + elsewhere * x.element_size(), x.nbytes
        return sizes

    @property
    def average(self) -> Predictor | None:
        """Predicts with the moving average of the weights; None if there is none."""
        return None if self.config.ema is None else _AveragePredictor(self)

    @property
    def peak_flops(self) -> float:
        """FLOP/s of matrix products in the compute dtype on all devices, if each is as fast as that of this process."""
        return self.devices * matmul_flops(self.config.compute_dtype or self.config.dtype, self.device)

    profile_opened_by = "ui.perfetto.dev, or TensorBoard with torch-tb-profiler"

    @contextmanager
    def profiled(self, folder: Path) -> Iterator[None]:
        """Within the context what this process and its device do is recorded; then it is written to a file in the
        folder."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        with profile(activities=activities, on_trace_ready=tensorboard_trace_handler(str(folder))):
            yield

    def train_step(self, batch: Batch, step: int, stop: bool = False) -> StepResult:
        """Update number `step` (from 0), by this process's rows; returns what was computed before it, or will be: the
        host does not wait for the device.

        A loss or gradient that is not finite, or a loss that has exploded, leaves the state as it is; after more of
        them than `skippable`, every later update does too.
        """
        numbers = (batch.weights_B != 0).sum(), stop, *step_rates(self.config, step)
        parts = self._split_batch(batch)
        on_device = self.on_device(np.array(numbers, self.config.dtype))
        recorded = self.recorded
        result = self._update(on_device, parts) if recorded is None else recorded(self._update, on_device, parts)
        return StepResult(*Arriving(result).parts((1, len(self.trained), 1)))

    def _update(self, numbers: Tensor, parts: Sequence[Batch]) -> Tensor:
        """Changes the state by a batch; the host reads nothing from the device.

        numbers: how many examples count, whether this process wants to stop, and the rates of the step
        (vit_train.step_rates). Returns the loss, the squared norms of the gradients, and how many processes want to
        stop, in one tensor.
        """
        counts, (learning_rate, fraction, _, added) = numbers[:2], numbers[2:].unbind()
        loss = self._gradients(parts, counts)
        gradients = {
            name: local_slice(gradient) for name in self.trained if (gradient := self.params[name].grad) is not None
        }
        for name, key in self.key_biases.items():
            gradients[name].masked_fill_(key, 0)
        norms_P = many_tensors.squared_norms(list(gradients.values()))
        self.slicing.sum([norms_P])
        valid = self._valid(loss, norms_P)
        if self.config.optimizer.clip_norm:
            clip(gradients, norms_P, self.config.optimizer.clip_norm)
        self.update.step(gradients, learning_rate, fraction, valid)
        self._update_averages(added * valid)
        return torch.cat((loss[None], norms_P, counts[1:]))

    @property
    def skipped(self) -> int:
        """Number of updates skipped so far; waits for the device."""
        return int(self.skipped_updates)

    def _valid(self, loss: Tensor, norms_P: Tensor) -> Tensor:
        """1 if the update may be made, otherwise 0, as a tensor, so that the host does not wait for it. Counts skipped
        updates."""
        may_go_on = self.skipped_updates <= self.skippable
        finite = (loss <= self.config.loss_limit) & torch.isfinite(norms_P.sum())
        self.skipped_updates += may_go_on & ~finite
        return (may_go_on & finite).to(loss.dtype)

    @torch.no_grad()
    def predict(self, images_BHWC: ImageArrays, averaged: bool = False) -> np.ndarray:
        """Logits [B, classes] in evaluation of uint8 images, both for this process's rows; averaged: with the moving
        average of the weights. Every process has to call it the same number of times."""
        self.network.eval()
        with self._averages_as_weights() if averaged else nullcontext():
            images = self.images_on_device(images_BHWC, self.config.model, self.config.dtype)
            logits_BC = self.network(images)
            if is_sharded(self.network.model):
                self.network.model.reshard()  # otherwise it keeps gathered weights, which a change leaves outdated
        self.network.train()
        logits: np.ndarray = logits_BC.cpu().to(getattr(torch, self.config.dtype)).numpy()
        return logits

    @torch.no_grad()
    def losses(self, batch: Batch) -> np.ndarray:
        """float64 [B]: the loss of each image of a masked autoencoder, in evaluation; this process's rows."""
        masks = {site: self.on_device(mask) for site, mask in batch.masks.items()}
        losses_B = self.network(self.on_device(batch.images_BHWC), batch._replace(masks=masks))
        if is_sharded(self.network.model):
            self.network.model.reshard()
        losses: np.ndarray = losses_B.cpu().double().numpy()
        return losses

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The model's parameters, or their moving average, in the layout on disk: in process 0; every process has to
        call it."""
        chosen = self.slices | self.averages if averaged else self.slices
        return self._gathered({name: x for name, x in chosen.items() if not name.startswith(DECODER)})

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's statistics, the moving average and "skipped": "<kind>/<canonical name>" in the layout on
        disk; of a masked autoencoder also the decoder ("params/decoder..."). In process 0; every process has to call
        it."""
        # Where the run stops because of one skipped update too many, that one will be tried again.
        skipped = np.asarray(min(self.skipped, self.skippable), np.int64)
        return self._gathered(self._statistics()) | {"skipped": skipped}

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets the state to what `statistics` of either engine returned before update number `step`."""
        slices = {key: arrays.from_numpy(statistics[key]) for key in self._statistics()}
        for key in filterfalse(is_whole, slices):
            slices[key] = slice_like(slices[key], self.params[key.partition("/")[2]])
        self.skipped_updates.fill_(int(statistics.get("skipped", np.zeros(()))))
        self.skippable = max(self.config.skippable, self.skipped)  # the config may have allowed more at that time
        self.update.restore(step - self.skipped, slices)
        for name, average in self.averages.items():
            average.copy_(slices[f"average/{name}"])
        for key, decoder in self._decoder().items():
            decoder.copy_(slices[key])

    def save(self, folder: Location, config: CheckpointConfig) -> None:
        """Writes a step's folder."""
        weights, statistics = self.export(), self.statistics()
        if self.process == 0:
            write_step(folder, config, weights, statistics, self.config.lora)

    def wait_until_saved(self) -> None:
        """Returns immediately: `save` writes everything before it returns."""

    def _adapters(self, weights: Checkpoint | None) -> dict[str, np.ndarray]:
        """The adapters' matrices: those among the weights of a saved step, or new ones by the config's seed."""
        given = {} if weights is None else weights.arrays
        return {
            name: given[name] if name in given else initial_value(row, self.config.seed)
            for name, row in adapter_rows(self.config.model, self.config.lora).items()
        }

    def _gradients(self, parts: Sequence[Batch], counts: Tensor) -> Tensor:
        """Sets the gradients of the mean loss over the examples that count, and returns the loss.

        counts: of the examples that count, and of the processes that want to stop; of all processes afterwards.
        """
        self.network.zero_grad()
        if self.processes > 1:
            dist.all_reduce(counts)
        count, loss = counts[0].clamp(min=1), torch.zeros_like(counts[0])
        for i, part in enumerate(parts):
            with accumulating(self.parallel, self.network.model) if i + 1 < len(parts) else nullcontext():
                part_loss = self._part_loss(part).to(loss) / count
                (part_loss * self.processes).backward()  # the gradients of the processes are averaged
            loss += part_loss.detach()
        if self.processes > 1:
            dist.all_reduce(loss)
        return loss

    def _part_loss(self, part: Batch) -> Tensor:
        """The loss of a part of a batch, summed over its examples."""
        if self.teacher is None:
            return total_loss(self.config, self.parallel(part.images_BHWC, part), part)
        with torch.no_grad():
            as_it_is = part._replace(masks={}, patch_size=None)
            heads = self.teacher(part.images_BHWC, as_it_is, return_heads=True)
        taught = mean_of_heads(heads, pre_logits=True), mean_of_heads(heads)
        student = self.parallel(part.images_BHWC, part, return_heads=True)
        return distillation_loss(self.config, student, taught, part)

    def _network_of(self, teacher: Checkpoint, mesh: Mesh, compute: torch.dtype) -> Network:
        """The teacher's network in evaluation, shared by the processes as the student is."""
        model = vit_torch.load(teacher, dtype=compute).requires_grad_(False)
        network = Network(model, teacher.config.preparation()[0], compute, self.config.augmentation.mixes)
        if mesh.fsdp > 1:
            shard(model, mesh, self.device, compute)
        self._compile(model)
        return network.to(self.device).eval()

    @property
    def _compiles(self) -> bool:
        return self.device.type == "cuda" if self.config.compile is None else self.config.compile

    def _compile(self, model: vit_torch.ViT) -> None:
        """Compiles each block, if the config asks for it."""
        if self._compiles:
            for block in blocks_of(model):
                block.compile()

    def _split_batch(self, batch: Batch) -> list[Batch]:
        """The batch on the device, split into parts."""
        size, whole = len(batch.weights_B) // self.config.accumulation, batch.images_BHWC
        parts = []
        for first in range(0, len(batch.weights_B), size):
            rows = slice(first, first + size)
            part = PatchedImages(*(x[rows] for x in whole)) if isinstance(whole, PatchedImages) else whole[rows]
            images = self.images_on_device(part, self.config.model, self.config.dtype)
            targets, weights, own_share, boxes = (self.on_device(array[rows]) for array in batch[1:5])
            masks = {site: self.on_device(rows_of(site, mask, rows)) for site, mask in batch.masks.items()}
            parts.append(Batch(images, targets, weights, own_share, boxes, masks, None, batch.patch_size))
        return parts

    @torch.no_grad()
    def _update_averages(self, share: Tensor) -> None:
        weights = [self.slices[name] for name in self.averages]
        many_tensors.move(list(self.averages.values()), weights, share)

    @contextmanager
    def _averages_as_weights(self) -> Iterator[None]:
        """Within the context the moving averages and the weights are exchanged."""

        def exchange() -> None:
            for name, average in self.averages.items():
                weights = self.slices[name].clone()
                self.slices[name].copy_(average)
                average.copy_(weights)

        exchange()
        try:
            yield
        finally:
            exchange()

    def _statistics(self) -> dict[str, Tensor]:
        """This process's slices of the statistics, the moving averages and a decoder."""
        averages = {f"average/{name}": x for name, x in self.averages.items()}
        return self.update.statistics() | averages | self._decoder()

    def _decoder(self) -> dict[str, Tensor]:
        """This process's slices of a masked autoencoder's decoder, "params/<canonical name>"; else nothing."""
        return {f"params/{name}": x for name, x in self.slices.items() if name.startswith(DECODER)}

    def _gathered(self, slices: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Whole arrays in process 0, nothing in the others, from the slices of all; keys end in canonical names."""
        gathered = {}
        for key, x in slices.items():
            tensor = x if is_whole(key) else gather_slices(x, self.params[key.rpartition("/")[2]])
            if self.process == 0:
                gathered[key] = arrays.to_numpy(tensor).copy()
        return gathered


class _AveragePredictor(Member):
    """Predicts with the moving average of an engine's weights."""

    def __init__(self, engine: TorchEngine) -> None:
        super().__init__()
        self.engine = engine

    def predict(self, images_BHWC: ImageArrays) -> np.ndarray:
        """Logits [B, classes] of uint8 images, both this process's rows."""
        return self.engine.predict(images_BHWC, averaged=True)


def key_bias(row: Parameter) -> Tensor:
    """bool, in the parameter's shape on disk: where the keys' bias is (vit_core.parameters.Parameter.key_bias)."""
    mask = torch.zeros(row.jax_shape, dtype=torch.bool)
    mask[row.key_bias] = True
    return mask.reshape(row.shape)
