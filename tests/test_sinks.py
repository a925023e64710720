"""Sinks: the store's metrics, told to other programs while a training runs."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from factory import training
from factory.engines.checkpoints import resolve
from factory.errors import EngineError, SpecError
from factory.records import Completion, Metric, Prompt, user
from factory.sinks import Board, board
from factory.steps import load_step
from factory.store import Store

ROOT = Path(__file__).parent.parent
CURVE = [Metric("eval_loss", 3.0, 0), Metric("loss", 2.0, 1), Metric("lr", 0.1, 1), Metric("loss", 1.5, 2),
         Metric("eval_ece", 0.2, 0)]  # fmt: skip


class _Kept:
    def __init__(self) -> None:
        self.rows, self.closed = list[tuple[int, dict[str, float]]](), 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def test_the_metrics_of_a_step_go_together() -> None:
    kept = _Kept()
    made = Board([kept])  # type: ignore[list-item]
    for metric in CURVE:
        made.note(metric)
    made.flush()
    assert kept.rows == [
        (0, {"eval_loss": 3.0}),
        (1, {"loss": 2.0, "lr": 0.1}),
        (2, {"loss": 1.5}),
        (0, {"eval_ece": 0.2}),
    ]


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_what_a_training_told(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    prompts = [Prompt(user(f"Say {w}.")) for w in ("owl", "cat", "dog", "fox")]
    store.append([*prompts, *(Completion(p.id, "owl", model="m") for p in prompts)], "d")
    options = {
        "base": resolve("mini-weak"),
        "bf16": False,
        "max_steps": 3,
        "logging_steps": 1,
        "report_to": "tensorboard",
    }
    training.train(store, load_step("train", "sft", options), "sft", "d", tmp_path / "m", "run1")
    curves = _curves(tmp_path / "runs" / "m-run1")
    stored = store.rows("SELECT step, value FROM metrics WHERE name = 'loss' ORDER BY step")
    assert len(stored) == 3
    assert curves["loss"] == stored
    assert {"grad_norm", "learning_rate", "mean_token_accuracy"} <= set(curves)


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_package_that_is_missing_is_told_before_anything_is_trained(name: str) -> None:
    code = f"""
from pathlib import Path
from factory.sinks import board
with board({name!r}, Path("m"), "", {{}}):
    print("it went on")
"""
    bare = [sys.executable, "-S", "-c", code]  # without the packages that are installed
    done = subprocess.run(bare, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert (
        f"SpecError: report_to={name} needs the package {name}: pip install 'alignment-factory[{name}]'" in done.stderr
    )
    assert not done.stdout


def test_an_unknown_sink_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="report_to"):
        load_step("train", "sft", {"base": "mini-weak", "report_to": "tensorbord"})
    with pytest.raises(SpecError, match="known: tensorboard, trackio, wandb"), board("x", tmp_path / "m", "", {}):
        pass


_TOLD = """
import sys
from pathlib import Path
from factory.sinks import board
from tests.test_sinks import CURVE
with board(sys.argv[1], Path("m"), "run1", {"beta": 0.1}) as made:
    for metric in CURVE:
        made.note(metric)
"""


def _told(name: str, folder: Path) -> None:
    """Tell a curve to a sink in a process of its own: where such a package writes is read when it is loaded."""
    env = os.environ | {"TRACKIO_DIR": str(folder), "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _TOLD, name], capture_output=True, text=True, env=env, cwd=folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_trackio_keeps_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    _told("trackio", tmp_path)
    database = sqlite3.connect(next(tmp_path.glob("*.db")))
    rows = database.execute("SELECT step, metrics FROM metrics ORDER BY rowid").fetchall()
    assert [step for step, _ in rows] == [0, 1, 2, 0]
    assert json.loads(rows[-1][1])["eval_ece"] == 0.2


def test_wandb_keeps_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    _told("wandb", tmp_path)
    runs = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    assert b"eval_ece" in runs[0].read_bytes()


def test_a_sink_that_cannot_start_is_told_with_a_mend(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "runs").write_text("a file stands in the way")
    with (
        pytest.raises(EngineError, match="report_to=tensorboard could not start"),
        board("tensorboard", tmp_path / "m", "", {}),
    ):
        pass
