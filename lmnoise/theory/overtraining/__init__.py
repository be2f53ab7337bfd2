"""Over-training of a two-layer linear network (arXiv 2503.19206), in closed form.

The network `W1 W2 x` learns `A = U diag(sigma) V^T` by gradient flow on `1/2 ||A - W1 W2||_F^2`.
Both factors are square, d x d, and start balanced in the singular basis, `W1 = U diag(sqrt(s0))`,
`W2 = diag(sqrt(s0)) V^T` (`lmnoise.models.regression.TwoLayerLinear`). They stay so: mode i has
the strength s_i(t), all else is zero. Then i.i.d. noise of standard deviation g, the `scale`, on
every entry of both factors stands for whatever is done to the model after pre-training.

The setting, the learning of modes and the fact that sensitivity grows with time are the paper's.
The perturbed loss in closed form, its turning point, the cure by soft-thresholding and the decay
towards the start in fine-tuning are derived here, and checked in the tests by simulation, by
integration of the matrix equations and by training.

Conventions of all functions:
- The last axis of singular values, modes and starts runs over the d modes. **All d singular values
  must be there, the zeros included**: d is read from that axis.
- `time`, `scale` and `decay` have no such axis: their shape, broadcast with the other axes of the
  modes, is that of the batch. `time` (T,) with `singular_values` (d,) gives modes (T, d).
- Computed in float64 whatever `jax_enable_x64` says; differentiable. Results are NumPy arrays;
  inside `jax.jit`, `grad` and `vmap` JAX arrays of the caller's default float type.
- ValueError for what is negative, not finite or does not broadcast. Values under a trace (inside
  `jax.jit`, `grad`, `vmap`) are not checked, shapes are.
"""

from lmnoise.theory.overtraining.learning import (
    loss,
    modes,
    perturbed_loss,
    sensitivity,
    soft_threshold,
)
from lmnoise.theory.overtraining.second_task import (
    FineTuning,
    fine_tuned,
    fine_tuned_limit,
    fine_tuning,
)
from lmnoise.theory.overtraining.simulation import Simulated, simulate_perturbed
from lmnoise.theory.overtraining.turning import turning_point

__all__ = [
    "FineTuning",
    "Simulated",
    "fine_tuned",
    "fine_tuned_limit",
    "fine_tuning",
    "loss",
    "modes",
    "perturbed_loss",
    "sensitivity",
    "simulate_perturbed",
    "soft_threshold",
    "turning_point",
]
