"""The outer loop of PPO, GRPO and RLOO: draw answers, reward them, measure them, learn from them, tell, and save.

An algorithm (`Method`) says what the advantages are and what the loss is; all else is the same here. Every draw has a
seed made of the step and of the prompt's content, and the state holds policy, critic and both optimisers, so that a run
which was cut off ends in the same bits. The first process alone yields rows; all of them share the rollouts out.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from factory.errors import DataError, SpecError
from factory.records import Metric, Record, content_id
from trainers._files import refuse_foreign
from trainers._guards import CHECKS, Guard
from trainers._lessons import (
    Experience,
    Group,
    LessonBatch,
    Rolled,
    by_group,
    collated,
    rolled,
    totals,
    weighed,
    width,
)
from trainers._loop import Learner, Sums, Task, Totals, add, means, schedule, step_size
from trainers._models import (
    Loaded,
    check_head,
    half_precision,
    load,
    packs,
    prepared,
    save,
    weights_id,
    without_dropout,
)
from trainers._policy_losses import Level, adapted, truncated_ratios
from trainers._policy_models import Pass, critic_of, logps_and_entropies, reference_logps, reference_of, values_of
from trainers._policy_options import PolicyTraining
from trainers._policy_rows import Gap, answers, filed, judged_by, left_out, prompts
from trainers._policy_state import Together
from trainers._policy_told import corrections, measures, reading
from trainers._rewarding import Answer, Ask, Rated, Rewarder
from trainers._rollouts import Asked, Drawing, Rollout, drawn
from trainers._state import State
from trainers._vllm_rollouts import VllmSampler, check_same, require_vllm

Loss = Callable[[Any, LessonBatch, Totals], tuple[Tensor, Sums]]


class Critic(NamedTuple):
    """A model of values beside the policy: its start, its learning rate, its loss, and how long it learns alone."""

    base: str
    learning_rate: float
    loss: Loss
    warmup_steps: int


class Method(NamedTuple):
    """What an algorithm adds: passes over a batch, lessons at a KL coefficient (and metrics), and the policy's loss."""

    name: str
    epochs: int
    coefficient: float
    lessons: Callable[[Rolled, float], tuple[list[Group], dict[str, float]]]
    loss: Loss
    critic: Critic | None = None
    level: Level = "token"  # what the loss holds for one action, and so corrects where another engine drew it


def learned(options: PolicyTraining, method: Method, data: Any, out: Path, ask: Ask | None) -> Iterator[Record]:
    """Train on the prompts of `data` and write the checkpoint to `out`."""
    refuse_foreign(out, options.base)
    if options.fsdp or options.num_virtual_tokens:
        raise DataError(f"{method.name}: answers are drawn from whole models: fsdp and num_virtual_tokens do not go "
                        "with it; use_peft and several processes do")  # fmt: skip
    if options.load_best_model_at_end or options.early_stopping_patience or options.eval_fraction:
        raise DataError(f"{method.name}: what is best is seen by the rewards of its own answers: use gold and guard_*, "
                        "not eval_fraction, early_stopping_patience or load_best_model_at_end")  # fmt: skip
    # 1. The policy, and the prompts as it reads them.
    loaded = load(options.base, attention=options.attn_implementation)
    check_head(loaded)
    without_dropout(loaded.model)
    asked = prompts(data, loaded.tokenizer, options.max_length - options.max_completion_length, method.name)
    yield from asked.skipped
    yield Metric("rows_skipped", len(asked.skipped))
    # 2. The course.
    identity = content_id(options, asked.digest, judged_by(options))
    course = Course(options, method, loaded, asked.asked, out, identity, ask)
    try:
        yield from course.run()
    finally:
        course.close()
    # 3. The checkpoint.
    if not course.policy.ranks.rank:
        save(course.policy.loaded.model, loaded.tokenizer, out)
    course.policy.ranks.wait()
    course.state.drop()


