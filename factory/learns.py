"""`factory doctor --learn`: every trainer in small worlds whose right answers are known, on this machine."""

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from factory import report
from factory.errors import FactoryError
from factory.flow import Say
from factory.steps import load_step


def proved(say: Say, style: str | None = None, names: Sequence[str] = ()) -> bool:
    """Train in all worlds, or some, and print what was measured beside what is exact; returns whether all is right."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    forms: Any = import_module("trainers._closed_forms")
    torch.set_num_threads(1)  # the worlds are too small to share out
    rows, started = list[list[Any]](), time.process_time()
    worlds = {**forms.WORLDS, **forms.MORE}
    for name in names or worlds:
        say(f"  {name} ...")
        with TemporaryDirectory(prefix="factory-learn-") as folder:
            try:
                found = list(worlds[name](lambda step, options: load_step("train", step, options), Path(folder)))
            except FactoryError as error:  # a trainer that refuses to go on has not learned
                rows.append([name, "", "", "", f"no: {error}"])
                continue
        rows += map(row, found)
    report.table(["world", "measured", "exact", "tolerance", "passed"], rows, style)
    passed = [told[-1] for told in rows].count("yes")
    say(f"{passed} of {len(rows)} measurements are right ({time.process_time() - started:.0f} CPU seconds)")
    return passed == len(rows)


def row(finding: Any) -> list[str]:
    """A finding as the table tells it."""
    numbers = (f"{x:.4f}" for x in (finding.value, finding.target, finding.tolerance))
    return [finding.name, *numbers, "yes" if finding.right else "NO"]
