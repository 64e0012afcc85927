"""Turns golden cases into pytest items and closes the run with a table per system."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from conformance import harness

HERE = Path(__file__).parent
for _runner_file in sorted((HERE / "runners").glob("*.py")):
    import_module(f"conformance.runners.{_runner_file.stem}")


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
