"""The pure functions of PPO, GRPO and RLOO agree with naive loops, and with what can be worked by hand."""

import math
from random import Random

import numpy as np
import pytest
import torch

from trainers import _losses
from trainers._batches import IGNORED, Example, padded
from trainers._lessons import Lesson, collated
from trainers._policy_losses import (
    adapted,
    clipped_policy_loss,
    clipped_value_loss,
    entropy_of,
    gae,
    group_advantages,
    kl_of,
    leave_one_out,
    token_rewards,
    whitened,
)
from trainers._policy_models import seen, token_logps
from trainers._policy_worlds import LIMIT, World, against_reverse, tilted, walked
from trainers._worlds import SKEWED, UNIFORM, network, reference

LENGTHS = (3, 1, 5)
REAL = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]


def _drawn(seed: int) -> torch.Tensor:
    """Numbers behind the end as well: nothing may look at them."""
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_sum_of_discounted_errors(gamma: float, lam: float) -> None:
    rewards, values = _drawn(0), _drawn(1)
    advantages, returns = gae(rewards, values, REAL, gamma, lam)
    for row, length in enumerate(LENGTHS):
        v = [*values[row, :length].tolist(), 0.0]
        errors = [float(rewards[row, t]) + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            naive = sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, length))
            assert float(advantages[row, t]) == pytest.approx(naive, abs=1e-5)
            assert float(returns[row, t]) == pytest.approx(naive + v[t], abs=1e-5)
    assert (advantages[~REAL] == 0).all()


def test_with_lambda_one_the_returns_are_what_is_still_to_come() -> None:
    rewards = _drawn(2)
    _, returns = gae(rewards, _drawn(3), REAL, 1.0, 1.0)
    assert float(returns[2, 1]) == pytest.approx(float(rewards[2, 1:5].sum()), abs=1e-5)


def test_the_score_stands_at_the_last_real_token() -> None:
    kl, scores = _drawn(4), torch.tensor([1.0, 2.0, 3.0])
    rewards = token_rewards(kl, scores, REAL, 0.1)
    assert torch.allclose((rewards + 0.1 * kl * REAL).nonzero(), torch.tensor([[0, 2], [1, 0], [2, 4]]))
    assert torch.allclose(rewards.sum(1), scores - 0.1 * (kl * REAL).sum(1), atol=1e-6)


def test_estimators_of_the_kl_by_their_formulas_and_in_the_mean() -> None:
    d = torch.tensor([-1.0, 0.0, 0.5])
    assert torch.equal(kl_of(d, torch.zeros(3), "k1"), d)
    assert torch.allclose(kl_of(d, torch.zeros(3), "k2"), torch.tensor([0.5, 0.0, 0.125]))
    assert torch.allclose(kl_of(d, torch.zeros(3), "k3"), torch.tensor([math.e - 2, 0.0, math.exp(-0.5) - 0.5]))
    p, q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.4, 0.2])
    true = float((p * (p / q).log()).sum())
    for name in ("k1", "k3"):
        assert float((p * kl_of(p.log(), q.log(), name)).sum()) == pytest.approx(true, abs=1e-6)


def test_only_k2_has_the_gradient_of_the_kl_as_a_loss() -> None:
    logits, q = torch.tensor([0.3, -0.2, 0.1], requires_grad=True), torch.tensor([0.4, 0.4, 0.2])

    def grad(name: str) -> torch.Tensor:
        logps = logits.log_softmax(-1)
        return torch.autograd.grad((logps.exp().detach() * kl_of(logps, q.log(), name)).sum(), logits)[0]  # type: ignore[arg-type]

    logps = logits.log_softmax(-1)
    forward = torch.autograd.grad((logps.exp() * (logps - q.log())).sum(), logits, retain_graph=True)[0]
    reverse = torch.autograd.grad((q * (q.log() - logps)).sum(), logits)[0]
    assert torch.allclose(grad("k2"), forward, atol=1e-6)
    assert torch.allclose(grad("k3"), reverse, atol=1e-6)
    assert torch.allclose(grad("k1"), torch.zeros(3), atol=1e-6)


