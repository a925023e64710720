"""Worlds for PPO, GRPO and RLOO: their policies have to end at the optimum, which is known exactly.

Answers have at most LIMIT tokens and may end before. As the reference draws every token alike and the reward counts
tokens, the best policy depends on the place alone, and is found backwards from the last one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from factory.records import Metric
from trainers._models import load
from trainers._worlds import LETTERS, PROMPTS, SKEWED, UNIFORM, Finding, reference, written

LIMIT = 3  # most tokens of an answer
_FIRST = 4  # the first letter's token; 1 ends an answer
_REWARD = """def score(prompts, completions):
    return [float(c.split().count("a")) for c in completions]
"""


class _Trainer(Protocol):
    def train(self, data: Any, out: Path) -> Iterator[Any]: ...


Make = Callable[[str, Mapping[str, Any]], _Trainer]


class Known(NamedTuple):
    """Of a policy: mean reward, mean KL from the reference in nats, and the share of answers that end."""

    reward: float
    kl: float
    ended: float


# --- what is known ---------------------------------------------------------------------------------------------------


class World(NamedTuple):
    """The reference's shares of letters and the log odds of an end, at a heat; what an answer without an end loses.

    `bonus` is what a nat of a token's entropy is worth; with it answers must hardly ever end, for no token is paid for
    the entropy of those that follow it.
    """

    shares: Sequence[float]
    beta: float
    end: float = -1.5
    temperature: float = 1.0
    penalty: float = 0.0
    bonus: float = 0.0

    @property
    def reference(self) -> Tensor:
        """The probabilities that are drawn from: the letters', and last that of the end."""
        odds = torch.tensor([*map(float, torch.tensor(self.shares).log()), self.end], dtype=torch.float64)
        return (odds / self.temperature).softmax(0)


def tilted(world: World) -> Known:
    """Of pi* = pi_ref exp(r / beta) / Z over whole answers, by soft value iteration.

    V_t = beta log sum_a pi_ref(a) exp((r(a) + V_(t+1)) / beta), V behind the last token minus the penalty, V after the
    end 0; pi_t(a) = pi_ref(a) exp((r(a) + V_(t+1) - V_t) / beta). A bonus c on the entropy makes the flatter
    pi_t(a) ~ exp((r(a) + V_(t+1) + beta log pi_ref(a)) / (beta + c)) of it.
    """
    p, beta, value, found = world.reference, world.beta, -world.penalty, list[Tensor]()
    heat = beta + world.bonus
    for _ in range(LIMIT):
        gain = torch.full_like(p, value)
        gain[0], gain[-1] = value + 1.0, 0.0
        found.insert(0, torch.softmax((beta * p.log() + gain) / heat, 0))
        value = float(heat * torch.logsumexp((beta * p.log() + gain) / heat, 0))
    return walk([(each, p) for each in found])


def against_reverse(world: World) -> Known:
    """Of what GRPO's k3 in the loss ends at: its gradient is that of KL(ref || pi), so at every token
    pi(a) (r(a) - mean r) = beta (pi(a) - pi_ref(a)), which is pi(a) = beta pi_ref(a) / (m - r(a)) with sum 1.

    Answers must hardly ever end, for else what follows would count as well.
    """
    p, beta = world.reference, world.beta
    gain = torch.zeros_like(p)
    gain[0] = 1.0
    low, high = 1.0 + 1e-9, 1.0 + beta
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((beta * p / (middle - gain)).sum()) > 1 else (low, middle)
    return walk([(beta * p / (low - gain), p)] * LIMIT)


def walk(policies: Sequence[tuple[Tensor, Tensor]]) -> Known:
    """What is known of a policy's and the reference's probabilities at each place; the last is the end's."""
    alive, gained, divergence = 1.0, 0.0, 0.0
    for new, old in policies:
        gained += alive * float(new[0])
        divergence += alive * float((new * (new / old).log()).sum())
        alive *= float(1 - new[-1])
    return Known(gained, divergence, 1 - alive)


def walked(policy: Any, ref: Any, temperature: float = 1.0, samples: int = 256) -> Known:
    """The same of two networks: answers are drawn from the policy, and at each token expectations are taken."""
    generator = torch.Generator().manual_seed(0)
    asked = torch.randint(len(PROMPTS), (samples,), generator=generator) + _FIRST + len(LETTERS)
    ids = torch.stack([torch.full_like(asked, 2), asked, torch.full_like(asked, 3)], 1)
    alive, gained, divergence = torch.ones(samples), 0.0, 0.0
    with torch.no_grad():
        for _ in range(LIMIT):
            both = [m(input_ids=ids, use_cache=False).logits[:, -1].float() / temperature for m in (policy, ref)]
            new, old = (logits.log_softmax(-1) for logits in both)
            chances = new.exp()
            gained += float((alive * chances[:, _FIRST]).mean())
            divergence += float((alive * (chances * (new - old)).sum(-1)).mean())
            alive = alive * (1 - chances[:, 1])
            going = chances.clone()
            going[:, 1] = 0.0  # the walk goes on; its weight is in `alive`
            ids = torch.cat([ids, torch.multinomial(going, 1, generator=generator)], 1)
    return Known(gained, divergence, 1 - float(alive.mean()))


