"""Turns golden cases into pytest items and closes the run with a table per system."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent


def _load(name: str, path: Path):
    """Import a helper module of this folder under a fixed name, so that all of its users share one registry."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


harness = _load("likeness_conformance", HERE / "harness.py")
for _runner_file in sorted((HERE / "runners").glob("*.py")):
    _load(f"likeness_conformance_{_runner_file.stem}", _runner_file)


def pytest_terminal_summary(terminalreporter):
    rows = []
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            node = getattr(report, "nodeid", "")
            if "test_golden[" in node and (report.when == "call" or outcome == "skipped"):
                rows.append((node.split("test_golden[")[1].split("/")[0], outcome))
    if not harness.find_cases(harness.golden_folder()):
        terminalreporter.section("golden cases")
        terminalreporter.write_line(f"skipped: none in {harness.golden_folder()}; set LIKENESS_GOLDEN to their folder")
    if not rows:
        return
    table = harness.tally(rows)
    terminalreporter.section("golden cases")
    terminalreporter.write_line(f"{'system':<20} {'passed':>7} {'failed':>7} {'skipped':>8}")
    for system, counts in sorted(table.items()):
        terminalreporter.write_line(f"{system:<20} {counts['passed']:>7} {counts['failed']:>7} {counts['skipped']:>8}")
