"""Config of a run's optimization: the schedule of the learning rate and the optimizer, with their formulas."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vit_core.errors import InputError, unknown_name
from vit_core.parameters import Parameter
from vit_core.schema import Flag, NonNegative, Positive, Rate, Real, Schema
from vit_train.config.data import Above0, Fraction, Magnitude

FACTORED_FROM = 32
"""Adafactor factors matrices whose sides are both at least this long, as in big_vision."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of Muon's iteration s <- a s + b s^3 + c s^5 on singular values: Keller Jordan's."""
NEWTON_SCHULZ_STEPS = 5
MUON_RMS = 0.2
"""What Muon's updates are scaled to, a root mean square that AdamW's have too (arXiv:2502.16982, section 2.2)."""

_BETA2_AND_EPSILON = {"lion": (0.99, 1e-8), "lamb": (0.999, 1e-6), "adafactor": (0.999, 1e-30)}
"""Defaults of the optimizers that differ from Adam's."""


class Schedule(Schema):
    """The learning rate as a fraction of its peak, in float64, the same for both engines."""

    name: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    """After the warm-up: half a cosine; a line; the peak; big_vision's sqrt(timescale / (timescale + steps since the
    warm-up))."""
    warmup_steps: NonNegative = 0
    """Steps of linear growth, from peak / warmup_steps."""
    cooldown_steps: NonNegative = 0
    """Number of last steps of a constant or rsqrt schedule that follow a line toward `final`."""
    timescale: Positive = 10_000
    """Timescale of rsqrt, in steps."""
    final: Fraction = 0.0
    """Fraction of the peak at which cosine, linear and cooldown end: the value at the step after the last."""

    @model_validator(mode="after")
    def _check_cooldown(self) -> Self:
        if self.cooldown_steps and self.name in ("cosine", "linear"):
            raise ValueError(f"cooldown_steps: {self.name} ends at `final` without one; for constant and rsqrt")
        return self

    def fraction(self, step: float, steps: float) -> float:
        """Learning rate at `step` (from 0) of a run of `steps`, as a fraction of the peak; between two steps where a
        run's batch size was changed."""
        if step < self.warmup_steps:
            return min((step + 1) / self.warmup_steps, 1.0)
        since, until = step - self.warmup_steps, steps - self.warmup_steps
        if self.name == "cosine":
            return self.final + (1 - self.final) * float(0.5 * (1 + np.cos(np.pi * since / until)))
        if self.name == "linear":
            return self.final + (1 - self.final) * (1 - since / until)
        left = min((steps - step) / (self.cooldown_steps + 1), 1.0)
        since = min(since, until - self.cooldown_steps - 1)
        level = 1.0 if self.name == "constant" else float(np.sqrt(self.timescale / (self.timescale + since)))
        return self.final + (level - self.final) * left if self.cooldown_steps else level


