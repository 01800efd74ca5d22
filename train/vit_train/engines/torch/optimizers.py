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
from vit_train.engines.torch.slicing import WHOLE, Piece, Slicing

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
MEANS = {"exp_avg_sq_rows", "exp_avg_sq_columns"}
"""The statistics that are means over a matrix's rows or columns; every process has all of them, of whole matrices."""


class OptimizerUpdate:
    """A torch optimizer and its statistics, for tensors that it changes in place: parameters, or slices of them.

    Adafactor, LAMB and Muon work on views of parameters: a tensor must keep its memory (no `.to(device)` afterwards).
    """

    def __init__(
        self,
        config: Optimizer,
        rows: Mapping[str, Parameter],
        factors: Mapping[str, float],
        params: Params,
        slicing: Slicing = WHOLE,
    ) -> None:
        self.config, self.factors = config.resolved(), factors
        self.rows = {name: rows[name] for name in self.factors}
        self.slicing, self.by_matrix = slicing, config.by_matrix
        self.pieces = {name: slicing.pieces(row) for name, row in self.rows.items()} if self.by_matrix else {}
        self.params = {name: params[name] for name in self.factors}
        self.views = {name: self._views(name, p) for name, p in self.params.items()}
        """The tensors of each parameter that the optimizer updates: its matrices, or this process's pieces of them; for
        optimizers that see no matrices, the parameter itself, or its slice."""
        single = all(x.dtype == torch.float32 for x in self.params.values())
        self.on_device = config.name in WITHOUT_WAITING and single
        """Whether the host does not wait for the device in a step, because it reads no value from it."""
        pieces = {x: one for name, those in self.pieces.items() for x, one in zip(self.views[name], those, strict=True)}
        self.optimizers = optimizers_for(self.config, self._groups(), slicing, pieces)
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
        tensor in the layout on disk, or this process's slice of it; means over rows and columns are [matrices of the
        parameter, length] (`is_whole`)."""
        statistics = {}
        for name, views in self.views.items():
            states = [self.state[x] for x in views]
            for field in (field for field in STATISTIC_NAMES if field in states[0]):  # the order of a set varies
                key, found = f"{STATISTIC_NAMES[field]}/{name}", [state[field] for state in states]
                if field in MEANS:
                    statistics[key] = torch.stack(found)
                else:
                    statistics[key] = torch.cat(found).view(self.params[name].shape) if self.by_matrix else found[0]
        return statistics

    def restore(self, step: int, statistics: Params) -> None:
        """Sets what `statistics` of either engine returned after `step` updates, or this process's slices of it."""
        for name, views in self.views.items():
            states = [self.state[x] for x in views]
            for state in states:
                state["step"].fill_(step)
            for field in STATISTIC_NAMES.keys() & states[0].keys():
                stored = statistics[f"{STATISTIC_NAMES[field]}/{name}"]
                parts = stored if field in MEANS else self._views(name, stored.contiguous())
                for state, part in zip(states, parts, strict=True):
                    state[field].copy_(part)

    def _cast_moments(self, dtype: torch.dtype) -> None:
        for state in self.state.values():
            for field in FIRST_MOMENTS & state.keys():
                state[field] = state[field].to(dtype)

    def _views(self, name: str, x: Tensor) -> list[Tensor]:
        return self.slicing.split(x.detach(), self.pieces[name]) if self.by_matrix else [x]

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


def optimizers_for(
    config: Optimizer, groups: list[dict[str, Any]], slicing: Slicing, pieces: Mapping[Tensor, Piece]
) -> list[torch.optim.Optimizer]:
    """The optimizers over groups of tensors, without outer weight decay: for Muon there is also its companion, for what
    is no matrix of a block.

    config: resolved; its class documents the formulas. pieces: where each tensor lies in its matrix, for optimizers
    that see matrices.
    """
    if config.name == "muon":
        matrices, others = ([group for group in groups if group["orthogonal"] == kind] for kind in (True, False))
        defaults = {"lr": 0.0, "momentum": config.momentum, "nesterov": config.nesterov}
        found: list[torch.optim.Optimizer] = [Muon(matrices, defaults, slicing, pieces)] if matrices else []
        return [*found, *([adam(config, others)] if others else [])]
    return [optimizer_for(config, groups, slicing, pieces)]