def test_whitening_takes_the_mean_away_and_can_put_it_back() -> None:
    values = _drawn(5) + 3.0
    white, kept = whitened(values, REAL), whitened(values, REAL, shift=False)
    assert float(white[REAL].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(white[REAL].std()) == pytest.approx(1.0, abs=1e-4)
    assert float(kept[REAL].mean()) == pytest.approx(float(values[REAL].mean()), abs=1e-5)
    assert (white[~REAL] == 0).all()
    changed = values.masked_fill(~REAL, 1e6)
    assert torch.equal(whitened(changed, REAL), white)


def test_baselines_of_groups_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert torch.allclose(leave_one_out(rewards)[0], torch.tensor([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]))
    assert torch.equal(leave_one_out(rewards)[1], torch.zeros(3))
    assert torch.allclose(group_advantages(rewards, scaled=False)[0], torch.tensor([-2.0, -1.0, 3.0]))
    scaled = group_advantages(rewards, scaled=True)
    assert torch.allclose(scaled[0], torch.tensor([-2.0, -1.0, 3.0]) / math.sqrt(7.0), atol=1e-3)
    assert torch.equal(scaled[1], torch.zeros(3)), "a dead group teaches nothing, and is not divided by zero"


def test_clipped_losses_against_a_naive_loop() -> None:
    rng = Random(0)
    new, old, gain = ([rng.gauss(0, 0.4) for _ in range(40)] for _ in range(3))
    found, cut = clipped_policy_loss(*(torch.tensor(x) for x in (new, old, gain)), low=0.2, high=0.3)
    for i, (n, o, a) in enumerate(zip(new, old, gain, strict=True)):
        ratio = math.exp(n - o)
        both = -a * ratio, -a * min(max(ratio, 0.8), 1.3)
        assert float(found[i]) == pytest.approx(max(both), abs=1e-6)
        assert bool(cut[i]) == (both[1] > both[0] + 1e-9)
    values, cut = clipped_value_loss(*(torch.tensor(x) for x in (new, old, gain)), clip=0.2)
    for i, (v, o, r) in enumerate(zip(new, old, gain, strict=True)):
        near = o + min(max(v - o, -0.2), 0.2)
        assert float(values[i]) == pytest.approx(max((v - r) ** 2, (near - r) ** 2) / 2, abs=1e-6)


def test_a_log_ratio_without_bounds_stays_finite() -> None:
    loss, _ = clipped_policy_loss(torch.tensor([500.0]), torch.tensor([-500.0]), torch.tensor([-1.0]), 0.2, 0.2)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(kl_of(torch.tensor([-500.0]), torch.tensor([500.0]), "k3")).all()


def test_the_entropy_of_equal_chances_is_the_log_of_their_number() -> None:
    assert torch.allclose(entropy_of(torch.zeros(2, 8)), torch.full((2,), math.log(8)))


@pytest.mark.parametrize("room", [1 << 25, 40])
def test_a_bonus_on_the_entropy_has_its_value_and_its_gradient(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain torch, in one chunk and in several."""
    monkeypatch.setattr(_losses, "_LOGITS", room)
    rows = [[2, 13, 3, 4, 8, 1], [2, 14, 3, 6, 1]]
    batch = padded([Example(np.array(r), np.array([IGNORED] * 3 + r[3:])) for r in rows], 0)
    one, other = network(1), network(1)
    found = seen(one, batch, 0.7, 0.3)
    logits = [other(input_ids=torch.tensor([r])).logits[0, 2:-1] / 0.7 for r in rows]
    spread = sum(torch.distributions.Categorical(logits=each).entropy().sum() for each in logits)
    assert torch.allclose(torch.as_tensor(found.bonus), 0.3 * torch.as_tensor(spread), atol=1e-5)
    torch.autograd.backward([torch.as_tensor(found.bonus), 0.3 * torch.as_tensor(spread)])
    for mine, plain in zip(one.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        assert plain.grad is not None
        assert torch.allclose(mine.grad, plain.grad, atol=1e-5)


def test_answers_that_share_rows_equal_answers_apart() -> None:
    """Log-probabilities, what stands beside them, and gradients, whatever the order in which rows are filled."""
    rng = np.random.default_rng(0)
    groups = []
    for length in (40, 9, 14, 8, 11, 30):
        ids, label = rng.integers(4, 20, length), np.full(length, IGNORED)
        label[-5:] = ids[-5:]
        old = rng.normal(size=5).astype(np.float32)
        groups.append((Lesson(Example(ids, label), old, old, old, old, old, 0.0),))
    found = []
    for packs in (False, True):
        model, batch = network(1), collated(groups, 0, packs)
        logps = seen(model, batch.text, 0.8, 0.0).logps
        torch.autograd.backward((logps * batch.old).sum())
        found.append((batch.text.ids.numel(), (logps * batch.old).sum(), [p.grad for p in model.parameters()]))
    (wide, one, first), (narrow, other, second) = found
    assert narrow < 0.7 * wide
    assert torch.allclose(one, other, atol=1e-4)
    for a, b in zip(first, second, strict=True):
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, atol=1e-5)


def test_without_a_coefficient_no_entropy_is_computed() -> None:
    row, asked, model = np.array([2, 13, 3, 4, 1]), list[int](), network(1)
    batch = padded([Example(row, row)], 0)
    model.lm_head.register_forward_hook(lambda *_: asked.append(1))
    assert seen(model, batch, 1.0, 0.0).bonus == 0.0
    plain = len(asked)
    assert token_logps(model, batch, 1.0).shape == (4,)
    assert len(asked) == 2 * plain
    seen(model, batch, 1.0, 0.1)
    assert len(asked) > 3 * plain


def test_the_kl_coefficient_follows_its_target() -> None:
    assert adapted(0.1, kl=12.0, target=6.0, answers=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert adapted(0.1, kl=5.7, target=6.0, answers=100, horizon=1000) == pytest.approx(0.1 * (1 - 0.05 * 0.1))
    assert adapted(0.1, kl=99.0, target=0.0, answers=100, horizon=1000) == 0.1


# --- the optima of the worlds ----------------------------------------------------------------------------------------


def _value(world: World, policies: list[torch.Tensor]) -> float:
    """The objective of a policy, by all answers there are."""

    def rest(place: int) -> float:
        if place == LIMIT:
            return -world.penalty
        new, old, total = policies[place], world.reference, 0.0
        for token in range(len(new)):
            after = 0.0 if token == len(new) - 1 else rest(place + 1)
            cost = world.beta * float((new[token] / old[token]).log())
            total += float(new[token]) * ((token == 0) - cost + after)
        return total

    return rest(0)


@pytest.mark.parametrize("world", [World(SKEWED[:3], 0.5, penalty=0.4), World(UNIFORM[:3], 1.0, temperature=0.7)])
def test_no_policy_is_better_than_the_optimum(world: World) -> None:
    best = tilted(world)
    objective = best.reward - world.beta * best.kl - world.penalty * (1 - best.ended)
    reached, rng = 0.0, torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = [torch.randn(4, generator=rng, dtype=torch.float64) for _ in range(LIMIT)]
        others = [torch.softmax(world.reference.log() + 0.5 * n, 0) for n in noise]
        reached = max(reached, _value(world, others))
    assert reached < objective
    assert _value(world, [world.reference] * LIMIT) < objective


def test_the_optimum_against_the_reverse_kl_has_no_slope() -> None:
    world = World(UNIFORM, 1.0, end=-12.0)
    share = against_reverse(world).reward / LIMIT
    assert share * (1 - share) == pytest.approx(world.beta * (share - float(world.reference[0])), abs=1e-4)


def test_a_walk_of_the_reference_finds_itself() -> None:
    model = reference(SKEWED, end=-1.5)
    found, world = walked(model, model, 0.8), World(SKEWED, 1.0, temperature=0.8)
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert found.reward == pytest.approx(tilted(world._replace(beta=1e6)).reward, rel=0.01)
    assert found.ended == pytest.approx(1 - (1 - float(world.reference[-1])) ** LIMIT, abs=0.01)
