"""Where the real ComfyUI is, and how it is imported into this process (by the tests and by `workflows/_build.py`)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from likeness.miniature import comfyui_server

REPOSITORY = Path(__file__).resolve().parents[1]
version_of = comfyui_server.version_of
HOW_TO_GET_IT = f"needs the real ComfyUI: {comfyui_server.HOW_TO_GET_IT}"


def find() -> Path | None:
    """This process's host: the first that `COMFYUI_PATH` names, else of `.comfyui/` and comfy-cli's own default."""
    places = comfyui_server.named_places() or comfyui_server.usual_places(REPOSITORY)
    return next(iter(comfyui_server.all_comfyui(places)), None)


def is_at_least(host: Path, version: str) -> bool:
    """Whether this host is of `version` ('0.21') or newer."""
    key = comfyui_server.version_key
    return key(comfyui_server.version_of(host)) >= key(version)


def import_into_this_process(host: Path, base: Path) -> ModuleType:
    """Import the host on the CPU, with models, input and output below `base`; returns its top-level `nodes` module.

    Only the first call imports: the host keeps its state in modules, so a process has one. `host` stays on `sys.path`.
    """
    if "folder_paths" not in sys.modules:
        sys.path.insert(0, str(host))
        from comfy.cli_args import args  # before comfy.model_management, which reads them once

        args.cpu = True
        args.base_directory = str(base)
        import folder_paths
        import utils.extra_config  # noqa: F401 - before `nodes`, which puts comfy/ on sys.path, where a utils.py lies

        for make in ("output", "temp", "input", "user"):
            (base / make).mkdir(parents=True, exist_ok=True)
        del folder_paths
    import nodes

    return nodes


def load_module(name: str, path: Path) -> Any:
    """Import a helper file under a fixed name, so that all of its users share one copy."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def object_info(nodes: ModuleType, extra_classes: list[type] | None = None) -> dict[str, dict[str, Any]]:
    """What the server's `/object_info` says, for the host's built-in nodes and `extra_classes` (V3 node classes)."""
    if "PreviewAny" not in nodes.NODE_CLASS_MAPPINGS:  # those of comfy_extras/ do not come with the import
        asyncio.run(nodes.init_builtin_extra_nodes())
    classes = dict(nodes.NODE_CLASS_MAPPINGS)
    classes.update({cls.GET_SCHEMA().node_id: cls for cls in extra_classes or []})  # pyright: ignore[reportAttributeAccessIssue]
    info: dict[str, dict[str, Any]] = {}
    for name, cls in classes.items():
        if hasattr(cls, "GET_NODE_INFO_V1"):
            info[name] = cls.GET_NODE_INFO_V1()
            continue
        inputs = cls.INPUT_TYPES()
        outputs = list(cls.RETURN_TYPES)
        info[name] = {
            "input": inputs,
            "input_order": {group: list(fields) for group, fields in inputs.items()},
            "output": outputs,
            "output_name": list(getattr(cls, "RETURN_NAMES", outputs)),
            "name": name,
            "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
            "output_node": bool(getattr(cls, "OUTPUT_NODE", False)),
        }
    return json.loads(json.dumps(info))  # tuples become lists, as over HTTP