def adam(config: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's Adam; AdamW is Adam with the outer decay."""
    assert config.beta2 is not None
    assert config.epsilon is not None
    on_cuda = groups[0]["params"][0].is_cuda  # there a step may be recorded
    # Fused: one pass over each tensor instead of one for each operation.
    return torch.optim.Adam(
        groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True, capturable=on_cuda
    )


def optimizer_for(
    config: Optimizer, groups: list[dict[str, Any]], slicing: Slicing, pieces: Mapping[Tensor, Piece]
) -> torch.optim.Optimizer:
    """The one optimizer of all groups."""
    assert config.beta2 is not None
    assert config.epsilon is not None
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        return adam(config, groups)
    if config.name == "lion":
        return Lion(groups, {"betas": betas})
    if config.name == "lamb":
        return Lamb(groups, {"betas": betas, "eps": config.epsilon}, slicing, pieces)
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    defaults = {"beta2": config.beta2, "eps": config.epsilon, "momentum": config.momentum}
    return Adafactor(groups, defaults, slicing, pieces)


def zero_statistics(config: Optimizer, row: Parameter, x: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a tensor before the first step; row: of the parameter that the tensor is a view of, or a
    piece of such a view."""
    fields: dict[str, tuple[int, ...]] = {}
    orthogonal, by_adam = config.orthogonalizes(row), config.name == "muon" and not config.orthogonalizes(row)
    if config.name in ("adamw", "lamb", "lion") or by_adam:
        fields["exp_avg"] = x.shape
    if (config.name in ("sgd", "adafactor") and config.momentum) or orthogonal:
        fields["momentum_buffer"] = x.shape
    whole = row.matrix_shape
    if config.name == "adafactor" and len(whole) == 2 and min(whole) >= FACTORED_FROM:
        fields |= {"exp_avg_sq_rows": whole[:1], "exp_avg_sq_columns": whole[1:]}
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


def is_whole(key: str) -> bool:
    """Whether every process has all of a statistic "<kind>/<canonical name>", not only a slice like its parameter's."""
    return key.partition("/")[0] in {STATISTIC_NAMES[field] for field in MEANS}


class TensorByTensor(torch.optim.Optimizer):
    """An optimizer whose subclasses define how one tensor is changed, by its gradient, its state and its group.

    pieces: where each tensor lies in its matrix, for optimizers that see matrices.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        defaults: dict[str, Any],
        slicing: Slicing = WHOLE,
        pieces: Mapping[Tensor, Piece] | None = None,
    ) -> None:
        super().__init__(groups, defaults)
        self.slicing, self.pieces = slicing, pieces or {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        every = [(p, group) for group in self.param_groups for p in group["params"]]
        # Between processes all sums are sent together; alone, a tensor is still in the cache when it is changed.
        for some in [[each] for each in every] if self.slicing.group is None else [every]:
            for p, _ in some:
                self.state[p]["step"] += 1
            sums = [self.begin(p, p.grad, self.state[p], group) for p, group in some]
            self.slicing.sum(list(chain(*sums)))
            for (p, group), own in zip(some, sums, strict=True):
                self.move(p, p.grad, self.state[p], group, *own)

    def begin(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """What `move` needs of the whole tensor of which p may be a piece, as sums over the pieces. May change g."""
        return ()

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], *sums: Tensor) -> None:
        """Changes p in place by its gradient g, or what `begin` left of it."""
        raise NotImplementedError


class Lion(TensorByTensor):
    """As timm's, except that weight decay is applied outside."""

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], *sums: Tensor) -> None:
        (beta1, beta2), m = group["betas"], state["exp_avg"]
        p.sub_((beta1 * m + (1 - beta1) * g).sign_(), alpha=group["lr"])
        m.mul_(beta2).add_(g, alpha=1 - beta2)


class Lamb(TensorByTensor):
    """LAMB. (By default, timm's also clips by a global norm, and applies the trust ratio only to parameters with weight
    decay.)"""

    def begin(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """The squared norms of the parameter and of the update, which replaces the gradient."""
        update = adams_update(g, state, group).add_(p, alpha=group["weight_decay"])
        return p.square().sum(), update.square().sum()

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], *sums: Tensor) -> None:
        size, length = (squares.sqrt() for squares in sums)
        ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
        p.sub_(g.mul_(ratio), alpha=group["lr"])


def adams_update(g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Adam's update by a gradient, before the learning rate, in the gradient's memory; changes the moments in the
    state."""
    (beta1, beta2), m, v, step = group["betas"], state["exp_avg"], state["exp_avg_sq"], float(state["step"])
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    return torch.div(m / (1 - beta1**step), (v / (1 - beta2**step)).sqrt_() + group["eps"], out=g)


class Adafactor(TensorByTensor):
    """big_vision's Adafactor.

    torch's is the first paper's: it scales steps by the parameter, clips them, and has no momentum. timm's
    AdafactorBigVision keeps the momentum in bfloat16 or float32, and sees a fused qkv as one matrix.
    """

    def begin(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """The means of a factored matrix's squared gradients over its rows and its columns."""
        if "exp_avg_sq_rows" not in state:
            return ()
        squares, piece = g.square().add_(group["eps"]), self.pieces[p]
        means = squares.new_zeros(piece.shape[0])
        means[piece.rows] = squares.mean(1)
        return means, squares.sum(0).div_(piece.shape[0])

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], *sums: Tensor) -> None:
        beta = min(group["beta2"], 1 - float(state["step"]) ** -0.8)
        if sums:
            rows, columns = state["exp_avg_sq_rows"], state["exp_avg_sq_columns"]
            rows.mul_(beta).add_(sums[0], alpha=1 - beta)
            columns.mul_(beta).add_(sums[1], alpha=1 - beta)
            update = g * (rows / rows.mean()).rsqrt_()[self.pieces[p].rows, None] * columns.rsqrt()
        else:
            v = state["exp_avg_sq"].mul_(beta).add_(g.square().add_(group["eps"]), alpha=1 - beta)
            update = g * v.rsqrt()
        if group["momentum"]:
            update = state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=1 - group["momentum"])
        p.sub_(update, alpha=group["lr"])


@torch.no_grad()
def clip(gradients: Params, squared_norms: Tensor, limit: float) -> None:
    """Multiplies gradients in place by limit / max(norm, limit), with the norm of all gradients together. (torch's own
    function adds 1e-6 to the norm.)"""
    scale = limit / squared_norms.sum().sqrt().clamp(min=limit)
    many_tensors.multiply(list(gradients.values()), scale)
