"""What ComfyUI's registry, ComfyUI-Manager and a fresh machine expect of the repository."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from likeness import models_download

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest on Python 3.10

ROOT = Path(models_download.__file__).parent
FROM_THE_HOST = {"torch", "torchvision", "torchaudio", "numpy", "transformers", "pillow", "spandrel"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def distribution(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return match[0].lower().replace("_", "-")


def test_the_manager_and_pip_install_the_same(project: dict[str, Any]):
    assert sorted(requirements()) == sorted(project["project"]["dependencies"])


@pytest.mark.parametrize("requirement", requirements())
def test_requirements_are_lower_bounds_on_published_packages(requirement: str):
    assert re.fullmatch(r"[A-Za-z0-9._-]+(>=[0-9.]+)?", requirement), "no pin, no upper bound, no address"
    assert distribution(requirement) not in FROM_THE_HOST


def test_no_extra_asks_for_what_the_host_brings(project: dict[str, Any]):
    extras = project["project"].get("optional-dependencies", {}).values()
    assert not FROM_THE_HOST & {distribution(requirement) for extra in extras for requirement in extra}


def test_the_registry_accepts_the_metadata(project: dict[str, Any]):
    metadata, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,98}", metadata["name"]) and "comfyui" not in metadata["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    assert metadata["description"] and metadata["urls"]["Repository"].startswith("https://")
    assert metadata["license"]
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy, "WEB_DIRECTORY in __init__.py says it already"


@pytest.mark.parametrize(("key", "shape"), [("Icon", (400, 400)), ("Banner", (2100, 900))])
def test_the_registry_s_pictures_are_files_of_the_repository_in_its_shapes(project: dict[str, Any], key: str, shape):
    """A square of at most 400 pixels, and 21:9."""
    address = project["tool"]["comfy"][key]
    branch = project["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    assert address.startswith(branch)
    picture = ROOT / address.removeprefix(branch)
    assert picture.suffix == ".svg" and picture.stat().st_size < 20_000
    root = ElementTree.parse(picture).getroot()
    assert (root.get("width"), root.get("height")) == tuple(map(str, shape))
    assert root.get("viewBox") == f"0 0 {shape[0]} {shape[1]}"


def test_people_find_documents_and_where_to_report(project: dict[str, Any]):
    urls = project["project"]["urls"]
    assert urls["Documentation"].startswith(urls["Repository"])
    assert urls["Bug Tracker"] == urls["Repository"] + "/issues"


@pytest.mark.parametrize("folder", ["workflows", "workflows/api", "subgraphs"])
def test_graphs_are_package_data(project: dict[str, Any], folder: str):
    assert f"{folder}/*.json" in project["tool"]["setuptools"]["package-data"]["likeness"]
    assert list((ROOT / folder).glob("*.json"))


def test_every_room_and_folder_of_it_is_packaged(project: dict[str, Any]):
    """Setuptools cannot find them by itself, because the root of the repository is the package."""
    rooms = {path.parent.relative_to(ROOT).parts for path in ROOT.rglob("__init__.py")}
    ignored = {"tests", "build", "dist", "demo", "runs"}
    ours = {parts for parts in rooms if not parts or not (parts[0].startswith(".") or parts[0] in ignored)}
    packages = project["tool"]["setuptools"]["packages"]
    assert packages == sorted(".".join(("likeness", *parts)) for parts in ours)


def test_the_script_of_the_project_exists(project: dict[str, Any]):
    assert project["project"]["scripts"] == {"likeness": "likeness.cli:main"}


def test_the_registry_of_models_is_package_data(project: dict[str, Any]):
    assert "*.json" in project["tool"]["setuptools"]["package-data"]["likeness"]
    assert (ROOT / "model_registry.json").is_file()


PROBE = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def imported(module: str, cwd: Path) -> set[str]:
    """The top-level modules that importing `module` brings into a fresh interpreter."""
    code = PROBE.format(module=module)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=True)
    return set(json.loads(run.stdout))


def test_importing_the_pack_is_free(tmp_path: Path):
    assert imported("likeness", tmp_path) <= {"likeness", "__future__"}


@pytest.mark.parametrize("module", ["likeness.models_download", "likeness.cli"])
def test_the_command_line_needs_no_heavy_package(module: str, tmp_path: Path):
    names = imported(module, tmp_path)
    heavy = {"torch", "numpy", "typer", "tqdm", "cv2", "insightface", "diffusers", "transformers", "folder_paths"}
    assert not names & heavy


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    """Every Python file of the repository, parsed."""
    paths = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
    ignored = {"build", "dist", "demo", "runs"}
    return {
        path.as_posix(): ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for path in paths
        if not any(part.startswith(".") or part in ignored for part in path.parts)
    }


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    return ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def forbidden(tree: ast.AST) -> list[str]:
    """Calls that the registry's standards rule out: eval, exec, os.system, and pip run as a process."""
    found = []
    for name, call in calls(tree):
        if name in ("eval", "exec", "os.system", "os.popen", "pip.main", "pip._internal.main"):
            found.append(name)
        words = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
        if name.startswith(("subprocess.", "os.spawn", "os.exec")) and any(
            isinstance(word, str) and re.search(r"\bpip\b", word) for word in words
        ):
            found.append(f"{name} with pip")
    return found


def test_no_code_is_evaluated_and_nothing_is_installed_at_run_time(sources: dict[str, ast.Module]):
    assert {path: found for path, tree in sources.items() if (found := forbidden(tree))} == {}


@pytest.mark.parametrize(
    "code",
    ["eval('1')", "exec(text)", "subprocess.run([sys.executable, '-m', 'pip', 'install', 'x'])", "os.system('x')"],
)
def test_the_search_finds_what_it_looks_for(code: str):
    assert forbidden(ast.parse(code))
    assert not forbidden(ast.parse("model.eval()"))


def test_pickles_are_only_read_with_weights_only(sources: dict[str, ast.Module]):
    def is_safe(call: ast.Call) -> bool:
        return any(
            word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
            for word in call.keywords
        )

    offenders = [
        f"{path}:{call.lineno}: {name}"
        for path, tree in sources.items()
        for name, call in calls(tree)
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler") or (name == "torch.load" and not is_safe(call))
    ]
    assert offenders == []


def test_imports_inside_the_package_are_relative(sources: dict[str, ast.Module]):
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"likeness"}
    offenders = []
    for path, tree in sources.items():
        for node in ast.walk(tree) if not path.startswith(("tests/", "benchmarks/", "docs/")) else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            offenders += [f"{path}: {name}" for name in names if name.split(".")[0] in rooms]
    assert offenders == []
