"""The verbs on the command line, one after the other on one run."""

from __future__ import annotations

import csv
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from batch_fake import Fake, in_background
from typer.testing import CliRunner

from likeness import cli
from likeness.batch.graph import GraphTemplate, read_workflow
from likeness.batch.table import Table
from likeness.errors import LikenessError


def likeness(*words):
    return CliRunner().invoke(cli.command_tree(), ["batch", *map(str, words)])


@pytest.fixture
def fake():
    one = Fake()
    with in_background(one):
        yield one


def run(desk, fake, *words):
    paths = [desk.folder / "api.json", desk.folder / "rows.csv", "--out", desk.out]
    return likeness("run", *paths, "--server", fake.url, *words)


def states(desk):
    with (desk.out / "manifest.csv").open(encoding="utf-8") as file:
        return [row["state"] for row in csv.DictReader(file)]


def test_status_and_retry_of_a_run_with_a_failed_row(desk, fake):
    desk.rows(5)
    fake.faults = {3: ["type error"]}
    said = run(desk, fake)
    assert said.exit_code == 1 and "row 3 failed" in said.output
    assert states(desk) == ["done"] * 3 + ["failed", "done"]
    with (desk.out / "failed.csv").open(encoding="utf-8") as file:
        [failed] = csv.DictReader(file)
    assert failed["Paint.color"] == "3" and "TypeError" in failed["meta.error"]
    status = json.loads(likeness("status", desk.out, "--json").output)
    assert (status["done"], status["failed"]) == (4, 1)
    assert "TypeError" in likeness("status", desk.out).output
    assert run(desk, fake).exit_code == 1 and fake.made[3] == 1, "the same command does not repeat what failed"
    said = likeness("retry", desk.out, "--server", fake.url)
    assert said.exit_code == 0 and states(desk) == ["done"] * 5 and fake.made[3] == 2
    assert not (desk.out / "failed.csv").exists()
    assert json.loads(likeness("status", desk.out, "--json").output)["failed"] == 0


def test_retry_of_one_row_by_its_id(desk, fake):
    desk.rows(4)
    fake.faults = {1: ["type error"], 2: ["type error"]}
    assert run(desk, fake).exit_code == 1
    with (desk.out / "manifest.csv").open(encoding="utf-8") as file:
        row_id = list(csv.DictReader(file))[2]["row_id"]
    assert likeness("retry", desk.out, "--row", row_id, "--server", fake.url).exit_code == 1
    assert states(desk) == ["done", "failed", "done", "done"]
    unknown = likeness("retry", desk.out, "--row", "ffff", "--server", fake.url)
    assert isinstance(unknown.exception, LikenessError) and "There is no row 'ffff'" in str(unknown.exception)


def test_a_table_that_has_grown(desk, fake):
    desk.rows(3)
    assert run(desk, fake).exit_code == 0
    desk.rows(5)
    refused = run(desk, fake)
    assert isinstance(refused.exception, LikenessError) and "--extend" in str(refused.exception)
    said = run(desk, fake, "--extend")
    assert said.exit_code == 0 and "2 new rows" in said.output
    assert states(desk) == ["done"] * 5 and max(fake.made.values()) == 1
    assert run(desk, fake).exit_code == 0, "and the same command goes on with it"
    desk.table("Paint.color,meta.note", "9,note 9", *(f"{n},note {n}" for n in range(1, 6)))
    changed = run(desk, fake, "--extend")
    assert isinstance(changed.exception, LikenessError) and "add new rows at the end" in str(changed.exception)
    assert len(states(desk)) == 5


def test_another_workflow_is_not_gone_on_with(desk, fake):
    desk.rows(2)
    assert run(desk, fake).exit_code == 0
    made = json.loads((desk.folder / "api.json").read_text())
    made["1"]["inputs"]["width"] = 16
    desk.write_graph(made)
    for words in ((), ("--extend",)):
        said = run(desk, fake, *words)
        assert isinstance(said.exception, LikenessError) and "workflow" in str(said.exception)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_export(desk, fake, suffix):
    if suffix == "parquet" and not importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is not installed")
    desk.table("Paint.color,meta.note", "1,=1+1", "2,")
    assert run(desk, fake).exit_code == 0
    to = desk.folder / f"all.{suffix}"
    assert likeness("export", desk.out, to).exit_code == 0
    if suffix == "csv":
        with to.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        read = Table(to)
        rows = [dict(line.cells) for line in read]
    assert [str(row["Paint.color"]) for row in rows] == ["1", "2"]
    assert rows[0]["meta.note"] == ("'=1+1" if suffix == "csv" else "=1+1"), "verbatim where no spreadsheet computes"
    again = likeness("export", desk.out, to)
    assert isinstance(again.exception, LikenessError) and "exists already" in str(again.exception)


