"""The tool that measures what the tests find."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import mutants

SAMPLE = '''
"""A module."""

LIMIT: Final = 3


def clamp(value: int, *, lowest: int = 0) -> int:
    """Return *value*, but no less than *lowest*."""
    _LOG.debug("clamp %s", value)
    if value < lowest and not lowest == 7:
        raise TooLowError("less than it may be")
    return max(value, lowest)


def row(connection):
    connection.execute("SELECT a FROM b WHERE c >= ? AND d IS NULL")
'''

# What the tests of the tiny project call; one of its functions has none that looks.
TINY = '''
def twice(number):
    return number * 2


def report(number):
    return number + 1


SCRIPT = """
local left = 1
if left > 0 then return left end
"""
'''

TINY_TEST = """
from aio_agentapi import _gate


def test_twice():
    assert _gate.twice(3) == 6


def test_report():
    _gate.report(3)
"""


def faults(source: str, module: str = "_gate") -> set[tuple[int, str, str]]:
    """Return the faults of a source: line, what is there, what is put there."""
    found = mutants.Finder(module, source.encode()).find()
    return {(m.line, m.old, m.new) for m in found}


def test_faults_are_found_in_code_and_not_in_texts() -> None:
    """Comparisons, conditions, constants, statements; no annotation, no message."""
    lines = SAMPLE.splitlines()
    found = faults(SAMPLE)
    assert {(lines[n - 1].strip(), old, new) for n, old, new in found} == {
        ("LIMIT: Final = 3", "3", "4"),
        ("LIMIT: Final = 3", "3", "2"),
        ("def clamp(value: int, *, lowest: int = 0) -> int:", "0", "1"),
        ("def clamp(value: int, *, lowest: int = 0) -> int:", "0", "-1"),
        *(
            ("if value < lowest and not lowest == 7:", old, new)
            for old, new in (
                ("value < lowest and not lowest == 7", "True"),
                ("value < lowest and not lowest == 7", "False"),
                (
                    "value < lowest and not lowest == 7",
                    "(value < lowest or not lowest == 7)",
                ),
                ("value < lowest", "(value <= lowest)"),
                ("value < lowest", "(value >= lowest)"),
                ("not lowest == 7", "(lowest == 7)"),
                ("lowest == 7", "(lowest != 7)"),
                ("7", "8"),
                ("7", "6"),
            )
        ),
        (
            'raise TooLowError("less than it may be")',
            'raise TooLowError("less than it may be")',
            "pass",
        ),
        ("return max(value, lowest)", "max(value, lowest)", "None"),
        *(
            ('connection.execute("SELECT a FROM b WHERE c >= ? AND d IS NULL")', *pair)
            for pair in (
                (
                    'connection.execute("SELECT a FROM b WHERE c >= ? AND d IS NULL")',
                    "pass",
                ),
                (">=", ">"),
                ("AND", "OR"),
                ("IS", "IS NOT "),
            )
        ),
    }


def test_faults_are_found_in_lua() -> None:
    """Of the script alone, and not in its comments and texts."""
    script = """
SCRIPT: Final = '''
-- 1 and 2
local now = tonumber(ARGV[2] or '0')
row.left = math.max(now - 1, 0)
'''
"""
    assert faults(script, mutants.LUA) == {
        (4, "2", "3"),
        (4, "or", "and"),
        (5, "row.left = math.max(now - 1, 0)", ""),
        (5, "max(", "min("),
        (5, "-", "+"),
        (5, "1", "2"),
        (5, "0", "1"),
    }
    assert not faults(script)


def test_a_mutant_is_written_in_place_of_the_original(tmp_path: Path) -> None:
    """One fault, and nothing else is changed; letters of several bytes are none."""
    source = 'A = "é"\nB = 1 < 2\n'
    path = tmp_path / mutants.PACKAGE / "_gate.py"
    path.parent.mkdir()
    path.write_text(source)
    for mutant in mutants.find(tmp_path, "_gate"):
        mutant.write(tmp_path)
        changed = path.read_text()
        assert changed != source
        assert len([*zip(changed.splitlines(), source.splitlines(), strict=True)]) == 2
        compile(changed, "changed", "exec")
        path.write_text(source)


def test_the_seed_decides_which_are_chosen() -> None:
    """One of each place, and the first of more are those of fewer."""
    found = mutants.Finder("_gate", SAMPLE.encode()).find()
    few, more = mutants.choose(found, 4, "1"), mutants.choose(found, 9, "1")
    assert few == more[:4]
    assert more != mutants.choose(found, 9, "2")
    assert len({(m.start, m.end) for m in more}) == 9


@pytest.mark.process
def test_a_survivor_is_told_from_what_is_killed(tmp_path: Path) -> None:
    """Those that no test finds are printed and written down; listed, they are none."""
    package, tests = tmp_path / mutants.PACKAGE, tmp_path / "tests"
    package.mkdir()
    tests.mkdir()
    (package / "__init__.py").touch()
    (package / "testing.py").touch()
    (package / "_gate.py").write_text(TINY)
    (tests / "test_tiny.py").write_text(TINY_TEST)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - ourselves
            [
                *(sys.executable, "-m", "tests.mutants", "--module", "_gate"),
                *("--root", str(tmp_path), "--file", str(survivors), *options),
            ],
            cwd=mutants.ROOT,
            # What coverage warns of on newer Pythons is no business of its.
            env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"},
            capture_output=True,
            text=True,
            check=False,
        )

    survivors = tmp_path / "survivors.toml"
    first = run()
    assert first.returncode == 1, first.stderr
    assert "aio_agentapi/_gate.py:7  number + 1  ->  " in first.stdout
    assert "number * 2" not in first.stdout
    (tests / "mutants.toml").write_text(survivors.read_text())
    assert {
        (each["line"], each["old"])
        for each in tomllib.loads(survivors.read_text())["mutant"]
    } == {("return number + 1", "number + 1"), ("return number + 1", "1")}
    second = run()
    assert second.returncode == 0, second.stdout
    assert "100.0%" in second.stdout