class Optimizer(Schema):
    """The update of parameters p by gradients g; lr is the learning rate of the step (times the layer's factor).

    adamw: p <- p - lr (m / (sqrt(v) + epsilon)), m and v bias-corrected (arXiv:1711.05101).
    lion: p <- p - lr sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g (arXiv:2302.06675).
    sgd: b <- momentum b + g; p <- p - lr b.
    adafactor: big_vision's (arXiv:2106.04560, section 3.4): u = g / sqrt(v), v = beta v + (1 - beta)(g g + epsilon)
        with beta = min(beta2, 1 - t^-0.8) at step t = 1, 2, ..., for matrices only the means over rows and columns;
        b <- momentum b + (1 - momentum) u; p <- p - lr b. Matrices with a side below 32 are not factored.
    lamb: Adam's update u + weight_decay p, times |p| / |u + weight_decay p| of the tensor (1 where either is zero)
        (arXiv:1904.00962).
    muon: for the matrices of the blocks b <- momentum b + (1 - momentum) g; p <- p - lr 0.2 sqrt(max(rows, columns))
        U f(S) V^T, where U S V^T is momentum b + (1 - momentum) g (without `nesterov`: b) divided by its norm, and f
        five times s <- 3.4445 s - 4.775 s^3 + 2.0315 s^5, which brings every singular value near 1 (Keller Jordan's
        Muon with the scale of arXiv:2502.16982, so that AdamW's lr and weight_decay fit). For all other parameters
        adamw.
    Adafactor, LAMB and Muon treat a tensor as the matrix (or matrices: queries, keys and values are separate) that its
    row in the parameter table defines. Clipping comes first, by the norm of all gradients together.
    """

    name: Literal["adamw", "lion", "sgd", "adafactor", "lamb", "muon"] = "adamw"
    """The algorithm: one of those in the docstring of Optimizer."""
    learning_rate: Magnitude = 1e-3
    """Peak of the schedule."""
    weight_decay: Magnitude = 0.0
    """Weight decay of the parameters for which the parameter table has `decay`, the kernels; see the field `decay` for
    its formula."""
    decay: Literal["decoupled", "independent", "coupled"] = "decoupled"
    """Decoupled: lr weight_decay p is subtracted from p (torch, optax; LAMB: inside its norm). Independent: the
    schedule's fraction times weight_decay p is subtracted, independent of the peak and the layer (big_vision). Coupled:
    added to the gradient before momentum; SGD only."""
    beta1: Rate = 0.9
    """For AdamW (Muon's too), LAMB and Lion."""
    beta2: Rate | None = None
    """For AdamW (Muon's too) and LAMB (default 0.999) and Lion (0.99); upper limit of Adafactor's (0.999)."""
    epsilon: Above0 | None = None
    """For AdamW (Muon's too, default 1e-8) and LAMB (1e-6), added to the root; for Adafactor (1e-30), to the squared
    gradients."""
    momentum: Rate = 0.9
    """For SGD, Adafactor and Muon (for which 0.95 is usual); 0: none, but for Muon."""
    nesterov: Flag = True
    """For Muon: Nesterov momentum, see its formula."""
    moment_dtype: Literal["bfloat16"] | None = None
    """Type in which the first moment or momentum is stored; none: that of the parameters. (Second moments keep the
    parameters' type: in bfloat16, 0.999 v rounds to v.)"""
    clip_norm: Above0 | None = None
    """Gradients are multiplied by c / max(norm, c), with the norm of all gradients together."""
    layer_decay: Annotated[Real, Field(gt=0.0, le=1.0)] = 1.0
    """The learning rate at depth d is multiplied by layer_decay^(depth + 1 - d): embeddings have depth 0, blocks 1 ...,
    the head depth + 1 (arXiv:2106.08254)."""
    frozen: tuple[str, ...] = ()
    """Patterns of names of parameters that are not trained ("patch_embed.*", "blocks.[0-5].*")."""

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        if self.decay == "coupled" and self.name != "sgd":
            raise ValueError(f"decay: 'coupled' is for name 'sgd', not '{self.name}'")
        if self.decay == "independent" and self.name == "lamb":
            raise ValueError("decay: LAMB's is inside its norm; only 'decoupled' is for name 'lamb'")
        return self

    def resolved(self) -> Self:
        """The same optimizer with beta2 and epsilon set to its defaults if they are none."""
        beta2, epsilon = _BETA2_AND_EPSILON.get(self.name, (0.999, 1e-8))
        return self.replace(
            beta2=beta2 if self.beta2 is None else self.beta2, epsilon=epsilon if self.epsilon is None else self.epsilon
        )

    @property
    def decays_inside(self) -> bool:
        """Whether weight decay is part of the optimizer's update, instead of being subtracted separately."""
        return self.name == "lamb" or self.decay == "coupled"

    @property
    def by_matrix(self) -> bool:
        """Whether the optimizer treats parameters as the matrices of the parameter table."""
        return self.name in ("adafactor", "lamb", "muon")

    def orthogonalizes(self, row: Parameter) -> bool:
        """Whether Muon's own rule applies to a parameter: a matrix of a block."""
        return self.name == "muon" and row.layer is not None and row.matrix is not None

    def factors(self, rows: Mapping[str, Parameter]) -> dict[str, float]:
        """Factor on the learning rate of each trained parameter, by canonical name; frozen ones are left out.

        Raises InputError for a pattern that matches no parameter, and if no parameter is left to train.
        """
        for pattern in self.frozen:
            if not any(fnmatchcase(name, pattern) for name in rows):
                raise unknown_name("parameter pattern in optimizer.frozen", pattern, rows)
        last = max(row.depth for row in rows.values())
        factors = {
            name: self.layer_decay ** (last - row.depth)
            for name, row in rows.items()
            if not any(fnmatchcase(name, pattern) for pattern in self.frozen)
        }
        if not factors:
            raise InputError(f"optimizer.frozen: {', '.join(self.frozen)} leaves nothing to train")
        return factors
