"""A folder with a workflow and a table, and batches on fake servers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from batch_fake import Fake, graph, serving

from likeness.batch.check import Checked, check_plan
from likeness.batch.client import Access, HttpServer, read_address
from likeness.batch.engine import Engine
from likeness.batch.plan import BatchPlan
from likeness.batch.session import BatchRun, begin, execute, go_on, is_begun
from likeness.batch.work import End, WorkSettings

QUICK = WorkSettings(grace=0.4, zombie=0.6, stall=2.0, poll=(0.02, 0.2), first_probe=0.02)


class Desk:
    """What a user has on the disk, and what becomes of it."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "run"
        self.out.mkdir()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.write_graph(graph())

    def write_graph(self, made: Any) -> None:
        (self.folder / "api.json").write_text(json.dumps(made))

    def table(self, *lines: str, name: str = "rows.csv") -> Path:
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def rows(self, count: int) -> Path:
        return self.table("Paint.color,meta.note", *(f"{n},note {n}" for n in range(count)))

    def plan(self, **changes: Any) -> BatchPlan:
        table = self.folder / "rows.csv"
        return BatchPlan(
            **{"workflow": self.folder / "api.json", "table": table if table.is_file() else None, **changes}
        )

    def tell(self, kind: str, data: Any) -> None:
        self.events.append((kind, dict(data)))

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [data for one, data in self.events if one == kind]

    async def check(self, fakes: Sequence[Fake], plan: BatchPlan | None = None, **options: Any) -> Checked:
        workers = [HttpServer(read_address(fake.url)) for fake in fakes]
        try:
            return await check_plan(
                plan or self.plan(), workers, options.pop("open_faces", _nobody), self.out / "identities", **options
            )
        finally:
            for worker in workers:
                await worker.close()

    async def run(
        self,
        fakes: Sequence[Fake],
        plan: BatchPlan | None = None,
        settings: WorkSettings = QUICK,
        meanwhile: Callable[[Engine], Awaitable[Any]] | None = None,
        judge: Any = None,
        open_faces: Any = None,
        shared: Path | None = None,
        worker: Any = HttpServer,
    ) -> tuple[End, BatchRun]:
        """Begin or resume, to the end."""
        workers = [worker(read_address(fake.url), Access(timeout=0.3)) for fake in fakes]
        plan = plan or self.plan()
        tasks: list[Any] = []
        try:
            if is_begun(self.out):
                run = go_on(self.out, plan)
                from likeness.batch.schema import Nodes

                servers = [(worker, Nodes(fakes[0].info)) for worker in workers]
                for worker in workers:
                    await worker.open()
            else:
                checked = await check_plan(plan, workers, open_faces or _nobody, self.out / "identities")
                assert not checked.problems, [str(one) for one in checked.problems.found]
                run = begin(self.out, checked)
                servers = [(seen.worker, seen.nodes) for seen in checked.servers]
            judging = judge(run) if judge else None
            start = (
                (lambda engine: tasks.append(asyncio.ensure_future(meanwhile(engine))))
                if meanwhile
                else (lambda _: None)
            )
            end = await asyncio.wait_for(execute(run, servers, settings, judging, self.tell, shared, start), 60)
            return end, run
        finally:
            for task in tasks:
                task.cancel()
            for worker in workers:
                await worker.close()


def _nobody(name: str) -> Any:
    raise AssertionError(f"nobody asked for {name}")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def serve() -> Any:
    return serving
