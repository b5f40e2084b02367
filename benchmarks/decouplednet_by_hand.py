"""DecoupledNet written directly in PyTorch from the paper: the baseline of forward.py and training.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (2, 2, 3, 3, 3)
FROZEN = ("conv", "fc6.", "fc7.", "cls-", "fc7-bp", "fc6-bp")
"""The prefix of the classification network's parameter names."""


class DecoupledNet(nn.Module):
    """Takes the state_dict of our net; everything else is torch's own modules and functions.

    Args:
        learn: batch normalization with the batch's statistics, and gradients for all but the classification network.
    """

    def __init__(self, weights: dict[str, Tensor], *, learn: bool = False) -> None:
        super().__init__()
        self.learn = learn
        self.w = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(w.clone(), requires_grad=learn and not name.startswith(FROZEN))
                for name, w in weights.items()
            }
        )

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.w[f"{name}/weight"], self.w[f"{name}/bias"]

    def _bn(self, name: str, x: Tensor) -> Tensor:
        scale, shift = self.w[f"{name}/scale"], self.w[f"{name}/shift"]
        if self.learn:
            return F.batch_norm(x, None, None, scale.flatten(), shift.flatten(), training=True, eps=1e-9)
        return x * scale + shift

    def classify(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, torch.Size]]]:
        """pool5, the gradient of the labelled score with respect to it, and the switches of every pooling."""
        x, switches = image, []
        for stage, depth in enumerate(STAGES, 1):
            for i in range(1, depth + 1):
                x = F.relu(F.conv2d(x, *self._of(f"conv{stage}_{i}"), padding=1))
            size = x.shape[2:]
            x, index = F.max_pool2d(x, 2, 2, return_indices=True)
            switches.append((index, size))
        fc6 = F.relu(F.conv2d(x, *self._of("fc6")))
        fc7 = F.relu(F.conv2d(fc6, *self._of("fc7")))
        score = F.conv2d(fc7, *self._of("cls-score-voc"))
        if not self.learn:  # the deploy net also outputs the label scores
            torch.sigmoid(F.avg_pool2d(score, score.shape[2]))
        best, where = F.max_pool2d(score, score.shape[2], return_indices=True)
        torch.sigmoid(best)
        g = F.max_unpool2d(label, where, score.shape[2])
        g = F.conv2d(g, *self._of("cls-score-voc-bp")) * (fc7 > 0)
        g = F.conv_transpose2d(g, *self._of("fc7-bp")) * (fc6 > 0)
        return x, F.conv_transpose2d(g, *self._of("fc6-bp")), switches

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Scores of background and the labelled class, (N, 2, H, W), of a picture and a (weighted) label vector."""
        if self.learn:
            with torch.no_grad():
                pool5, g, switches = self.classify(image, label)
        else:
            pool5, g, switches = self.classify(image, label)
        x = torch.cat([self._bn("pool5-bn", pool5), self._bn("pool5-bp-bn", g)], 1)
        x = F.relu(self._bn("bnfc6-seg", F.conv2d(x, *self._of("fc6-seg"))))
        x = F.relu(self._bn("bnfc7-seg", F.conv2d(x, *self._of("fc7-seg"))))
        x = F.relu(self._bn("fc6-deconv-bn", F.conv_transpose2d(x, *self._of("fc6-deconv"))))
        for stage in range(5, 0, -1):
            index, size = switches[stage - 1]
            x = F.max_unpool2d(x, index, 2, 2, output_size=size)
            for i in range(1, STAGES[stage - 1] + 1):
                x = F.conv_transpose2d(x, *self._of(f"deconv{stage}_{i}"), padding=1)
                x = F.relu(self._bn(f"debn{stage}_{i}", x))
        return F.conv2d(x, *self._of("seg-score-voc"))
