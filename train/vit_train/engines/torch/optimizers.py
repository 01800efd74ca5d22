"""The optimizers of vit_train.config.Optimizer in PyTorch: torch's, and implementations of those that torch does not
have.

engines.jax.optimizers is the same in JAX.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vit_core.parameters import Parameter
from vit_train.config import FACTORED_FROM, Optimizer
from vit_train.engines.torch import many_tensors
from vit_train.engines.torch.muon import Muon

Params = Mapping[str, Tensor]
"""Canonical name -> tensor, of the parameters that are trained."""

STATISTIC_NAMES = {
    "exp_avg": "first_moment",
    "exp_avg_sq": "second_moment",
    "momentum_buffer": "momentum",
    "exp_avg_sq_rows": "second_moment_rows",
    "exp_avg_sq_columns": "second_moment_columns",
}
"""torch's name of a statistic -> the name that both engines and saved steps use."""
WITHOUT_WAITING = ("adamw", "muon")
"""Optimizers whose step reads its rates, and whether to skip the update, on the device."""
FIRST_MOMENTS = {"exp_avg", "momentum_buffer"}
"""The statistics that optimizer.moment_dtype applies to."""


class OptimizerUpdate:
    """A torch optimizer and its statistics, for tensors that it changes in place: parameters, or slices of them.

    Adafactor, LAMB and Muon work on views of whole parameters: a tensor must keep its memory (no `.to(device)`
    afterwards).
    """

    def __init__(
        self, config: Optimizer, rows: Mapping[str, Parameter], factors: Mapping[str, float], params: Params
    ) -> None:
        self.config, self.factors = config.resolved(), factors
        self.rows = {name: rows[name] for name in self.factors}
        self.by_matrix = config.by_matrix
        self.params = {name: params[name] for name in self.factors}
        self.views = {name: self._views(name, p) for name, p in self.params.items()}
        """The tensors of each parameter that the optimizer updates: its matrices, or the parameter itself."""
        single = all(x.dtype == torch.float32 for x in self.params.values())
        self.on_device = config.name in WITHOUT_WAITING and single
        """Whether the host does not wait for the device in a step, because it reads no value from it."""
        self.optimizers = optimizers_for(self.config, self._groups())
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """Statistics of each view."""
        for name, views in self.views.items():
            for x in views:  # torch creates statistics at the first step; a run has them from its start
                self.state[x] = zero_statistics(self.config, self.rows[name], x)
        for optimizer in self.optimizers:
            for x in chain.from_iterable(group["params"] for group in optimizer.param_groups):
                optimizer.state[x] = self.state[x]

    @torch.no_grad()
    def step(self, gradients: Params, learning_rate: Tensor, fraction: Tensor, valid: Tensor | None = None) -> None:
        """One step by all gradients, at the learning rate of the step, which is `fraction` of the peak: scalars.

        valid: a scalar; where it is 0, nothing changes. AdamW and Muon read all of these on the device, in float32; for
        other optimizers and in float64 the host waits for them.
        """
        if self.config.name not in WITHOUT_WAITING:
            if valid is not None and not valid:
                return
            valid = None
        if valid is not None:
            for optimizer in self.optimizers:
                # What torch's GradScaler sets, to leave out a step without asking the device first.
                optimizer.found_inf = 1 - valid.float()  # type: ignore[attr-defined]
        for name, views in self.views.items():
            for x, gradient in zip(views, self._views(name, gradients[name].contiguous()), strict=True):
                x.grad = gradient
        for group in chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers):
            rate = learning_rate * group["factor"]
            group["lr"] = rate if self.on_device else float(rate)
            if group["decays"] and not self.config.decays_inside:
                share = (rate if self.config.decay == "decoupled" else fraction) * self.config.weight_decay
                many_tensors.shrink(group["params"], share if valid is None else share * valid)
        # torch's optimizers need moments of the parameters' dtype: they are rounded again after the step.
        self._cast_moments(x.dtype)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()  # otherwise the next step's backward pass finds these gradients still in memory
        self._cast_moments(moment_dtype(self.config, x))

    def statistics(self) -> dict[str, Tensor]:
        """All that a run needs to resume in either engine, except the number of steps: "<kind>/<canonical name>" ->
        tensor in the layout on disk; means over rows and columns are [matrices of the parameter, length]."""
        statistics = {}
        for name, views in self.views.items():
            states = [self.state[x] for x in views]
            for field in (field for field in STATISTIC_NAMES if field in states[0]):  # the order of a set varies
                key = f"{STATISTIC_NAMES[field]}/{name}"
                statistics[key] = self._to_disk_layout(name, [state[field] for state in states])
        return statistics

    def restore(self, step: int, statistics: Params) -> None:
        """Sets what `statistics` of either engine returned after `step` updates."""
        for name, views in self.views.items():
            for i, x in enumerate(views):
                state = self.state[x]
                state["step"].fill_(step)
                for field in STATISTIC_NAMES.keys() & state.keys():
                    stored = statistics[f"{STATISTIC_NAMES[field]}/{name}"]
                    state[field].copy_(stored.reshape(-1, *state[field].shape)[i] if self.by_matrix else stored)

    def _cast_moments(self, dtype: torch.dtype) -> None:
        for state in self.state.values():
            for field in FIRST_MOMENTS & state.keys():
                state[field] = state[field].to(dtype)

    def _to_disk_layout(self, name: str, views: list[Tensor]) -> Tensor:
        if not self.by_matrix:
            return views[0]
        stacked = torch.stack(views)
        return stacked.reshape(self.rows[name].shape) if stacked.numel() == self.rows[name].size else stacked

    def _views(self, name: str, x: Tensor) -> list[Tensor]:
        return split_matrices(self.rows[name], x.detach()) if self.by_matrix else [x]

    def _groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with the same factor on the learning rate, with weight decay and without, and those
        that Muon's rule applies to."""
        grouped: dict[tuple[float, bool, bool], list[Tensor]] = {}
        for name, views in self.views.items():
            row = self.rows[name]
            grouped.setdefault((self.factors[name], row.decay, self.config.orthogonalizes(row)), []).extend(views)
        inside = self.config.weight_decay if self.config.decays_inside else 0.0
        return [
            {
                "params": views,
                "factor": factor,
                "decays": decays,
                "weight_decay": inside if decays else 0.0,
                "orthogonal": orthogonal,
            }
            for (factor, decays, orthogonal), views in grouped.items()
        ]


