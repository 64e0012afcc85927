"""Names of the host that were removed or changed are found by reading, also where no test calls them."""

from __future__ import annotations

import import_guard as guard
import pytest


@pytest.fixture(scope="module")
def findings(host_path):
    return guard.report_on(host_path)


def test_nothing_that_we_use_of_the_host_is_gone(findings):
    assert guard.unexplained(findings) == []


def test_every_explanation_is_still_of_use(findings, host_path):
    """It is of something that this host lacks, or that only older ones do."""
    seen = {found.get("dotted") for found in findings}
    for name in set(guard.EXPLAINED) - seen:
        module, _, attribute = name.rpartition(".")
        assert attribute in host_path.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def test_a_removed_name_is_reported_with_its_place(host_path, tmp_path):
    # `comfy/` without the file that the miniature takes its decoder from
    for file in (host_path / "comfy").rglob("*.py"):
        if file.name != "taesd.py":
            copy = tmp_path / file.relative_to(host_path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    lines = guard.unexplained(guard.report_on(tmp_path))
    assert any("comfy.taesd.taesd" in line and "miniature/models/comfy.py" in line for line in lines)
