"""`likeness batch`: a checked table in, images and a table of likeness out. See docs/batches.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LikenessError, one_line
from . import opening
from .batch_progress import Teller
from .batch_secrets import Secrets
from .edge import Verb

if TYPE_CHECKING:
    from ..batch.engine import Engine
    from ..batch.plan import BatchPlan
    from ..batch.problems import Problems
    from ..batch.session import BatchRun
    from ..batch.work import WorkSettings
    from ..batch.workers import Worker

HELP = "Many portraits from a table, on one ComfyUI or many. 批量生成：一张表，一台或多台 ComfyUI。"
_EXAMPLES = """
Examples:

  likeness batch run portrait_api.json rows.csv --out runs/june --server http://127.0.0.1:8188

  likeness batch run plan.yaml --out runs/june --server http://gpu1:8188 --server http://gpu2:8188

  likeness batch check portrait_api.json rows.csv --server http://127.0.0.1:8188
"""
_SHOWN = 20  # problems on the terminal

Source = Annotated[Path, typer.Argument(help="A workflow in API format, or a plan (.yaml, .json).")]
TableFile = Annotated[Path | None, typer.Argument(help="The table: .csv, .tsv, .jsonl or .parquet.")]
Out = Annotated[Path, typer.Option("--out", help="The run's folder. The same command resumes it.")]
RunFolder = Annotated[Path, typer.Argument(help="The --out folder of a batch.")]
Servers = Annotated[
    list[str] | None, typer.Option("--server", help="Address of a ComfyUI, such as http://127.0.0.1:8188; repeatable.")
]
Local = Annotated[
    str, typer.Option("--local", help="Start this many ComfyUI here, or `gpus` for one on each GPU (COMFYUI_PATH).")
]
HostArguments = Annotated[
    str, typer.Option("--host-args", help="Arguments for the ComfyUI started here, such as '--cpu'.")
]
Recycle = Annotated[
    int,
    typer.Option("--recycle", min=0, help="Restart a ComfyUI that was started here after this many rows; 0: never."),
]
RecycleMemory = Annotated[
    float,
    typer.Option(
        "--recycle-memory", min=0, help="Restart one that uses more than this many GB of main memory; 0: never."
    ),
]
Ray = Annotated[str, typer.Option("--ray", help="Start ComfyUI in a Ray cluster: its address, `auto` or `local`.")]
Workers = Annotated[int, typer.Option("--workers", help="How many ComfyUI in the Ray cluster.")]
RayGpus = Annotated[float, typer.Option("--ray-gpus", min=0.0, max=16.0, help="GPUs for each of them.")]
HeaderEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--header-env", help="SERVER:HEADER=VARIABLE, a header whose value is in the environment; repeatable."
    ),
]
ApiKeyEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key-env",
        help="SERVER=VARIABLE, a server that may spend money, and where its Comfy API key is; repeatable.",
    ),
]
Ca = Annotated[Path | None, typer.Option("--ca", help="Certificates of the servers, PEM.")]
TrustEnv = Annotated[bool, typer.Option("--trust-env", help="Use the proxies that the environment names.")]
FilesFolder = Annotated[Path | None, typer.Option("--files", help="The folder that paths in cells are relative to.")]
SeedInputs = Annotated[
    str, typer.Option("--seeds", help="INPUT=COUNT or INPUT=COUNT@START, such as KSampler.seed=4@1000.")
]
Expect = Annotated[int | None, typer.Option("--expect", min=0, help="Stop unless there are exactly this many rows.")]
Shard = Annotated[str, typer.Option("--shard", help="I/N: the part of the rows that this machine runs.")]
SkipPeople = Annotated[bool, typer.Option("--skip-people", help="Leave out people whose photos show no face.")]
AllowUnlink = Annotated[bool, typer.Option("--allow-unlink", help="Let a cell take the place of a link.")]
AllowPaid = Annotated[bool, typer.Option("--allow-paid", help="Let nodes run that cost money.")]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Rows that save no file count as done.")]
JudgeName = Annotated[str, typer.Option("--judge", help="Measure likeness during the run: sface, or a pack.")]
Keep = Annotated[
    int, typer.Option("--keep", min=0, help="Mark this many of the best among those that differ only in the seed.")
]
RetryBelow = Annotated[
    float, typer.Option("--retry-below", min=0.0, max=120.0, help="Percent of likeness below which a row is repeated.")
]
Most = Annotated[
    int, typer.Option("--most-retries", min=0, max=20, help="Repetitions of a row, each with another seed.")
]
QueueWindow = Annotated[int, typer.Option("--window", min=1, max=16, help="Rows in each server's queue.")]
Grace = Annotated[float, typer.Option("--grace", min=0.1, max=86400, help="Seconds a server may be away.")]
Stall = Annotated[float, typer.Option("--stall", min=1, max=864000, help="Seconds without progress of a row.")]
TimeLimit = Annotated[float, typer.Option("--timeout", min=0, max=864000, help="Seconds for a row; 0: no limit.")]
GiveUp = Annotated[float, typer.Option("--give-up", min=0, max=8640000, help="Seconds without any server; 0: never.")]
NoBreaker = Annotated[bool, typer.Option("--no-breaker", help="Do not stop after 20 failures of one kind in a row.")]
Durable = Annotated[bool, typer.Option("--durable", help="Survive a power cut too, not only a kill; slower.")]
Shared = Annotated[Path | None, typer.Option("--shared", help="The servers' output folder, where it is mounted here.")]
Extend = Annotated[bool, typer.Option("--extend", help="The table has grown: add its new rows to the run.")]
PinVersion = Annotated[
    bool, typer.Option("--pin-version", help="Use only servers of the same version (ComfyUI and torch).")
]
HashModels = Annotated[
    Path | None,
    typer.Option("--hash-models", help="The servers' models folder: digests of the files used go into run.json."),
]
Name = Annotated[str, typer.Option("--name", help="Readable names below by-name/, such as {person}/{seed}.")]
Events = Annotated[bool, typer.Option("--json", help="Events for other programs, one JSON object per line.")]


def commands() -> typer.Typer:
    """The group `batch`."""
    app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)
    app.command("run", cls=Verb, epilog=_EXAMPLES)(run_batch)
    app.command("check", cls=Verb, epilog=_EXAMPLES)(check_batch)
    app.command("status", cls=Verb)(show_status)
    app.command("retry", cls=Verb)(retry)
    app.command("report", cls=Verb)(report_batch)
    app.command("export", cls=Verb)(export_batch)
    return app


def run_batch(
    source: Source,
    table: TableFile = None,
    out: Out = Path("run"),
    server: Servers = None,
    local: Local = "",
    host_args: HostArguments = "",
    recycle: Recycle = 2000,
    recycle_memory: RecycleMemory = 0.0,
    ray: Ray = "",
    workers: Workers = 1,
    ray_gpus: RayGpus = 1.0,
    header_env: HeaderEnv = None,
    ca: Ca = None,
    trust_env: TrustEnv = False,
    files: FilesFolder = None,
    seeds: SeedInputs = "",
    expect: Expect = None,
    shard: Shard = "1/1",
    skip_people: SkipPeople = False,
    allow_unlink: AllowUnlink = False,
    allow_paid: AllowPaid = False,
    allow_empty: AllowEmpty = False,
    judge: JudgeName = "",
    keep: Keep = 0,
    retry_below: RetryBelow = 0.0,
    most_retries: Most = 2,
    window: QueueWindow = 2,
    grace: Grace = 30.0,
    stall: Stall = 900.0,
    timeout: TimeLimit = 0.0,
    give_up: GiveUp = 0.0,
    no_breaker: NoBreaker = False,
    durable: Durable = False,
    shared: Shared = None,
    pin_version: PinVersion = False,
    hash_models: HashModels = None,
    extend: Extend = False,
    name: Name = "",
    events: Events = False,
    api_key_env: ApiKeyEnv = None,
) -> None:
    """Check a table, run it, and write images, a manifest, sheets and a report. 检查表格并运行全部行。

    Exit codes: 0 all done, 1 some rows failed, 2 the check found mistakes, 3 stopped after failures of one kind, 130
    stopped with Ctrl-C. The same command resumes where it stopped.
    """
    from ..batch.check import make_identities
    from ..batch.manifest import check_template
    from ..batch.session import begin, go_on, is_begun, writing
    from ..batch.session import extend as add_rows

    plan, named = _plan(
        source, table, files, seeds, expect, shard, allow_unlink, allow_paid, allow_empty, judge, keep, retry_below,
        most_retries, name,
    )  # fmt: skip
    plan = replace(plan, pin_version=pin_version or plan.pin_version, models=hash_models or plan.models)
    if plan.models is not None and not plan.models.is_dir():
        raise LikenessError(
            f"--hash-models is {str(plan.models)!r}, which is not a folder: name ComfyUI's models folder."
        )
    if shared is not None and not shared.is_dir():
        raise LikenessError(f"--shared is {str(shared)!r}, which is not a folder: name the servers' output folder.")
    if api_key_env and not plan.allow_paid:
        raise LikenessError("--api-key-env is for nodes that cost money: add --allow-paid, or leave it out.")
    settings = _settings(window, grace, stall, timeout, give_up, no_breaker, recycle, recycle_memory)
    tell = Teller(events)
    with writing(out):
        secrets = Secrets(header_env or (), api_key_env or ())
        found = _workers(server or named, local, host_args, ray, workers, ray_gpus, secrets, ca, trust_env, out)

        async def work() -> int:
            async with _open(found):
                begun = is_begun(out)
                if begun and not extend:
                    run = go_on(out, plan, durable)
                    servers = await _nodes_of(found, run)
                else:
                    checked = await _checked(plan, found, out / "identities", skip_people)
                    _show(checked.problems, out / "errors.csv")
                    if checked.unmade and not checked.problems:
                        checked = await make_identities(checked, opening.open_faces, skip_people)
                        _show(checked.problems, out / "errors.csv")
                    if checked.problems:
                        return 2
                    if plan.name:
                        check_template(plan.name, list(checked.compiler.shown))
                    if begun:
                        run = go_on(out, None, durable)
                        tell("extended", {"rows": add_rows(run, checked)})
                    else:
                        run = begin(out, checked, durable)
                    servers = [(seen.worker, seen.nodes) for seen in checked.servers]
                return await _execute(run, servers, settings, tell, shared)

        code = asyncio.run(work())
    raise typer.Exit(code)


def check_batch(
    source: Source,
    table: TableFile = None,
    server: Servers = None,
    header_env: HeaderEnv = None,
    ca: Ca = None,
    trust_env: TrustEnv = False,
    files: FilesFolder = None,
    seeds: SeedInputs = "",
    expect: Expect = None,
    shard: Shard = "1/1",
    skip_people: SkipPeople = False,
    allow_unlink: AllowUnlink = False,
    allow_paid: AllowPaid = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for errors.csv and identities.")] = None,
) -> None:
    """Look at everything that a run would need, and send nothing. 只检查，不运行。"""
    plan, named = _plan(source, table, files, seeds, expect, shard, allow_unlink, allow_paid, False, "", 0, 0.0, 0, "")
    found = _workers(server or named, "", "", "", 1, 1.0, Secrets(header_env or ()), ca, trust_env, Path())

    async def work() -> int:
        async with _open(found):
            with contextlib.ExitStack() as stack:
                keep = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="likeness-check-")))
                keep.mkdir(parents=True, exist_ok=True)
                checked = await _checked(plan, found, keep / "identities", skip_people)
                _show(checked.problems, out / "errors.csv" if out else None)
                if checked.problems:
                    return 2
                print(f"{checked.lines} rows on {len(checked.servers)} server(s): no problems.")
                return 0

    raise typer.Exit(asyncio.run(work()))


def show_status(
    folder: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """How far a run is; it may be running. 查看进度。"""
    from ..batch.journal import RowState
    from ..batch.session import open_run

    run = open_run(folder)
    counts, lines = run.journal.counts(), run.journal.lines()
    failures = list(
        run.journal.query(
            "select error_kind, error, count(*) from row where state='failed' group by 1, 2 order by 3 desc limit 5"
        )
    )
    if as_json:
        kinds = [{"kind": kind, "error": error, "rows": count} for kind, error, count in failures]
        states = {state.value: counts.get(state.value, 0) for state in RowState}
        print(json.dumps({"run": run.id, "lines": lines, **states, "failures": kinds}))
        return
    total = sum(counts.values())
    print(f"{counts.get('done', 0)} of {total} rows are done ({lines} lines of the table).")
    for state in ("sent", "todo", "parked", "failed"):
        if counts.get(state):
            print(f"{state}: {counts[state]}")
    for kind, error, count in failures:
        print(one_line(f"  {count} x {kind}: {error}"))


def retry(
    folder: RunFolder,
    row: Annotated[list[str] | None, typer.Option("--row", help="Only these rows, by id; repeatable.")] = None,
    server: Servers = None,
    local: Local = "",
    host_args: HostArguments = "",
    ray: Ray = "",
    workers: Workers = 1,
    ray_gpus: RayGpus = 1.0,
    header_env: HeaderEnv = None,
    ca: Ca = None,
    trust_env: TrustEnv = False,
    window: QueueWindow = 2,
    grace: Grace = 30.0,
    give_up: GiveUp = 0.0,
    events: Events = False,
    api_key_env: ApiKeyEnv = None,
) -> None:
    """Run the failed rows of a run again. 重试失败的行。"""
    from ..batch.journal import RowState
    from ..batch.session import go_on, open_run, writing

    open_run(folder).journal.close()
    tell = Teller(events)
    with writing(folder, "The run"):
        run = go_on(folder)
        seqs = [_row_of(run, one) for one in row] if row else run.journal.in_state(RowState.FAILED, RowState.PARKED)
        run.journal.again(seqs)
        secrets = Secrets(header_env or (), api_key_env or ())
        found = _workers(server or [], local, host_args, ray, workers, ray_gpus, secrets, ca, trust_env, folder)

        async def work() -> int:
            async with _open(found):
                servers = await _nodes_of(found, run)
                return await _execute(run, servers, _settings(window, grace, give_up=give_up), tell, None)

        code = asyncio.run(work())
    raise typer.Exit(code)


def report_batch(
    folder: RunFolder,
    measure: Annotated[
        bool, typer.Option("--measure", help="First measure the likeness of images that have not been judged.")
    ] = False,
    judge: Annotated[str, typer.Option("--judge", help="The judge, where the run names none, such as sface.")] = "",
    no_sheets: Annotated[bool, typer.Option("--no-sheets", help="Tables only.")] = False,
) -> None:
    """Write manifest, sheets and report of a run again. 重新生成报告。"""
    from ..batch.judge import judge_of
    from ..batch.report import write_all
    from ..batch.session import open_run, row_files, writing

    open_run(folder).journal.close()
    with writing(folder, "The run"):
        run = open_run(folder, read_only=False)
        if measure or judge:
            look = judge_of(run, opening.open_faces, judge)
            if look is None:
                raise LikenessError("No judge is named: add --judge sface.")
            for seq in run.journal.unjudged():
                this = run.journal.row(seq)
                run.journal.measure(seq, look(this, row_files(run, this)))
        for path in write_all(run, sheets=not no_sheets):
            print(one_line(path))


def export_batch(
    folder: RunFolder, to: Annotated[Path, typer.Argument(help="The file to write: .csv, .jsonl or .parquet.")]
) -> None:
    """Write a run as one table. 导出为一张表。"""
    from ..batch.manifest import export
    from ..batch.session import open_run
    from .edge import check_new_file

    run = open_run(folder)
    check_new_file(to, "The table")
    print(f"{export(run, to)} lines: {one_line(to)}")


# --- from words to a plan


def _plan(
    source: Path,
    table: Path | None,
    files: Path | None,
    seeds: str,
    expect: int | None,
    shard: str,
    allow_unlink: bool,
    allow_paid: bool,
    allow_empty: bool,
    judge: str,
    keep: int,
    below: float,
    most: int,
    name: str,
) -> tuple[BatchPlan, list[str]]:
    """The plan, and the servers that it names."""
    from ..batch.plan import BatchPlan, Judging, is_plan, read_plan, read_shard, with_seeds

    servers: list[str] = []
    if is_plan(source):
        if table is not None:
            raise LikenessError("A plan names its own table: leave the second file out.")
        plan, running = read_plan(source)
        named = running.get("servers") or []
        servers = [named] if isinstance(named, str) else list(map(str, named))
    else:
        plan = BatchPlan(workflow=source, table=table)
    if seeds:
        into, _, numbers = seeds.rpartition("=")
        count, _, start = numbers.partition("@")
        if not into or not count.isdecimal() or (start and not start.isdecimal()):
            raise LikenessError(f"--seeds is {seeds!r}: write one such as KSampler.seed=4 or KSampler.seed=4@1000.")
        plan = with_seeds(plan, [into], int(count), int(start or 0))
    if (keep or below) and not judge and not plan.judging.judge:
        raise LikenessError("--keep and --retry-below need a judge: add --judge sface.")
    if judge:
        plan = replace(plan, judging=Judging(judge, keep, below, most if below else 0))
    changes: dict[str, Any] = {
        "files": files or plan.files,
        "expect": plan.expect if expect is None else expect,
        "shard": read_shard(shard) if shard != "1/1" else plan.shard,
        "allow_unlink": allow_unlink or plan.allow_unlink,
        "allow_paid": allow_paid or plan.allow_paid,
        "allow_empty": allow_empty or plan.allow_empty,
        "name": name or plan.name,
    }
    return replace(plan, **changes), servers


def _settings(
    window: int,
    grace: float,
    stall: float = 900.0,
    timeout: float = 0.0,
    give_up: float = 0.0,
    no_breaker: bool = False,
    recycle: int = 2000,
    recycle_memory: float = 0.0,
) -> WorkSettings:
    from ..batch.work import WorkSettings

    probe = min(1.0, grace / 4)
    return WorkSettings(
        window=window,
        grace=grace,
        stall=stall,
        timeout=timeout,
        give_up=give_up,
        breaker=0 if no_breaker else 20,
        first_probe=probe,
        recycle=recycle,
        most_memory=int(recycle_memory * 2**30),
    )


def _workers(
    server: Sequence[str],
    local: str,
    host_args: str,
    ray: str,
    workers: int,
    ray_gpus: float,
    secrets: Secrets,
    ca: Path | None,
    trust_env: bool,
    out: Path,
) -> list[Worker]:
    import shlex

    from ..batch.client import Access, HttpServer, read_address
    from ..batch.local import Comfy, find_comfy, local_servers

    found: list[Worker] = []
    for text in server:
        address = read_address(text)
        where = (address.url, address.url.split("//")[1])
        found.append(HttpServer(address, Access(secrets.headers_for(where), secrets.key_for(where), ca, trust_env)))
    ours = Access(api_key=secrets.key_for(()))
    if local:
        comfy = Comfy(find_comfy(), arguments=shlex.split(host_args))
        found += local_servers(local, comfy, (out / "workers").resolve(), ours)
    if ray:
        from ..batch.ray_workers import check_count, ray_workers

        comfy = Comfy(find_comfy(), arguments=shlex.split(host_args))
        found += ray_workers(ray, check_count(workers), comfy, ours, gpus=ray_gpus)
    secrets.expect_used()
    if not found:
        raise LikenessError("No server is named: add --server http://127.0.0.1:8188, or --local 1 to start one here.")
    names = [worker.name for worker in found]
    if double := next((one for one in names if names.count(one) > 1), ""):
        raise LikenessError(f"The server {double} is named twice: remove one.")
    return found


# --- running


@contextlib.asynccontextmanager
async def _open(workers: Sequence[Worker]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.gather(*(worker.close() for worker in workers), return_exceptions=True)


async def _checked(plan: BatchPlan, workers: Sequence[Worker], keep: Path, skip_people: bool) -> Any:
    from ..batch.check import check_plan

    return await check_plan(plan, workers, opening.open_faces, keep, skip_people)


async def _nodes_of(workers: Sequence[Worker], run: BatchRun) -> list[Any]:
    """Servers of a run that is resumed; one that cannot be reached may come back later."""
    from ..batch.schema import Nodes
    from ..batch.workers import Away

    wanted = {node["class_type"] for node in run.work.graph.values()}

    async def ask(worker: Worker) -> tuple[Worker, Nodes]:
        try:
            await worker.open()
            await worker.facts()
            return worker, Nodes(await worker.object_info()).only(wanted)
        except Away as error:
            print(one_line(f"{worker.name} is away: {error}"), file=sys.stderr)
            return worker, Nodes({})

    return list(await asyncio.gather(*map(ask, workers)))


async def _execute(
    run: BatchRun, servers: Sequence[Any], settings: WorkSettings, tell: Teller, shared: Path | None
) -> int:
    from ..batch.judge import judge_of
    from ..batch.report import write_all
    from ..batch.session import execute

    if not run.journal.is_wal:
        tell("journal", {"note": "this folder is on a network disk: the journal is slower there"})
    tell.begin(run)
    with contextlib.ExitStack() as stack:

        def started(engine: Engine) -> None:
            tell.engine = engine
            stack.enter_context(_on_signal(engine.stop))

        end = await execute(run, servers, settings, judge_of(run, opening.open_faces), tell, shared, started)
    tell.end(end.name.lower())
    for path in write_all(run):
        tell("wrote", {"path": str(path)})
    return end.value


@contextlib.contextmanager
def _on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C stops in order: once to finish what runs, twice to cancel it."""
    loop = asyncio.get_running_loop()
    try:
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, stop)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        before = None
        with contextlib.suppress(ValueError):
            before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(stop))
        yield
        if before is not None:
            signal.signal(signal.SIGINT, before)
        return
    yield
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(sign)


def _show(problems: Problems, path: Path | None) -> None:
    for warning in problems.warnings:
        print(one_line(f"note: {warning}"))
    for problem in problems.found[:_SHOWN]:
        print(problem, file=sys.stderr)
    if problems.count > _SHOWN:
        print(f"… and {problems.count - _SHOWN} more.", file=sys.stderr)
    if path is not None:
        path.unlink(missing_ok=True)
        if problems:
            problems.write(path)
            print(one_line(f"all of them: {path}"), file=sys.stderr)


def _row_of(run: BatchRun, text: str) -> int:
    seq = run.journal.seq_of(text.lower())
    if seq is None:
        raise LikenessError(f"There is no row {text!r}: take a row_id from the manifest.")
    return seq