def optimizers_for(config: Optimizer, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
    """The optimizers over groups of tensors, without outer weight decay: for Muon there is also its companion, for what
    is no matrix of a block.

    config: resolved; its class documents the formulas.
    """
    if config.name == "muon":
        matrices, others = ([group for group in groups if group["orthogonal"] == kind] for kind in (True, False))
        defaults = {"lr": 0.0, "momentum": config.momentum, "nesterov": config.nesterov}
        found: list[torch.optim.Optimizer] = [Muon(matrices, defaults)] if matrices else []
        return [*found, *([adam(config, others)] if others else [])]
    return [optimizer_for(config, groups)]


def adam(config: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's Adam; AdamW is Adam with the outer decay."""
    assert config.beta2 is not None
    assert config.epsilon is not None
    on_cuda = groups[0]["params"][0].is_cuda  # there a step may be recorded
    # Fused: one pass over each tensor instead of one for each operation.
    return torch.optim.Adam(
        groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True, capturable=on_cuda
    )


def optimizer_for(config: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The one optimizer of all groups."""
    assert config.beta2 is not None
    assert config.epsilon is not None
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        return adam(config, groups)
    if config.name == "lion":
        return Lion(groups, {"betas": betas})
    if config.name == "lamb":
        return Lamb(groups, {"betas": betas, "eps": config.epsilon})
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return Adafactor(groups, {"beta2": config.beta2, "eps": config.epsilon, "momentum": config.momentum})


def zero_statistics(config: Optimizer, row: Parameter, x: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a tensor before the first step; row: of the parameter that the tensor is a view of."""
    fields: dict[str, tuple[int, ...]] = {}
    orthogonal, by_adam = config.orthogonalizes(row), config.name == "muon" and not config.orthogonalizes(row)
    if config.name in ("adamw", "lamb", "lion") or by_adam:
        fields["exp_avg"] = x.shape
    if (config.name in ("sgd", "adafactor") and config.momentum) or orthogonal:
        fields["momentum_buffer"] = x.shape
    if config.name == "adafactor" and x.ndim == 2 and min(x.shape) >= FACTORED_FROM:
        fields |= {"exp_avg_sq_rows": x.shape[:1], "exp_avg_sq_columns": x.shape[1:]}
    elif config.name in ("adamw", "lamb", "adafactor") or by_adam:
        fields["exp_avg_sq"] = x.shape
    dtypes = {field: moment_dtype(config, x) if field in FIRST_MOMENTS else x.dtype for field in fields}
    zeros = {field: x.new_zeros(shape, dtype=dtypes[field]) for field, shape in fields.items()}
    # Fused kernels want the number of steps on the device; the others read it on the host.
    return {"step": torch.zeros((), device=x.device if config.name in WITHOUT_WAITING else "cpu"), **zeros}


def moment_dtype(config: Optimizer, x: Tensor) -> torch.dtype:
    """Type of a tensor's first moment between steps."""
    dtype: torch.dtype = getattr(torch, config.moment_dtype) if config.moment_dtype else x.dtype
    return dtype


class TensorByTensor(torch.optim.Optimizer):
    """An optimizer whose subclasses define how one tensor is changed, by its gradient, its state and its group."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["step"] += 1
                self.move(p, p.grad, self.state[p], group)

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Changes p in place by its gradient g."""
        raise NotImplementedError


class Lion(TensorByTensor):
    """As timm's, except that weight decay is applied outside."""

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), m = group["betas"], state["exp_avg"]
        p.sub_((beta1 * m + (1 - beta1) * g).sign_(), alpha=group["lr"])
        m.mul_(beta2).add_(g, alpha=1 - beta2)


class Lamb(TensorByTensor):
    """LAMB. (By default, timm's also clips by a global norm, and applies the trust ratio only to parameters with weight
    decay.)"""

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        update = adams_update(g, state, group)
        update.add_(p, alpha=group["weight_decay"])
        size, length = norm(p), norm(update)
        ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
        p.sub_(update.mul_(ratio), alpha=group["lr"])


def adams_update(g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Adam's update by a gradient, before the learning rate; changes the moments in the state."""
    (beta1, beta2), m, v, step = group["betas"], state["exp_avg"], state["exp_avg_sq"], float(state["step"])
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    return m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt_() + group["eps"])


class Adafactor(TensorByTensor):
    """big_vision's Adafactor.

    torch's is the first paper's: it scales steps by the parameter, clips them, and has no momentum. timm's
    AdafactorBigVision keeps the momentum in bfloat16 or float32, and sees a fused qkv as one matrix.
    """

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        beta = min(group["beta2"], 1 - float(state["step"]) ** -0.8)
        squares = g.square().add_(group["eps"])
        if "exp_avg_sq_rows" in state:
            rows, columns = state["exp_avg_sq_rows"], state["exp_avg_sq_columns"]
            rows.mul_(beta).add_(squares.mean(1), alpha=1 - beta)
            columns.mul_(beta).add_(squares.mean(0), alpha=1 - beta)
            update = g * (rows / rows.mean()).rsqrt_()[:, None] * columns.rsqrt()
        else:
            v = state["exp_avg_sq"].mul_(beta).add_(squares, alpha=1 - beta)
            update = g * v.rsqrt()
        if group["momentum"]:
            update = state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=1 - group["momentum"])
        p.sub_(update, alpha=group["lr"])


def split_matrices(row: Parameter, x: Tensor) -> list[Tensor]:
    """The matrices (outputs by inputs) of a parameter, for optimizers that use matrices, or its one vector; views of
    the parameter."""
    return list(x.view(-1, *row.matrix_shape))


def norm(x: Tensor) -> Tensor:
    """Norm of all elements. (On a CPU, torch's own adds float32 values one by one: for 4 million values its error is
    1e-4, here 2e-8.)"""
    return x.square().sum().sqrt()


@torch.no_grad()
def clip(gradients: Params, squared_norms: Tensor, limit: float) -> None:
    """Multiplies gradients in place by limit / max(norm, limit), with the norm of all gradients together. (torch's own
    function adds 1e-6 to the norm.)"""
    scale = limit / squared_norms.sum().sqrt().clamp(min=limit)
    many_tensors.multiply(list(gradients.values()), scale)
