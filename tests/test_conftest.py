"""What the shared conftest.py does with the tests that need the real ComfyUI."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
    import pytest

    def test_without(): pass

    @pytest.mark.host
    def test_any(): pass

    @pytest.mark.host(since="0.21")
    def test_new(): pass

    @pytest.mark.host(since="0.3.48")
    def test_not_so_new(): pass

    @pytest.mark.host
    @pytest.mark.parametrize("case", [])
    def test_case(case): pass

    def test_folder(host_path): assert (host_path / "main.py").is_file()
"""


@pytest.fixture
def outcome(pytester: pytest.Pytester, monkeypatch):
    """Run `TESTS` with a host of that version (None: with no host)."""
    here = Path(__file__).parent
    for name in ("conftest.py", "comfyui.py"):
        shutil.copy(here / name, pytester.path / name)
    pytester.makeini("[pytest]\npythonpath = .\nmarkers = host(since): needs ComfyUI\n")
    pytester.makepyfile(TESTS, torch="def set_num_threads(count): pass")  # the real one takes seconds to import
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(version: str | None, *arguments: str) -> pytest.RunResult:
        host = pytester.path / f"host-{version}"
        host.mkdir()
        if version is not None:
            (host / "main.py").touch()
            (host / "comfyui_version.py").write_text(f'__version__ = "{version}"')
        monkeypatch.setenv("COMFYUI_PATH", str(host))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)

    return run


def test_the_counts_are_said_to_be_of_a_version(outcome):
    result = outcome("0.33.0")
    result.assert_outcomes(passed=5, deselected=1)  # test_case, which has no case
    result.stdout.fnmatch_lines(["ComfyUI 0.33.0 in */host-0.33.0: 4 passed"])


def test_a_test_of_what_newer_hosts_have_is_left_out_on_an_older_one(outcome):
    result = outcome("0.3.64", "-m", "host")
    result.assert_outcomes(passed=3, deselected=3)  # so are test_without and test_case
    result.stdout.fnmatch_lines(["ComfyUI 0.3.64 in *: 3 passed; 1 left out, which need a newer one"])


def test_a_run_without_such_tests_names_no_host(outcome):
    result = outcome("0.33.0", "-m", "not host")
    result.assert_outcomes(passed=1, deselected=5)
    result.stdout.no_fnmatch_line("*ComfyUI*")


def test_without_a_host_they_skip_and_say_how_to_get_one(outcome):
    result = outcome(None)
    result.assert_outcomes(passed=1, skipped=4, deselected=1)
    result.stdout.fnmatch_lines(["4 skipped: *make comfyui*"])
