"""What the browser tests need besides ComfyUI: playwright in this Python, and the newest frontend of the registry.

    python tests/browser/bring.py

Without a registry the tests run with what is here: no playwright skips them all, no frontend those of the newest one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "comfyui-frontend-package"
PLACE = Path(__file__).resolve().parents[2] / "build" / "frontend"
DRIVER = "playwright>=1.40"  # brings no browser of its own: the system's is used


PIP = (sys.executable, "-m", "pip", "--quiet")


def pip(*arguments: str) -> bool:
    """Whether pip did it."""
    return subprocess.run([*PIP, *arguments]).returncode == 0


def bring_frontend() -> None:
    """The newest frontend, in the place of an older one."""
    with tempfile.TemporaryDirectory() as folder:
        if not pip("download", "--no-deps", "--dest", folder, PACKAGE):
            print(f"{PACKAGE} could not be brought; the tests of the newest frontend will be skipped.")
            return
        [wheel] = Path(folder).glob("*.whl")
        version = PLACE / "version.txt"
        if version.is_file() and version.read_text() == wheel.name:
            return
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(PLACE)
        version.write_text(wheel.name)
        print(f"{wheel.name} is in {PLACE}.")


def main() -> None:
    if find_spec("playwright") is None and not pip("install", DRIVER):
        print("playwright could not be installed; the browser tests will be skipped.")
    bring_frontend()


if __name__ == "__main__":
    main()
