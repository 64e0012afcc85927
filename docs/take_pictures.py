"""Photographs the example graphs in the real ComfyUI: `python docs/take_pictures.py [workflow ...]`.

Writes the templates' thumbnails `workflows/<workflow>.jpg`; for those in `SHOWN` also `docs/pictures/<workflow>.png`
(English, and `.zh.png`; the graph is inside, so that the image can be dragged onto the canvas). Needs the real
ComfyUI (see `make comfyui`), Chromium, a Chinese font, and the packages playwright and facenet-pytorch in this Python.

Where files would have to be downloaded, the models are empty files and nothing is sampled. Graphs that need no
download run to their end, and their thumbnail is what they made. The previews of Find Faces are real, by MTCNN, which
needs no file. The photos come with scikit-image and are free: the astronaut is NASA's, coffee and cat are CC0.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
WORKFLOWS = REPOSITORY / "workflows"
PICTURES = HERE / "pictures"
THUMBNAIL = 400
FINISHED_WITHIN = 600  # seconds
LONGEST_SIDE = 1600  # CSS pixels; twice as many in the file
SHOWN = ("portrait_faceid",)  # in the READMEs
ENGLISH = "en-US"
LANGUAGES = {ENGLISH: ".png", "zh-CN": ".zh.png"}

# Runs what the image previews need, and nothing behind it; returns the ids of the previews. Those behind a model file
# stay empty.
PREVIEW = """async () => {
  const models = ['CheckpointLoaderSimple', 'CLIPVisionLoader', 'ControlNetLoader', 'LikenessLoadIdentityAdapter',
    'LikenessLoadIdentity', 'LikenessLoadEmbeds', 'LikenessLoadMiniature', 'LikenessStoryMakerCharacter',
    'LikenessLoadFaceRestorer', 'UpscaleModelLoader', 'UNETLoader', 'CLIPLoader', 'VAELoader'];
  const {output} = await app.graphToPrompt();
  const wanted = Object.keys(output).filter(id => output[id].class_type === 'PreviewImage');
  const links = id => Object.values(output[id].inputs).filter(Array.isArray);
  const behind = id => [id, ...links(id).flatMap(link => behind(link[0]))];
  const free = wanted.filter(id => !behind(id).some(other => models.includes(output[other].class_type)));
  if (!free.length) return free;
  const needed = Object.fromEntries(free.flatMap(behind).map(id => [id, output[id]]));
  for (const node of Object.values(needed))
    if (node.class_type === 'LikenessLoadFaceAnalysis' && node.inputs.model !== 'miniature')
      node.inputs.model = 'MTCNN (no recogniser)';
  const done = new Promise((resolve, reject) => {
    app.api.addEventListener('execution_success', resolve);
    app.api.addEventListener('execution_error', event => reject(event.detail.exception_message));
  });
  const body = JSON.stringify({prompt: needed, client_id: app.api.clientId});
  const answer = await fetch('/prompt', {method: 'POST', headers: {'Content-Type': 'application/json'}, body});
  if (!answer.ok) throw new Error(await answer.text());
  await done;
  return free;
}"""

PREVIEWS_DRAWN = """ids => app.graph._nodes.every(node => (!ids.includes(`${node.id}`) && node.type !== 'LoadImage')
  || (node.imgs?.length && node.imgs.every(image => image.complete && image.naturalWidth)))"""

EXTENT = """() => {
  const box = new Float32Array(4);
  let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
  const nodes = app.graph._nodes.filter(node => node.type !== 'MarkdownNote');  // its text is too small to read here
  for (const item of [...nodes, ...app.graph._groups]) {
    const [x, y, w, h] = item.getBounding ? item.getBounding(box) : item._bounding;
    x0 = Math.min(x0, x); y0 = Math.min(y0, y); x1 = Math.max(x1, x + w); y1 = Math.max(y1, y + h);
  }
  return [x0, y0, x1, y1];
}"""

FIT = """([x0, y0, x1, y1]) => {
  const canvas = app.canvas.canvas, view = app.canvas.ds;
  view.scale = Math.min(canvas.clientWidth / (x1 - x0), canvas.clientHeight / (y1 - y0));
  view.offset[0] = -x0; view.offset[1] = -y0;
  app.canvas.deselectAll?.();
  app.canvas.setDirty(true, true);
}"""

HIDE_MENUS = ".comfy-menu-hamburger,.fixed.top-0.right-0:has(.pi-bars),.p-toast,.p-dialog-mask{display:none!important}"


def names_of_workflows() -> list[str]:
    """The stems of all example workflows."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def is_free(workflow: dict[str, Any]) -> bool:
    """Whether it runs with what comes with the pack."""
    loads = {node["type"] for node in workflow["nodes"]}
    needs_a_run = loads & {"LikenessLoadConcept", "LikenessLoadSubject"}  # of another graph
    return "LikenessLoadMiniature" in loads and "SaveImage" in loads and not needs_a_run


