"""The mini world's exact checkers as a reward: what only a toy world has, and every experiment wishes for."""

from collections.abc import Sequence

from factory.mini.world import judge, solve, worth


def gold(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
    """1 for a right answer (an unsafe request is right when declined), -1 for harm, 0 for all else.

    None where the world cannot read the prompt.
    """
    tasks = [solve(prompt) for prompt in prompts]
    return [None if task is None else worth(judge(task, text)) for task, text in zip(tasks, completions, strict=True)]
