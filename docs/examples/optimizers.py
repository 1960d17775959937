"""Optimizers around another one: Lookahead of timm as a function, and SAM, whose step needs a closure.

optimizer: {name: 'optimizers:lookahead', lr: 0.1, momentum: 0.9}
optimizer: {name: 'optimizers:SAM', lr: 0.1, rho: 0.05, momentum: 0.9}
"""

import torch


def lookahead(params, lr, **options):
    """Zhang et al. (2019), arXiv:1907.08610: each 5 steps, the weights go half the way back to where they were."""
    from timm.optim import Lookahead

    return Lookahead(torch.optim.SGD(params, lr=lr, **options), alpha=0.5, k=5)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412) around SGD.

    Two passes per step: at the weights w, whose gradient g is there when `step` is called, and at w + rho g / |g|,
    whose gradient SGD takes. One rho and one norm for all groups.
    """

    def __init__(self, params, lr, rho=0.05, **options):
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = torch.optim.SGD(self.param_groups, lr=lr, **options)
        self.param_groups, self.state = self.base.param_groups, self.base.state  # what is saved and scheduled

    @torch.no_grad()
    def step(self, closure):
        """Pass the batch again at the perturbed weights, and update those before."""
        trained = [value for group in self.param_groups for value in group["params"] if value.grad is not None]
        norm = torch.stack([value.grad.norm() for value in trained]).norm()
        before = [value.clone() for value in trained]
        for value in trained:
            value.add_(value.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        loss = closure()
        for value, own in zip(trained, before, strict=True):
            value.copy_(own)
        self.base.step()
        return loss

    def load_state_dict(self, state_dict):
        """Continue from what `state_dict` returned, which is that of SGD."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state
