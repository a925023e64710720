"""Where the metrics of a training go besides the store: TensorBoard, Trackio, Weights & Biases, all optional packages.

The store keeps every metric in any case; a sink is a picture of it while it grows.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from factory.errors import EngineError, SpecError
from factory.records import Metric

_PROJECT = "alignment-factory"


class Sink(Protocol):
    """Takes the metrics of one training."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Metrics that were measured at a step."""
        ...

    def close(self) -> None:
        """All metrics are there."""
        ...


class Board:
    """Metrics on their way to the sinks: those of a step go together."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks, self.step, self.values = sinks, 0, dict[str, float]()

    def note(self, metric: Metric) -> None:
        """Take one metric."""
        if metric.step != self.step:
            self.flush()
        self.step = metric.step
        self.values[metric.name] = metric.value

    def flush(self) -> None:
        """Hand on what has been taken."""
        for sink in self.sinks if self.values else ():
            sink.log(self.values, self.step)
        self.values = {}


@contextmanager
def board(names: str | Sequence[str], out: Path, run: str, config: Mapping[str, Any]) -> Iterator[Board]:
    """The named sinks, open for the training that writes `out`. Raises SpecError, EngineError."""
    wanted = dict.fromkeys([names] if isinstance(names, str) else names)
    for name in wanted:
        _look_for(name)
    title = "-".join(filter(None, [out.name, run]))
    with ExitStack() as stack:
        opened = list[Sink]()
        for name in wanted:
            opened.append(_opened(name, out.parent, title, dict(config)))
            stack.callback(opened[-1].close)
        made = Board(opened)
        yield made
        made.flush()


def _look_for(name: str) -> None:
    if name not in SINKS:
        raise SpecError(f"report_to: no sink {name!r}; known: {', '.join(SINKS)}")
    if find_spec(name) is None:
        raise SpecError(
            f"report_to={name} needs the package {name}: pip install 'alignment-factory[{name}]'. The store keeps all"
            " metrics without it (FROM metrics)"
        )


def _opened(name: str, folder: Path, title: str, config: dict[str, Any]) -> Sink:
    try:
        sink: Sink = SINKS[name](folder, title, config)
    except Exception as error:  # each of the packages has errors of its own
        mend = "run `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else "or leave report_to out"
        raise EngineError(
            f"report_to={name} could not start ({str(error).strip().splitlines()[:1]}): {mend}"
        ) from error
    return sink


class TensorBoard:
    """Event files in `runs` beside the checkpoint: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, title: str, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "runs" / title))
        self.writer.add_text("options", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A curve for each metric."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Trackio:
    """A local Trackio project: `trackio show`. Where it lies is TRACKIO_DIR's business."""

    def __init__(self, folder: Path, title: str, config: dict[str, Any]) -> None:
        import trackio

        with redirect_stdout(sys.stderr):  # standard output is for data
            self.run: Any = trackio.init(project=_PROJECT, name=title, config=config, embed=False, auto_log_cpu=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all rows are written."""
        import trackio

        with redirect_stdout(sys.stderr):
            finish: Any = trackio.finish
            finish()


class Wandb:
    """A run of Weights & Biases, as its environment says; WANDB_MODE=offline keeps it in `wandb` by the checkpoint."""

    def __init__(self, folder: Path, title: str, config: dict[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(silent=True, disable_git=True, disable_code=True)
        self.run = wandb.init(project=_PROJECT, name=title, config=config, dir=str(folder), settings=settings)
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row; its step is a value as any other, as some measurements come after later ones."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """Wait until all rows are written."""
        self.run.finish()


SINKS: Mapping[str, Any] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