def prepare(base: Path, workflows: list[dict[str, Any]]) -> None:
    """Settings, empty model files under the names the workflows want, and photos under the names they load."""
    import_module("helpers.browser").write_settings(base)
    for node in (node for workflow in workflows for node in workflow["nodes"]):
        for model in node.get("properties", {}).get("models", []):
            path = base / "models" / model["directory"] / model["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if node["type"] == "LoadImage":
            path = base / "input" / node["widgets_values"][0]
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(path.name).save(path, quality=95)


def photo(name: str) -> Any:
    """A person for names that ask for one, the same person mirrored for a second one, and things for other names."""
    import skimage.data
    from PIL import Image, ImageOps

    if (WORKFLOWS / name).is_file():
        return Image.open(WORKFLOWS / name)
    if name.startswith(("style", "reference", "clothes", "subject")):
        return Image.fromarray(skimage.data.chelsea() if "2" in name or "subject" in name else skimage.data.coffee())
    person = Image.fromarray(skimage.data.astronaut())
    return ImageOps.mirror(person) if "2" in name or "right" in name else person


@contextmanager
def browser(address: str, locale: str) -> Iterator[Any]:
    """A page of ComfyUI in this language, ready for a graph, without its menus."""
    with import_module("helpers.browser").opened(address, locale, LONGEST_SIDE, LONGEST_SIDE, scale=2) as editor:
        editor.page.add_style_tag(content=HIDE_MENUS)
        editor.run("app.extensionManager.focusMode = true")
        yield editor.page


def finish(page: Any) -> list[bytes]:
    """The images that a graph saves, which needs no download."""
    import_module("helpers.browser").Editor(page, "").queue(FINISHED_WITHIN)
    saved = (
        "app.graph._nodes.filter(node => node.type === 'SaveImage').flatMap(node => node.imgs.map(each => each.src))"
    )
    page.wait_for_function("app.graph._nodes.every(node => node.type !== 'SaveImage' || node.imgs?.length)")
    return [page.request.get(address).body() for address in page.evaluate(saved)]


def save_finished(pictures: list[bytes], path: Path) -> None:
    """A square filled by the first two images."""
    from PIL import Image, ImageOps

    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    width = THUMBNAIL // len(pictures[:2])
    for place, content in enumerate(pictures[:2]):
        with Image.open(io.BytesIO(content)) as picture:
            part = ImageOps.fit(picture.convert("RGB"), (width, THUMBNAIL), Image.Resampling.BICUBIC)
        square.paste(part, (place * width, 0))
    square.save(path, quality=88, optimize=True)


def photograph(page: Any, name: str, workflow: dict[str, Any]) -> bytes:
    """The whole graph as PNG, with the previews that need no model file."""
    page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name])
    page.wait_for_function(PREVIEWS_DRAWN, arg=page.evaluate(PREVIEW))
    page.keyboard.press("Escape")
    margin = 24
    x0, y0, x1, y1 = page.evaluate(EXTENT)
    extent = [x0 - margin, y0 - margin, x1 + margin, y1 + margin]
    width, height = extent[2] - extent[0], extent[3] - extent[1]
    scale = min(1, LONGEST_SIDE / max(width, height))
    page.set_viewport_size({"width": round(width * scale), "height": round(height * scale)})
    page.wait_for_timeout(500)  # the canvas follows the window
    page.evaluate(FIT, extent)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(300)
    return page.screenshot()


def save_picture(png: bytes, path: Path, workflow: dict[str, Any]) -> None:
    """The screenshot with 256 colours, and the graph in the chunk that ComfyUI reads (ASCII: it reads no other)."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("workflow", json.dumps(workflow, separators=(",", ":")))
    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small.save(path, optimize=True, pnginfo=chunks)


def save_thumbnail(png: bytes, previews: list[bytes], path: Path) -> None:
    """A square: what the first two previews show, and the graph below; without previews the left of the graph."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(png)) as picture:
        graph = picture.convert("RGB")
    strip = ImageOps.contain(graph, (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    room = THUMBNAIL - strip.height
    if not previews or room < THUMBNAIL / 4:
        square = ImageOps.fit(graph, (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, centering=(0, 0))
    else:
        square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), graph.getpixel((2, 2)))
        square.paste(strip, (0, room))
        width = THUMBNAIL // len(previews[:2])
        for place, preview in enumerate(previews[:2]):
            with Image.open(io.BytesIO(preview)) as picture:
                part = ImageOps.fit(
                    picture.convert("RGB"), (width, room), Image.Resampling.LANCZOS, centering=(0.5, 0.1)
                )
            square.paste(part, (place * width, 0))
    square.save(path, quality=88, optimize=True)


def preview_pictures(page: Any) -> list[bytes]:
    """What the Preview Image nodes of the graph show."""
    shown = "app.graph._nodes.filter(node => node.type === 'PreviewImage' && node.imgs).map(node => node.imgs[0].src)"
    return [page.request.get(address).body() for address in page.evaluate(shown)]


def main() -> None:
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui, server_module = import_module("comfyui"), import_module("helpers.server")
    host = comfyui.find()
    if host is None:
        sys.exit(f"docs/take_pictures.py {comfyui.HOW_TO_GET_IT}")
    wanted = sys.argv[1:] or names_of_workflows()
    workflows = {name: json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")) for name in wanted}
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base, list(workflows.values()))
        with server_module.running(host, base, REPOSITORY) as server:
            for locale, ending in LANGUAGES.items():
                for name, workflow in workflows.items():
                    if locale != ENGLISH and name not in SHOWN:
                        continue
                    with browser(server.client.address, locale) as page:
                        png, previews = photograph(page, name, workflow), preview_pictures(page)
                        finished = finish(page) if is_free(workflow) else []
                    if name in SHOWN:
                        save_picture(png, PICTURES / f"{name}{ending}", workflow)
                    if locale == ENGLISH and finished:
                        save_finished(finished, WORKFLOWS / f"{name}.jpg")
                    elif locale == ENGLISH:
                        save_thumbnail(png, previews, WORKFLOWS / f"{name}.jpg")
                    print(f"{name} ({locale})")


if __name__ == "__main__":
    main()
