"""`factory doctor --learn` tells what every trainer learned beside what is exact."""

import json

import pytest
from click.testing import CliRunner

from factory.cli import main
from factory.learns import proved, row
from trainers._worlds import Finding

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_measurement_stands_beside_what_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    said = list[str]()
    assert proved(said.append, "json", ["margins", "ranking"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = ["margins: difference", "ranking: first over second", "ranking: second over third"]
    assert [r["world"] for r in rows] == names
    assert all(abs(float(r["measured"]) - float(r["exact"])) <= float(r["tolerance"]) for r in rows)
    assert said[-1].startswith("3 of 3 measurements are right")


def test_what_is_off_or_no_number_is_told() -> None:
    assert row(Finding("kl", 0.61, 0.60, 0.05))[-1] == "yes"
    assert row(Finding("kl", 0.70, 0.60, 0.05)) == ["kl", "0.7000", "0.6000", "0.0500", "NO"]
    assert row(Finding("kl", float("nan"), 0.60, 0.05))[-1] == "NO"


def test_the_command_says_what_it_does() -> None:
    assert "--learn" in CliRunner().invoke(main, ["doctor", "--help"]).output
