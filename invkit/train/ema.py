"""The running average of a network's weights, which is what a GAN's generator is used by."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn


class Ema(nn.Module):
    """`module`: an average of a network's state over the steps, in eval mode, without gradient.

    It starts as a copy. `update` averages the whole state dict: the statistics of batch normalization and the vectors
    of spectral normalization with the weights, for they belong together; integers are copied.

    Args:
        alpha: step -> decay; average = alpha average + (1 - alpha) live.
    """

    def __init__(self, module: nn.Module, alpha: Callable[[int], float]) -> None:
        super().__init__()
        self.module = deepcopy(module).requires_grad_(False)
        self.alpha = alpha
        self.eval()

    def train(self, mode: bool = True) -> "Ema":
        """Unchanged: an average is never trained."""
        return super().train(False)

    @torch.no_grad()
    def update(self, live: nn.Module, step: int) -> None:
        average, current = self.module.state_dict(), live.state_dict()
        smooth = [name for name, tensor in average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [average[name] for name in smooth], [current[name] for name in smooth], 1.0 - self.alpha(step)
        )
        for name in average.keys() - set(smooth):
            average[name].copy_(current[name])