def test_parquet_as_a_table_and_beside_the_manifest(desk, fake):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = desk.folder / "rows.parquet"
    parquet.write_table(pyarrow.table({"Paint.color": [1, 2], "Paint.strength": [0.5, None]}), table)
    said = likeness("run", desk.folder / "api.json", table, "--out", desk.out, "--server", fake.url)
    assert said.exit_code == 0, said.output
    assert [posted["prompt"]["1"]["inputs"]["strength"] for posted in fake.posted] == [0.5, 1.0]
    assert parquet.read_table(desk.out / "manifest.parquet")["state"].to_pylist() == ["done", "done"]
    table.write_bytes(b"PAR1 and no more")
    with pytest.raises(LikenessError, match="not a Parquet file"):
        list(Table(table))


def test_parquet_without_pyarrow_is_told_in_a_sentence(desk, fake, monkeypatch):
    desk.rows(1)
    assert run(desk, fake).exit_code == 0
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    said = likeness("export", desk.out, desk.folder / "all.parquet")
    assert isinstance(said.exception, LikenessError) and "pip install pyarrow" in str(said.exception)
    (desk.folder / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(LikenessError, match="pip install pyarrow"):
        list(Table(desk.folder / "rows.parquet"))


def test_mistakes_are_printed_and_all_of_them_are_in_a_file(desk, fake):
    desk.table("Paint.width", *["wide"] * 30)
    said = run(desk, fake)
    assert said.exit_code == 2 and "… and 10 more" in said.output and not fake.posted
    with (desk.out / "errors.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 and (rows[0]["line"], rows[0]["column"], rows[0]["value"]) == ("2", "Paint.width", "wide")
    desk.table("Paint.width", "8")
    assert run(desk, fake, "--expect", 2).exit_code == 2
    assert run(desk, fake, "--expect", 1).exit_code == 0 and not (desk.out / "errors.csv").exists()


def test_check_sends_nothing_and_leaves_nothing(desk, fake):
    desk.rows(3)
    before = sorted(desk.folder.rglob("*"))
    said = likeness("check", desk.folder / "api.json", desk.folder / "rows.csv", "--server", fake.url)
    assert said.exit_code == 0 and "3 rows on 1 server" in said.output
    assert not fake.posted and not fake.uploaded and sorted(desk.folder.rglob("*")) == before


def test_events_are_json_line_by_line(desk, fake):
    desk.rows(2)
    events = [json.loads(line) for line in run(desk, fake, "--json").stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "begin" and kinds.count("done") == 2 and "end" in kinds
    assert all({"row", "idx", "server", "files"} <= event.keys() for event in events if event["event"] == "done")


def test_readable_names(desk, fake):
    desk.table("Paint.color,Paint.text", "1,a/../b", "2,a castle", "3,a castle")
    assert run(desk, fake, "--name", "{Paint.text:8}/{Paint.color}").exit_code == 0
    names = {path.relative_to(desk.out / "by-name").as_posix() for path in (desk.out / "by-name").rglob("*.png")}
    assert names == {"a_.._b/1.png", "a castle/2.png", "a castle/3.png"}


def test_somebody_who_runs_in_the_same_folder_is_refused(desk, fake):
    from likeness.batch.session import writing

    desk.rows(1)
    with writing(desk.out), ThreadPoolExecutor(1) as another:
        said = another.submit(run, desk, fake).result()
    assert isinstance(said.exception, LikenessError) and not fake.posted


@pytest.mark.parametrize(
    "words", [("--shared", "gone"), ("--hash-models", "gone"), ("--keep", "2"), ("--shard", "3/2")]
)
def test_options_that_cannot_be_meant(desk, fake, words):
    desk.rows(1)
    said = run(desk, fake, *words)
    assert isinstance(said.exception, LikenessError) and not fake.posted


def test_shards_divide_the_rows(desk, fake):
    desk.rows(30)
    for one in (1, 2, 3):
        out = desk.folder / f"part{one}"
        words = ["run", desk.folder / "api.json", desk.folder / "rows.csv", "--out", out, "--server", fake.url]
        assert likeness(*words, "--shard", f"{one}/3").exit_code == 0
    assert sorted(fake.made) == list(range(30)) and set(fake.made.values()) == {1}


@pytest.mark.parametrize("verb", ["run", "check"])
def test_help_has_three_commands_to_copy(verb):
    said = likeness(verb, "--help").output
    assert said.split("Examples:")[1].count("likeness batch ") == 3


@pytest.mark.parametrize("verb", ["run", "check", "status", "retry", "report", "export"])
def test_help_is_in_chinese_too(verb):
    assert any("\u4e00" <= letter <= "\u9fff" for letter in likeness(verb, "--help").output)


def test_ids_of_rows_never_change(desk):
    workflow = read_workflow(desk.folder / "api.json")
    template = GraphTemplate(
        workflow.graph, [workflow.resolve("Paint.color")], [workflow.resolve("Save.filename_prefix")]
    )
    address = workflow.resolve("Paint.color")
    found = [template.row_id({address: color})[:12] for color in (0, 1, 0xFFFFFF)]
    assert found == ["8c952651278d", "085c7124de5d", "498a8b15f9ac"]
