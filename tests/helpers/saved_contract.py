"""What saved workflows rely on of our nodes, and which changes of it break them."""

from __future__ import annotations

from typing import Any

NOT_INSTALLED = " (not installed)"  # as nodes mark it; files hold the entry with or without it
HOSTS_OWN = {"sampler_name", "scheduler"}  # their choices are those of the ComfyUI that is running

Contract = dict[str, dict[str, Any]]


def contract(info: dict[str, dict[str, Any]], graph_tool: Any) -> Contract:
    """What saved workflows rely on, of all our nodes in `/object_info`."""
    return {name: _node(info[name], graph_tool) for name in sorted(info) if name.startswith("Likeness")}


def _node(info: dict[str, Any], graph_tool: Any) -> dict[str, Any]:
    inputs = graph_tool.inputs_of(info)
    widgets = []  # as their values stand in a file
    for widget in (i for i in inputs if i.is_widget):
        widgets += [widget.name] + [f"{widget.name} (control after generate)"] * widget.has_seed_control
    outputs = zip(info["output_name"], info["output"], strict=True)
    return {
        "inputs": {i.name: _input(i) for i in inputs},
        "widgets": widgets,
        "outputs": [f"{name}: {kind if isinstance(kind, str) else 'COMBO'}" for name, kind in outputs],
    }


def _input(given: Any) -> dict[str, Any]:
    kept = {"type": given.type, "required": given.required}
    kept |= {key: given.options[key] for key in ("default", "min", "max") if key in given.options}
    if given.type == "COMBO" and given.name not in HOSTS_OWN:
        # What stands in brackets tells that there is no file to choose, or that an entry's files are not here.
        choices = [str(choice) for choice in given.choices or []]
        kept["options"] = [choice.removesuffix(NOT_INSTALLED) for choice in choices if not choice.startswith("(")]
    return kept


def breaking_changes(frozen: Contract, current: Contract) -> list[str]:
    """What of `frozen` no longer holds, one sentence each."""
    found = []
    for name, before in frozen.items():
        if name not in current:
            found.append(f"{name}: the node is gone")
            continue
        now = current[name]
        for key, old in before["inputs"].items():
            found += [f"{name}.{key}: {change}" for change in _input_changes(old, now["inputs"].get(key))]
        for key, new in now["inputs"].items():
            if key not in before["inputs"] and new["required"]:
                found.append(f"{name}.{key}: the new input is required, and saved graphs do not have it")
        for part, why in (("widgets", "their values are saved in this order"), ("outputs", "links name their place")):
            if now[part][: len(before[part])] != before[part]:
                found.append(f"{name}: {part} were {before[part]} and are {now[part]}; {why}")
    return found


def _input_changes(old: dict[str, Any], new: dict[str, Any] | None) -> list[str]:
    if new is None:
        return ["the input is gone"]
    found = []
    if not set(old["type"].split(",")) <= set(new["type"].split(",")):
        found.append(f"it took {old['type']} and takes {new['type']}")
    if new["required"] and not old["required"]:
        found.append("it was optional and is required")
    if old.get("default") != new.get("default"):
        found.append(f"its default was {old.get('default')!r} and is {new.get('default')!r}")
    if new.get("min", old.get("min")) != old.get("min") and new["min"] > old.get("min", float("-inf")):
        found.append(f"values from {old.get('min')} were allowed, now from {new['min']}")
    if new.get("max", old.get("max")) != old.get("max") and new["max"] < old.get("max", float("inf")):
        found.append(f"values up to {old.get('max')} were allowed, now up to {new['max']}")
    if gone := [option for option in old.get("options", []) if option not in new.get("options", [])]:
        found.append(f"the choices {gone} are gone")
    return found
