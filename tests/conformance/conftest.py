"""Turns golden cases into pytest items and closes the run with a table per system."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
load_module = sys.modules["likeness_comfyui"].load_module  # set up by tests/conftest.py

harness = load_module("likeness_conformance", HERE / "harness.py")
for _runner_file in sorted((HERE / "runners").glob("*.py")):
    load_module(f"likeness_conformance_{_runner_file.stem}", _runner_file)


def pytest_terminal_summary(terminalreporter):
    """Counts per system, and the name of every case that was skipped because its part is not built yet."""
    rows, skipped = [], {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            node = getattr(report, "nodeid", "")
            if "test_golden[" in node and (report.when == "call" or outcome == "skipped"):
                system, _, case = node.split("test_golden[")[1].rstrip("]").partition("/")
                rows.append((system, outcome))
                if outcome == "skipped":
                    skipped.setdefault(system, []).append(case)
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
    for system, cases in sorted(skipped.items()):
        terminalreporter.write_line(f"not built yet: {system}: {', '.join(sorted(cases))}")
