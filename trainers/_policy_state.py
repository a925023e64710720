"""Policy and critic as one thing to save and to go on from, so that a state is never half one and half the other."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainers._loop import Learner


class Together(nn.Module):
    """The models of one or two learners, and as `optimizer` their optimisers, one behind the other."""

    def __init__(self, policy: Learner, critic: Learner | None) -> None:
        super().__init__()
        self.policy = policy.loaded.model
        if critic:
            self.critic = critic.loaded.model
        self.optimizer: Any = _Optimizers([x.optimizer for x in (policy, critic) if x])


class _Optimizers:
    """What a state reads and writes of an optimiser, of several."""

    def __init__(self, each: list[torch.optim.Optimizer]) -> None:
        self.each = each

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.each for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        found = dict[int, Any]()
        for first, optimizer in self._numbered():
            found |= {first + index: moments for index, moments in optimizer.state_dict()["state"].items()}
        return {"state": found, "param_groups": self.param_groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for first, optimizer in self._numbered():
            count = _count(optimizer)
            own = {i - first: m for i, m in saved["state"].items() if first <= i < first + count}
            optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})

    def _numbered(self) -> Iterator[tuple[int, torch.optim.Optimizer]]:
        """Each optimiser with the number of its first parameter."""
        first = 0
        for optimizer in self.each:
            yield first, optimizer
            first += _count(optimizer)


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
