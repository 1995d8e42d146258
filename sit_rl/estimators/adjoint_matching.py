"""Adjoint matching: the model learns to move its paths along the gradient of the reward (arXiv 2409.08861).

The optimum is p_base(x)·exp(r(x)) up to a constant, with the reward r = tilt·A of the advantage A. A memoryless sampler
reaches it, one whose samples do not depend on the noise that they start from. With its steps x_{i+1} = m_i(x_i) + s_i ξ
under the base model and m_i^θ under the trained one,

    a_S = ∂r/∂x_S,   a_i = (∂m_i/∂x)ᵀ a_{i+1}                          (the lean adjoint: of the base alone)
    L = E 1/K Σ_{i∈K} ½ |(m_i^θ(x_i) − m_i(x_i))/s_i − s_i a_{i+1}|²     (mean over dimensions),

on states x_i of the trained model's own paths. K are a few evenly spaced noisy steps, other ones in each update. The
regression has its minimum where the trained chain is the base chain tilted by r. As A is the distribution reward's,
whose gradient is taken anew at each step's images, the fixed point minimises tilt·D/σ + KL(p|p_base).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.estimators.base import Estimator, Minibatch, Term
from sit_rl.reward.components import RewardSide
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import Model, bind
from sit_rl.sampling.ode_and_sde_steps import VelocityField, sampler_step
from sit_rl.sampling.sampler_config import SamplerConfig, time_grid, trained_steps


class AdjointMatching(Estimator):
    """One term for each of the chosen steps of the paths."""

    keeps_path = True
    follows_gradient = True

    def __init__(self, config: Config, components: Components):
        """ValueError for a network of the reward that passes no gradient on to its images."""
        super().__init__(config, components)
        self.targets = torch.empty(0)  # float32 [n, S, C, H, W], where a noisy step's mean should be
        probe = torch.zeros(1, *components.sample_shape, device=components.device, requires_grad=True)
        for net in (components.reward_net, *components.more_nets):
            try:
                net.with_gradient(components.pixels(probe))
            except ValueError as error:
                raise ValueError(f"--estimator adjoint_matching: {error}; choose another network") from None

    def sampler(self, step: int) -> SamplerConfig:
        """The memoryless sampler."""
        return self.config.rollout.adjoint_sampler

    def terms(self, step: int) -> int:
        """The number of steps K of a path that an update trains."""
        return min(self.config.update.adjoint_steps, len(trained_steps(self.sampler(step))))

    def chosen_steps(self, draw: int) -> list[int]:
        """The steps K of update `draw`: evenly spaced, from a start that moves on from update to update."""
        noisy, count = trained_steps(self.sampler(0)), self.terms(0)
        stride = len(noisy) // count
        first = draw % (len(noisy) - (count - 1) * stride)
        return noisy[first : first + (count - 1) * stride + 1 : stride]

    def prepare(self, rollout: Rollout, side: RewardSide, slopes: torch.Tensor) -> dict[str, float]:
        """Carry the gradient of the reward back along every path; returns its statistics.

        slopes  float32 [n, d], gradient of the advantages in what the reward reads of this rank's images
        """
        assert rollout.states is not None  # because keeps_path is True
        sampler, parts = self.sampler(0), []
        for rows in torch.arange(len(rollout.samples)).split(self.config.rollout.batch):
            rows = rows.to(rollout.samples.device)
            end = self.config.update.tilt * self._sample_slopes(side, rollout.samples[rows], slopes[rows])
            velocity = bind(self.components.model, rollout.labels[rows], sampler)
            parts.append(adjoint_targets(velocity, rollout.states[rows], sampler, end))
        self.targets = torch.cat(parts) if parts else rollout.states[:, 1:]
        return {}

    def _sample_slopes(self, side: RewardSide, samples: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """∂A/∂sample [n, C, H, W] from ∂A/∂row [n, d]: back through the networks and the decoder."""
        x = samples.detach().requires_grad_()
        pixels = self.components.pixels(x)
        nets = (self.components.reward_net, *side.networks)
        features = torch.cat([net.with_gradient(pixels) for net in nets], dim=1)
        (gradient,) = torch.autograd.grad(features, x, slopes[:, : features.shape[1]])
        return gradient

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """See the module's equation."""
        assert rollout is not None and rollout.states is not None  # because keeps_path is True
        sampler, states, targets = self.sampler(0), rollout.states[batch.rows], self.targets[batch.rows]
        velocity, grid = bind(model, rollout.labels[batch.rows], sampler), time_grid(sampler)
        steps = self.chosen_steps(batch.draw)
        for i in steps:
            step = sampler_step(velocity(states[:, i], grid[i]), states[:, i], i, sampler)
            error = (step.mean - targets[:, i]) / step.std
            loss = 0.5 * error.square().flatten(1).mean(1) / len(steps)
            yield loss, {"adjoint_error": loss.detach()}


def adjoint_targets(
    velocity: VelocityField, states: torch.Tensor, sampler: SamplerConfig, slope: torch.Tensor
) -> torch.Tensor:
    """Where each noisy step's mean should be, m_i + s_i² a_{i+1}, float32 [n, S, C, H, W]; zeros at other steps.

    velocity  of the base model
    states    float32 [n, S + 1, C, H, W], the paths
    slope     a_S [n, C, H, W], gradient of the reward in the samples
    """
    grid, noisy = time_grid(sampler), trained_steps(sampler)
    targets = torch.zeros_like(states[:, 1:])
    for i in range(sampler.steps - 1, noisy[0] - 1, -1):
        with torch.enable_grad():
            x = states[:, i].detach().requires_grad_()
            step = sampler_step(velocity(x, grid[i]), x, i, sampler)
        if i in noisy:
            targets[:, i] = step.mean.detach() + step.std**2 * slope
        (slope,) = torch.autograd.grad(step.mean, x, slope)
    return targets