class Course:
    """One training: its models, where it stands, and its steps."""

    def __init__(self, options: PolicyTraining, method: Method, loaded: Loaded, asked: Sequence[Asked], out: Path,
                 identity: str, ask: Ask | None) -> None:  # fmt: skip
        self.options, self.method, self.asked = options, method, asked
        identity = content_id(weights_id(loaded.model), identity)
        self.called = f"policy {identity[:12]}"  # the rollouts' model; a step is added to it
        torch.manual_seed(options.seed)  # new adapters
        counted = by_group(options, options.num_generations)
        self.policy = Learner(prepared(loaded, options), self._task(loaded, method.loss), counted)
        self.reference = reference_of(self.policy.loaded, options, options.ref_model)
        self.critic: Learner | None = None
        if method.critic:
            critic = prepared(critic_of(options, method.critic.base), options)
            counted = replace(counted, learning_rate=method.critic.learning_rate)
            self.critic = Learner(critic, self._task(loaded, method.critic.loss), counted)
        self.together = Together(self.policy, self.critic)
        self.state = State(out, content_id(identity, self.policy.ranks.world), self.policy.ranks)
        self.rewarder = Rewarder(options.reward, ask)
        self.gold = Rewarder(options.gold, ask) if options.gold else None
        self.guard, self.coefficient, self.window = Guard(options), method.coefficient, Sums()
        self.may_roll_back = any(getattr(options, f"guard_{name}") == "roll_back" for name in CHECKS)
        half = half_precision(loaded.device, options.bf16)
        rows, limit = options.local_rollout_forward_batch_size, options.max_completion_length
        self.drawing = Drawing(options.temperature, limit, rows, half)
        self.vllm = self._vllm() if options.use_vllm else None
        self.reading = Pass(rows, options.max_tokens_per_batch, half, options.temperature)

    def _task(self, loaded: Loaded, loss: Loss) -> Task:
        pad, apart = loaded.tokenizer.pad_token_id, packs(loaded.model)
        return Task(lambda groups: collated(groups, pad, apart), totals, loss, width, lambda g: g[0].example.key)

    def _vllm(self) -> VllmSampler:
        require_vllm(self.method.name, self.policy.ranks.world)
        longest, memory = max(len(a.ids) for a in self.asked), self.options.vllm_gpu_memory_utilization
        return VllmSampler(self.options.base, self.policy.loaded, self.drawing, longest, memory)

    def close(self) -> None:
        """Give back what was opened for the draws."""
        if self.vllm:
            self.vllm.close()

    @property
    def answers(self) -> int:
        """Answers in a batch of rollouts, on all processes."""
        return step_size(self.options, self.policy.ranks.world) * self.options.num_mini_batches

    @property
    def steps(self) -> int:
        """Batches of rollouts in all."""
        options = self.options
        episodes = options.total_episodes or options.num_train_epochs * len(self.asked) * options.num_generations
        return options.max_steps if options.max_steps > 0 else max(1, math.ceil(episodes / self.answers))

    def run(self) -> Iterator[Record]:
        """All steps that are not done yet."""
        done = self._restored()
        for step in range(done + 1, self.steps + 1):
            # 1. Draw, reward and measure.
            started = time.monotonic()
            found, told, gaps = self._rolled(step)
            yield from left_out(gaps, self.method.name, self.options.reward, self.options.log_completions)
            drawn_in = time.monotonic() - started
            # 2. Watch: a policy that is worse than before may be put back.
            stopped = yield from self._watched(found, step)
            # 3. Learn.
            groups, more = self.method.lessons(found, self.coefficient)
            if self.vllm and self.options.vllm_importance_sampling_correction:
                ratios = self._ratios(found)
                groups, more = weighed(groups, ratios), more | corrections(found, ratios)
            sums = Sums() if stopped else self._learned(groups, step)
            # 4. Tell.
            seconds = {"time/rollout": drawn_in, "time/update": time.monotonic() - started - drawn_in}
            now = measures(found, self.coefficient) | more | seconds
            now["tokens_per_second"] = sum(len(e.rollout.example.ids) for e in found.of) / sum(seconds.values())
            add(self.window, {name: (value, 1) for name, value in now.items()} | sums)
            if step % self.options.logging_steps == 0 or step == self.steps or stopped:
                yield from (Metric(name, value, step) for name, value in means(self.window).items())
                yield Metric("episode", step * self.answers, step)
                self.window = Sums()
            if self.options.log_completions:
                yield from filed(found, told, self.method.name, self.options.reward, self.options.gold)
            if stopped:
                break
            # 5. Save.
            self._adapt(found)
            if self.options.save_steps and step % self.options.save_steps == 0 and step < self.steps:
                self._keep(step)

    # --- 1. draw, reward and measure ---------------------------------------------------------------------------------

    def _rolled(self, step: int) -> tuple[Rolled, list[Answer], list[Gap]]:
        """The batch of a step, and the groups that are left out; each process draws its share, and all get all."""
        ranks, size = self.policy.ranks, self.options.num_generations
        own = self._seeded(step)[ranks.rank :: ranks.world]
        rollouts = self.vllm.drawn(own) if self.vllm else drawn(self.policy.loaded, own, self.drawing)
        told = answers(rollouts, f"{self.called} {step}", self.options.temperature, self.options.max_completion_length)
        rated = self.rewarder.rate(told)
        gold = self._gold(told, step)
        whole = [i for i in range(0, len(rollouts), size) if None not in rated[i : i + size]]
        kept = [place for start in whole for place in range(start, start + size)]
        silent = sorted(set(range(len(told))) - set(kept))
        gaps = gathered([(i // size, told[i], rated[i]) for i in silent], ranks.world)
        measured = iter(self._measured([rollouts[i] for i in kept]))
        found = [next(measured)._replace(rated=rated[i] or Rated(0.0), gold=gold[i]) for i in kept]
        shared = gathered([(i // size, e, told[i]) for i, e in zip(kept, found, strict=True)], ranks.world)
        if not shared:
            raise DataError(f"step {step}: no answer has a reward; look at `FROM calls WHERE error <> ''`")
        options = self.options
        batch = rolled([e for _, e, _ in shared], size, options.reward_clip, options.missing_eos_penalty)
        return batch, [answer for _, _, answer in shared], [(answer, rate) for _, answer, rate in gaps]

    def _seeded(self, step: int) -> list[tuple[Asked, list[int]]]:
        """The prompts of a step, epoch after epoch in an order of its own, with the seeds of their answers."""
        size, count = self.options.num_generations, self.answers // self.options.num_generations
        found, epoch, order = list[tuple[Asked, list[int]]](), -1, list[Asked]()
        drawn_before = Counter[str]()  # rows may repeat themselves, and their answers should not
        for place in range((step - 1) * count, step * count):
            if place // len(self.asked) != epoch:
                epoch, order = place // len(self.asked), list(self.asked)
                if self.options.train_sampling_strategy != "sequential":
                    Random(f"{self.options.seed} epoch {epoch}").shuffle(order)
            asked = order[place % len(order)]
            seed = f"{self.options.seed} step {step} {epoch} {asked.prompt.id} {asked.key}"
            again, drawn_before[seed] = drawn_before[seed], drawn_before[seed] + 1
            rng = Random(f"{seed} again {again}" if again else seed)
            found.append((asked, [rng.getrandbits(48) for _ in range(size)]))
        return found

    def _gold(self, told: Sequence[Answer], step: int) -> list[float | None]:
        if self.gold is None or step % self.options.gold_steps:
            return [None] * len(told)
        return [None if r is None else r.value for r in self.gold.measure(told)]

    def _measured(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        """What policy, reference and critic make of the rollouts, with empty rewards."""
        if not rollouts:
            return []
        own = logps_and_entropies(self.policy.loaded, rollouts, self.reading)
        if self.vllm:
            check_same(rollouts, [old for old, _ in own])
        ref = reference_logps(self.reference, rollouts, self.reading)
        values = [r * 0 for r in ref]
        if self.critic:
            values = values_of(self.critic.loaded, rollouts, self.reading)
        rows = zip(rollouts, own, ref, values, strict=True)
        return [Experience(r, old, f, entropy, v, Rated(0.0), None) for r, (old, entropy), f, v in rows]

    def _ratios(self, found: Rolled) -> Tensor:
        return truncated_ratios(
            found.old, found.drawn, found.real, self.options.vllm_importance_sampling_clip_max, self.method.level
        )

    # --- 2. watch ----------------------------------------------------------------------------------------------------

    def _watched(self, found: Rolled, step: int) -> Generator[Record, None, bool]:
        """Show the guard what was read, and do what it asks for; returns whether to stop."""
        stop, now = False, reading(found, step)
        if self.may_roll_back and not self.guard.readings and self.gold is None and now.disagreement is None:
            raise SpecError(f"{self.method.name}: guard_*: roll_back must know which step was the best: give `gold` (a "
                            "reward that is not trained on) or a reward of several models, or use stop")  # fmt: skip
        alarms = self.guard.watch(now)
        if self.may_roll_back and self.guard.best_step == step:
            self.state.keep_best(self.policy.loaded.model)
        for alarm in alarms:
            meta = {"says": alarm.says, "action": alarm.action, "threshold": alarm.threshold}
            yield Metric(f"guard/{alarm.name}", alarm.value, step, meta)
            if alarm.action == "raise_kl":
                self.coefficient = 2 * self.coefficient or 0.05
            if alarm.action == "roll_back":
                self.state.load_best(self.policy.loaded.model)
                yield Metric("guard/rolled_back_to", self.guard.best_step, step)
            stop |= alarm.action in ("stop", "roll_back")
        return stop

    # --- 3. learn ----------------------------------------------------------------------------------------------------

    def _learned(self, groups: Sequence[Group], step: int) -> Sums:
        """Epochs of minibatches, each its own optimiser step, the policy's and the critic's."""
        options, sums = self.options, Sums()
        falls = schedule(step - 1, self.steps, options)
        alone = self.method.critic is not None and step <= self.method.critic.warmup_steps
        for epoch in range(self.method.epochs):
            order = list(groups)
            Random(f"{options.seed} step {step} pass {epoch}").shuffle(order)
            for number in range(options.num_mini_batches):
                part = order[number :: options.num_mini_batches]
                seed = f"{options.seed} step {step} pass {epoch} part {number}"
                if part and self.critic and self.method.critic:
                    more = self.critic.update(part, self.method.critic.learning_rate * falls, f"{seed} critic")
                    add(sums, {n: v for n, v in more.items() if "/" in n})
                if part and not alone:
                    try:
                        now = self.policy.update(part, options.learning_rate * falls, seed)
                    except DataError as error:
                        raise DataError(f"step {step}: {error}. The last state is in {self.state.folder}") from error
                    add(sums, now)
                    if options.target_kl and means(now)["policy/approxkl_avg"] > options.target_kl:
                        return sums
        return sums

    def _adapt(self, found: Rolled) -> None:
        options, kl = self.options, float(found.kl.sum(1).mean())
        target, horizon = options.adaptive_kl_target, options.adaptive_kl_horizon
        self.coefficient = adapted(self.coefficient, kl, target, len(found.of), horizon)

    # --- 5. save -----------------------------------------------------------------------------------------------------

    def _keep(self, step: int) -> None:
        extra = {"window": self.window, "coefficient": self.coefficient, "guard": self.guard.state()}
        self.state.keep(step, self.together, self.together.optimizer, extra)

    def _restored(self) -> int:
        done, kept = self.state.restore(self.together, self.together.optimizer)
        if done:
            self.window = {k: (a, b) for k, (a, b) in kept["window"].items()}
            self.coefficient = float(kept["coefficient"])
            self.guard.restore(kept["guard"])
        return done


def gathered(own: list[Any], world: int) -> list[Any]:
    """What all processes have, each of it a tuple that begins with the turn in which its group was shared out."""
    if world == 1:
        return own
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, own)  # between the processes of one launch; nothing of it is read from a file
    return in_turns(shares)


def in_turns(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """The shares of the processes in the order of one process alone: so minibatches are the same ones."""
    placed = [(each[0], rank, each) for rank, share in enumerate(shares) for each in share]
    return [each for _, _, each in sorted(placed, key=lambda p: p[:2])]
