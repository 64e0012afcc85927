"""The model files this pack works with; `models_download` beside this folder is the front that others import.

Nothing here touches the network unless `download` is called, and nothing needs torch or ComfyUI: inside ComfyUI the
folders come from its `folder_paths` module (so `extra_model_paths.yaml` is honoured), elsewhere from `LIKENESS_MODELS`,
`COMFYUI_PATH` or the usual places. Files are only ever added; one that is already there is never changed.
"""