# --- the worlds ------------------------------------------------------------------------------------------------------


def ppo(make: Make, folder: Path) -> Iterator[Finding]:
    """PPO, with a skewed reference: one that is uniform does not notice a reference that is left out."""
    yield from policy_optimum(make, folder, "ppo", World(SKEWED, 0.5))


def ppo_uniform(make: Make, folder: Path) -> Iterator[Finding]:
    """The same from a reference without preferences, at another beta, and with a price for answers that do not end."""
    yield from policy_optimum(make, folder, "ppo", World(UNIFORM, 1.0, penalty=0.5))


def rloo(make: Make, folder: Path) -> Iterator[Finding]:
    """RLOO has the same optimum as PPO, for its KL is in the reward as well; here at another heat than 1."""
    yield from policy_optimum(make, folder, "rloo", World(SKEWED, 1.0, temperature=0.8))


def rloo_entropy(make: Make, folder: Path) -> Iterator[Finding]:
    """A bonus on the entropy has an optimum of its own, flatter than the reference where nothing is rewarded."""
    yield from policy_optimum(make, folder, "rloo", World(SKEWED, 1.0, end=-12.0, temperature=0.8, bonus=0.3))


def grpo(make: Make, folder: Path) -> Iterator[Finding]:
    """GRPO without the deviation: its k3 in the loss has an optimum of its own."""
    yield from policy_optimum(make, folder, "grpo", World(UNIFORM, 1.0, end=-12.0))


def grpo_k2(make: Make, folder: Path) -> Iterator[Finding]:
    """With k2 in the loss GRPO has the optimum of PPO."""
    yield from policy_optimum(make, folder, "grpo", World(UNIFORM, 1.0, end=-12.0), kl_estimator="k2")


_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {
        "num_ppo_epochs": 2, "learning_rate": 3e-3, "value_learning_rate": 1e-2, "vf_coef": 0.5, "max_steps": 50,
    },
    "rloo": {"num_iterations": 2, "learning_rate": 5e-3, "num_generations": 4, "max_steps": 40},
    "grpo": {
        "num_iterations": 2, "learning_rate": 6e-3, "num_generations": 8, "max_steps": 45, "scale_rewards": "none",
        "loss_type": "dr_grpo",
    },
}  # fmt: skip
_COMMON = {
    "bf16": False, "save_steps": 0, "max_completion_length": LIMIT, "num_mini_batches": 2,
    "per_device_train_batch_size": 128, "local_rollout_forward_batch_size": 256, "log_completions": False,
}  # fmt: skip


def policy_optimum(make: Make, folder: Path, name: str, world: World, **options: Any) -> Iterator[Finding]:
    """One setting of one trainer."""
    import datasets

    # 1. The optimum. GRPO's mean has an answer's own reward in it, which is a larger beta.
    given = {**_COMMON, **_SETTINGS[name], **options, "kl_coef" if name == "ppo" else "beta": world.beta}
    size = given.get("num_generations", 1)
    felt = world._replace(beta=world.beta * size / (size - 1)) if name == "grpo" else world
    best = (against_reverse if name == "grpo" and "kl_estimator" not in given else tilted)(felt)
    # 2. The course.
    base = written(reference(world.shares, end=world.end), folder / "base")
    (folder / "reward.py").write_text(_REWARD)
    given |= {"base": base, "reward": {"python": f"{folder / 'reward.py'}:score"}, "temperature": world.temperature,
              "missing_eos_penalty": world.penalty, "entropy_coef": world.bonus * LIMIT}  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": p} for p in PROMPTS])
    told = [m for m in make(name, given).train(rows, folder / "out") if isinstance(m, Metric)]
    # 3. What came of it.
    found = walked(load(str(folder / "out")).model, load(base).model, world.temperature)
    label = ", ".join([name, *(str(v) for k, v in options.items() if k == "kl_estimator"), f"beta {world.beta:g}",
                       *([f"entropy {world.bonus:g}"] if world.bonus else [])])  # fmt: skip
    yield Finding(f"{label}: reward", found.reward, best.reward, 0.05 * best.reward)
    yield Finding(f"{label}: KL", found.kl, best.kl, 0.1 * best.kl)
    yield Finding(f"{label}: answers end", found.ended, best.ended, 0.05)
    gaps = [m.value for m in told if m.name == "sampling/sampling_logp_difference/mean"]
    yield Finding(f"{label}: log p of the draw", max(gaps), 0.0, 1e-4)
