"""Which of ComfyUI's names that this repository uses are gone or changed, as PyPI's comfy-import-guard reads them.

`python tests/import_guard.py` (`make guard`) asks about every host found and about the public repository of today;
tests/host/test_import_guard.py asks about the host of the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACK = "likeness"
KINDS = ("breaking", "soft", "signature_drift", "unresolvable", "unparseable")  # the lists of a report

# What it reports although it is right, by name, with the reason.
EXPLAINED = {
    "comfy.clip_vision.__file__": "every module has it; the tool looks for definitions in the source",
    "comfy.model_patcher.CoreModelPatcher": "of hosts with DynamicVRAM; ModelPatcher takes its place on older ones",
}


class CannotAsk(Exception):
    """The tool gave no report."""


def report(clones: Path, target: str, *, offline: bool) -> list[dict[str, Any]]:
    """What the tool finds in this repository against `target` of the clone in `clones`, each with its `kind`."""
    with tempfile.TemporaryDirectory() as install:
        packs = Path(install, "custom_nodes")
        packs.mkdir()
        (packs / PACK).symlink_to(REPOSITORY, target_is_directory=True)
        command = [sys.executable, "-m", "comfy_import_guard.cli", "check", "--json", "--quiet"]
        command += ["--comfy-dir", install, "--cache-dir", str(clones), "--target", target]
        done = subprocess.run([*command, *(["--offline"] if offline else [])], capture_output=True, text=True)
    try:
        [pack] = json.loads(done.stdout)["packs"]
    except ValueError:
        raise CannotAsk(done.stderr.strip()) from None
    if not pack["references"]:
        raise CannotAsk(f"It read {pack['python_files']} files and saw none of ComfyUI's names in them.")
    return [{"kind": kind, **found} for kind in KINDS for found in pack[kind]]


def report_on(comfyui: Path) -> list[dict[str, Any]]:
    """What the tool finds against a ComfyUI in a folder. It reads git only, so that a throw-away commit is made."""
    with tempfile.TemporaryDirectory() as clones:
        clone = Path(clones, "ComfyUI")
        subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
        git = ["git", f"--git-dir={clone / '.git'}", f"--work-tree={comfyui}"]
        git += ["-c", "user.name=guard", "-c", "user.email=guard@localhost", "-c", "commit.gpgsign=false"]
        for step in (["add", "--force", "--", "comfy/*.py"], ["commit", "--quiet", "--no-verify", "-m", "as it is"]):
            subprocess.run([*git, *step], cwd=comfyui, check=True)
        return report(Path(clones), "HEAD", offline=True)


def unexplained(findings: list[dict[str, Any]]) -> list[str]:
    """One line for each finding that `EXPLAINED` has no reason for. Tests may use what only some hosts have: those of
    other hosts leave them out."""
    return [
        f"{found['kind']}: {found.get('dotted', '')} {found['file']}:{found.get('line', '')} "
        f"{found.get('detail') or found.get('error') or ''}".strip()
        for found in findings
        if found.get("dotted") not in EXPLAINED and not found["file"].startswith("tests/")
    ]


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    import hosts

    found = {f"ComfyUI {host.version}": unexplained(report_on(host.folder)) for host in hosts.find_hosts()}
    try:
        with tempfile.TemporaryDirectory() as clones:
            found["the public repository"] = unexplained(report(Path(clones), "origin/HEAD", offline=False))
    except CannotAsk as problem:
        print(f"The public repository was not read: {problem}")
    for name, lines in found.items():
        print(f"{name}: {len(lines) or 'nothing'} unexplained", *lines, sep="\n  ")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
