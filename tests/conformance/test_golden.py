"""Every golden case is one item, `<system>/<case>`: the project's output against the official implementation's."""

from __future__ import annotations

import pytest
import torch
from conformance import harness

CASES = harness.find_cases(harness.golden_folder())


@pytest.mark.parametrize("path", CASES, ids=[f"{p.parent.name}/{p.stem}" for p in CASES])
def test_golden(path):
    meta = harness.read_metadata(path)
    runner = harness.runner_for(meta["system"], meta["variant"])
    if runner is None:
        pytest.skip(f"not built yet: {meta['system']} / {meta['variant']} ({path.parent.name}/{path.stem})")
    case = harness.read_case(path)
    torch.manual_seed(0)
    harness.judge(case, runner.run(case), runner)
