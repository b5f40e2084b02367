"""A learning-rate policy and an update rule in one file."""

from __future__ import annotations

import torch

from caffe_port.solver import Policy, Rates, Rule, policy, rule


@policy("warmup")
class Warmup(Policy):
    """Rises in a straight line to ``base_lr`` over ``stepsize`` iterations, then falls as ``poly`` does."""

    def check(self) -> None:
        if not 0 < self.param.stepsize < self.param.max_iter:
            raise self.error(f"stepsize {self.param.stepsize}", expected="a warmup of 1 to max_iter - 1 iterations")

    def rate(self, iteration: int) -> float:
        p = self.param
        if iteration < p.stepsize:
            return p.base_lr * (iteration + 1) / p.stepsize
        return p.base_lr * (1 - (iteration - p.stepsize) / (p.max_iter - p.stepsize)) ** p.power


@rule("Lion")
class Lion(Rule):
    """The step is rate sign(b1 m + (1 - b1) g); then m = b2 m + (1 - b2) g, with b1 ``momentum``, b2 ``momentum2``."""

    histories = 1

    def update(self, grads: list[torch.Tensor], histories: list[list[torch.Tensor]], rates: Rates) -> None:
        beta1, beta2 = self.param.momentum, self.param.momentum2
        for g, m, rate in zip(grads, histories[0], rates.local, strict=True):
            step = torch.lerp(g, m, beta1).sign_().mul_(rate)
            m.lerp_(g, 1 - beta2)
            g.copy_(step)
