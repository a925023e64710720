"""`factory doctor --learn`: every trainer in small worlds whose right answers are known, on this machine."""

import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from factory import report
from factory.errors import FactoryError
from factory.flow import Say
from factory.steps import load_step


def proved(say: Say, style: str | None = None) -> bool:
    """Train in all worlds and print what was measured beside what is exact; returns whether all of it is right."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    forms: Any = import_module("trainers._closed_forms")
    torch.set_num_threads(1)  # the worlds are too small to share out
    rows, started = list[list[Any]](), time.process_time()
    for name, world in {**forms.WORLDS, **forms.MORE}.items():
        say(f"  {name} ...")
        with TemporaryDirectory(prefix="factory-learn-") as folder:
            try:
                found = list(world(lambda step, options: load_step("train", step, options), Path(folder)))
            except FactoryError as error:  # a trainer that refuses to go on has not learned
                rows.append([name, "", "", "", f"no: {error}"])
                continue
        rows += [
            [f.name, f"{f.value:.4f}", f"{f.target:.4f}", f"{f.tolerance:.4f}", "yes" if f.right else "NO"]
            for f in found
        ]
    report.table(["world", "measured", "exact", "tolerance", "passed"], rows, style)
    passed = [row[-1] for row in rows].count("yes")
    say(f"{passed} of {len(rows)} measurements are right ({time.process_time() - started:.0f} CPU seconds)")
    return passed == len(rows)
