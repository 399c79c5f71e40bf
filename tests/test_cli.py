"""The sinkviz command: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sinkviz import cli, course
from sinkviz.classroom import ClassroomConfig, ClassroomForCausalLM
from sinkviz.cli.talking import readable
from sinkviz.corpus import train_tokenizer
from sinkviz.recipes import RECIPES, ZOO
from sinkviz.terminal import INTERRUPTED, show
from sinkviz.text import stories

ROOT = Path(__file__).parent.parent
COMMANDS = ("lab", "score", "stream", "chat", "report", "train", "bench")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """Folder of a small model with random weights and a tokenizer that knows the stories."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(islice(stories(), 50), vocab_size=400)
    config = ClassroomConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ClassroomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(*arguments: str, code: int = 0, **options):
    """Run the command in this process; it must end with ``code``."""
    result = CliRunner().invoke(cli.app, list(arguments), **options)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@contextmanager
def started(*arguments: str, **options) -> Iterator[subprocess.Popen]:
    """The command in a process, and a session, of its own; all of it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sinkviz.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def plain_error(result) -> str:
    """The one line on standard error; no traceback."""
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


# Help ---------------------------------------------------------------------------------------------


def test_help_lists_the_commands():
    shown = run("--help").output
    assert "keep them, and it can write" in " ".join(shown.split())
    for name in COMMANDS:
        assert re.search(rf"^\W*{name} +\w", shown, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name):
    import typer

    command = typer.main.get_command(cli.app).commands[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name} says nothing"
    assert run(name, "--help").output


def test_no_command_shows_the_help():
    assert "Usage" in run(code=2).output


# Errors -------------------------------------------------------------------------------------------


def test_unknown_model():
    assert "no model 'nonsense'" in plain_error(run("score", "nonsense", code=1))


def test_unknown_policy_names_the_known():
    line = plain_error(run("score", "nonsense", "--policies", "dense,best", code=1))
    assert "no policy 'best'" in line and "recompute:N" in line
    assert "no policy 'best'" in plain_error(run("stream", "x", "--policy", "best", code=1))


def test_no_policy():
    plain_error(run("score", "nonsense", "--policies", " , ", code=1))
    assert "4+60" in plain_error(run("stream", "x", "--policy", "4+60,0+64", code=1))


def test_unknown_text(model):
    assert "no text file" in plain_error(run("score", model, "--text", "gone.txt", code=1))


def test_empty_text(model, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    line = plain_error(run("score", model, "--text", str(tmp_path / "empty.txt"), code=1))
    assert "holds no text" in line


def test_skipping_the_whole_text(model, tmp_path):
    (tmp_path / "short.txt").write_text("Once upon a time")
    text = str(tmp_path / "short.txt")
    assert "skip fewer" in plain_error(run("score", model, "--text", text, "--skip", "99", code=1))


def test_no_network_for_a_hub_id():
    assert "Hub" in plain_error(run("score", "nobody/nothing", code=1))


def test_empty_prompt(model):
    assert "empty" in plain_error(run("stream", model, "--prompt", " ", code=1))


def test_unknown_recipe():
    assert "known are" in plain_error(run("train", "nothing", code=1))


def test_recipe_and_option_errors_are_usage():
    assert "classroom-rope" in run("train", code=2).output
    assert "No such option" in run("score", "x", "--tokns", "5", code=2).output
    run("score", code=2)
    run("score", "x", "--tokens", "one", code=2)


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(cli.app, ["--debug", "score", "nonsense"])
    assert isinstance(result.exception, ValueError)


# Results ------------------------------------------------------------------------------------------


def test_score_prints_json_and_nothing_else(model):
    policies = ("--policies", "dense,0+16,4+12,recompute:16")
    document = json.loads(run("score", model, "--tokens", "200", *policies, "--json").stdout)
    assert document["tokens"] == 200 and document["forgetting_from"] == 17
    assert [row["policy"] for row in document["rows"]] == ["Dense", "0+16", "4+12", "recompute 16"]
    assert [row["cache"] for row in document["rows"]] == [None, 16, 16, 16]
    for row in document["rows"]:
        # Random weights know nothing: about log(400) nats.
        assert 5.5 < row["nll"] < 6.5 and abs(row["drift"]) < 0.3
        assert abs(row["perplexity"] - torch.tensor(row["nll"]).exp()) < 0.1


def test_score_where_nothing_is_forgotten(model):
    arguments = ("score", model, "--tokens", "6", "--policies", "4+60", "--json")
    document = json.loads(run(*arguments).stdout)
    assert document["forgetting_from"] is None
    assert document["rows"][0]["nll_forgetting"] is None


def test_score_skips_the_beginning(model, tmp_path):
    (tmp_path / "text.txt").write_text("ABC Once upon a time Ada and Ben lived near the old mill.")
    text = ("score", model, "--policies", "dense", "--json", "--text", str(tmp_path / "text.txt"))
    whole, part = (json.loads(run(*text, "--skip", n).stdout) for n in ("0", "4"))
    assert part["tokens"] < whole["tokens"]


def test_score_prints_a_table(model):
    result = run("score", model, "--tokens", "100", "--policies", "dense,4+12")
    assert re.search(r"4\+12 +│ +16 │", result.stdout)
    assert "Dense" in result.stdout and "perplexity" in result.stdout
    assert "sink rate 0%: 0 of 4 heads" in result.stdout
    assert result.stderr == ""


def test_score_draws_a_figure(model, tmp_path):
    path = tmp_path / "nll.svg"
    run("score", model, "--tokens", "100", "--policies", "4+12,0+16", "--figure", str(path))
    assert path.read_text().startswith("<?xml")
    bad = run("score", model, "--figure", str(tmp_path / "nll.docx"), code=2)
    assert ".png" in bad.output
    assert [one.name for one in tmp_path.iterdir()] == ["nll.svg"]
    gone = run("score", model, "--figure", str(tmp_path / "gone" / "nll.svg"), code=2)
    assert "no folder" in " ".join(gone.output.split())


def test_stream_prints_the_text(model):
    arguments = ("stream", model, "--policy", "4+12", "--max-new-tokens", "40", "--seed", "3")
    sampling = ("--temperature", "1.5")
    result = run(*arguments, *sampling)
    assert result.stdout.startswith("Once upon a time")
    assert "wrote 40 tokens under 4+12" in result.stderr
    document = json.loads(run(*arguments, *sampling, "--json").stdout)
    assert len(document["rows"]) == 40 and document["interrupted"] is False
    assert max(row["cache_size"] for row in document["rows"]) == 16
    # The tokens as they came, bytes of unfinished characters aside, are the text decoded at once.
    streamed = result.stdout.removeprefix("Once upon a time").removesuffix("\n")
    assert streamed.replace("\ufffd", "") == document["text"].replace("\ufffd", "")


def test_stream_goes_on_from_its_file(model, tmp_path):
    state, other = str(tmp_path / "stream.safetensors"), str(tmp_path / "other.safetensors")
    start = ("stream", model, "--policy", "4+12", "--temperature", "1.5", "--seed", "3", "--json")

    def rows(*more):
        document = json.loads(run(*start, *more).stdout)
        return [
            [row["position"], row["token_id"], row["nll"]] for row in document["rows"]
        ], document

    first, document = rows("--max-new-tokens", "20", "--state", state)
    assert document["prompt"] == "Once upon a time" and document["seed"] == 3
    second, document = rows("--max-new-tokens", "20", "--state", state)
    assert document["prompt"] is None and document["seed"] is None
    whole, _ = rows("--max-new-tokens", "40", "--state", other)
    assert [*first, *second] == whole
    # A third time as text: it goes on where it was, without the prompt.
    shown = run("stream", model, "--policy", "4+12", "--max-new-tokens", "5", "--state", state)
    assert not shown.stdout.startswith("Once upon a time")
    assert f"kept in {state}; the same command goes on from there" in shown.stderr
    line = plain_error(run("stream", model, "--policy", "0+16", "--state", state, code=1))
    assert "saved with policy 4+12" in line


def test_stream_refuses_a_file_that_it_could_not_write(model, tmp_path):
    gone = run("stream", model, "--state", str(tmp_path / "gone" / "a.safetensors"), code=2)
    assert "no folder" in " ".join(gone.output.split())
    assert "directory" in run("stream", model, "--state", str(tmp_path), code=2).output
    (tmp_path / "text.txt").write_text("Once upon a time")
    plain_error(run("stream", model, "--state", str(tmp_path / "text.txt"), code=1))
    assert (tmp_path / "text.txt").read_text() == "Once upon a time"


def test_stream_compiles_what_can_be_compiled(model, monkeypatch):
    line = plain_error(run("stream", model, "--policy", "dense", "--compiled", code=1))
    assert "can be compiled" in line
    asked = {}

    def stream(*args, compiled, **options):
        asked["compiled"] = compiled
        return (step for step in ())

    monkeypatch.setattr("sinkviz.streaming.stream", stream)
    for flag in (["--compiled"], []):
        run("stream", model, *flag)
        assert asked["compiled"] is bool(flag)


@pytest.mark.parametrize("policy", ["h2o:8+8", "tova:16", "4+12@text"])
def test_every_policy_that_the_help_names(model, policy):
    named = re.sub(r"\d+", "N", policy)
    for name in ("score", "stream", "report", "chat"):
        assert named in re.sub(r"\d+", "N", re.sub(r"[\s│]+", "", run(name, "--help").output))
    arguments = ("score", model, "--tokens", "60", "--policies", policy, "--json")
    (row,) = json.loads(run(*arguments).stdout)["rows"]
    assert row["policy"] == policy and row["cache"] == 16
    assert (
        "wrote 20 tokens"
        in run("stream", model, "--policy", policy, "--max-new-tokens", "20").stderr
    )


def test_characters_of_several_bytes_wait_until_they_are_whole(model):
    class Step:
        def __init__(self, token_id):
            self.token_id = token_id

    from sinkviz.models import load

    lm, text = load(model), "naïve 🙂 über"
    steps = [Step(int(i)) for i in lm.encode(text)[1:]]
    pieces = list(readable(lm, "Say: ", steps))
    assert "".join(pieces) == f"Say: {text}" and "\ufffd" not in "".join(pieces)
    assert len(pieces) < len(steps)


def test_train_lists_its_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = json.loads(run("train", "--list", "--json").stdout)
    assert [row["recipe"] for row in document["rows"]] == list(RECIPES)
    assert not list(tmp_path.iterdir())


def test_train_calls_the_recipe(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("sinkviz.training.train", lambda *args, **options: called.append(args))
    monkeypatch.chdir(tmp_path)
    run("train", "smoke")
    run("train", "smoke", "--folder", "here")
    assert called == [("smoke", Path("runs/smoke")), ("smoke", Path("here"))]


def test_train_all_trains_what_is_left(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("sinkviz.training._seconds_per_step", lambda recipe: 0.1)
    monkeypatch.setattr("sinkviz.training.train", lambda *args, **options: called.append(args))
    for done in ZOO[2:]:
        (tmp_path / done / "model").mkdir(parents=True)
    said = run("train", "--all", "--folder", str(tmp_path)).stderr
    assert (
        "2 to train" in said
        and f"{(RECIPES[ZOO[0]].n_steps + RECIPES[ZOO[1]].n_steps) / 600:.0f} minutes" in said
    )
    assert called == [(name, tmp_path / name) for name in ZOO[:2]]


def test_bench_prints_rows_and_knows_its_names(monkeypatch):
    from sinkviz import bench

    def speed():
        """Milliseconds per token."""
        return [{"policy": "4+60", "ms": 1.25, "bytes": 1024, "worst": float("nan")}]

    monkeypatch.setattr(bench, "BENCHES", {"speed": speed})
    (row,) = json.loads(run("bench", "speed", "--json").stdout)["rows"]
    assert row == {"policy": "4+60", "ms": 1.25, "bytes": 1024, "worst": None}
    assert "1,024" in run("bench", "speed").stdout
    assert "Milliseconds" in run("bench", "--list").stdout
    assert "known are speed" in plain_error(run("bench", "taste", code=1))


def test_report_writes_one_file(model, tmp_path):
    page = tmp_path / "report.html"
    arguments = ("--tokens", "300", "--policies", "dense,0+16,4+12")
    result = run("report", model, "-o", str(page), *arguments)
    assert str(page) in result.stderr and result.stdout == ""
    assert "<html" in page.read_text(encoding="utf-8")


def test_report_into_a_folder_that_is_not_there(model, tmp_path):
    page = tmp_path / "gone" / "report.html"
    gone = run("report", model, "-o", str(page), "--tokens", "100", code=2)
    assert "no folder" in " ".join(gone.output.split())
    folder = run("report", model, "-o", str(tmp_path), "--tokens", "100", code=2)
    assert "is a folder" in " ".join(folder.output.split())


# Ctrl-C -------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_stream(model, tmp_path):
    state = tmp_path / "stream.safetensors"
    arguments = ["stream", model, "--policy", "4+12", "--max-new-tokens", "0", "--state", state]
    with started(*map(str, arguments)) as process:
        assert process.stdout.read(16) == "Once upon a time"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED and "kept in" in err
    arguments[-3] = "3"
    document = json.loads(run(*map(str, arguments), "--json").stdout)
    n_written = int(re.search(r"stopped after ([\d,]+) tokens", err)[1].replace(",", ""))
    from sinkviz.models import load

    n_prompt = len(load(model).encode("Once upon a time"))
    assert document["rows"][0]["position"] == n_prompt + n_written


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_ends_a_stream_cleanly(model, as_json):
    arguments = ["stream", model, "--policy", "4+12", "--max-new-tokens", "0"]
    with started(*arguments, *(["--json"] if as_json else [])) as process:
        # The prompt is printed when the model is loaded; on standard error if there is JSON.
        begun = process.stderr if as_json else process.stdout
        assert begun.read(16) == "Once upon a time"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    if as_json:
        document = json.loads(out)
        assert document["interrupted"] and document["rows"]
    else:
        assert re.search(r"stopped after [\d,]+ tokens", err)


# The notebooks ------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A course of two notebooks, as if inside an installed package; and a folder to work in."""
    source = tmp_path / "package" / "notebooks"
    (source / "solutions").mkdir(parents=True)
    for name in (course.FIRST, f"solutions/{course.FIRST}"):
        (source / name).write_text("{}")
    monkeypatch.setattr(course, "__file__", str(tmp_path / "package" / "course.py"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def served(monkeypatch) -> list:
    """The commands that this process would have become."""
    calls = []

    def become(program, command):
        calls.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    return calls


def test_lab_copies_the_notebooks_here(installed, served):
    assert "2 notebooks copied" in run("lab", "--no-browser", "--port", "9999").stderr
    assert (installed / "solutions" / course.FIRST).is_file()
    assert str(Path(".") / course.FIRST) in served[0]
    assert {"--no-browser", "--ServerApp.port=9999"} <= set(served[0])


def test_lab_keeps_what_the_reader_changed(installed, served):
    mine = installed / "class" / course.FIRST
    run("lab", "class")
    mine.write_text("mine")
    result = run("lab", "class")
    assert "kept as you left them" in result.stderr and mine.read_text() == "mine"
    run("lab", "class", "--fresh", input="n\n")
    assert mine.read_text() == "mine"
    run("lab", "class", "--fresh", input="y\n")
    assert mine.read_text() == "{}"
    assert len(served) == 4


def test_lab_opens_a_checkout_in_place(served):
    run("lab", "--jupyter=--ServerApp.ip=0.0.0.0")
    assert str(ROOT / "notebooks" / course.FIRST) in served[0]
    assert served[0][-1] == "--ServerApp.ip=0.0.0.0"


@pytest.mark.notebooks
def test_lab_serves(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JUPYTER_TOKEN": "test", "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    command = ("lab", "--no-browser", "--port", str(port))
    page = ""
    with started(*command, env=environment) as process:
        while not page:
            assert process.poll() is None, process.stderr.read()
            with suppress(OSError):
                address = f"http://127.0.0.1:{port}/lab?token=test"
                with urllib.request.urlopen(address, timeout=5) as answer:
                    page = answer.read().decode()
            time.sleep(0.1)
    assert "JupyterLab" in page


def test_a_wide_table_says_once_what_is_the_same_in_every_row(capsys):
    rows = [{f"column_{i}": i for i in range(9)} | {"ms": ms, "bytes": 2e6} for ms in (1.5, 2.5)]
    show({"rows": rows}, "Costs", as_json=False)
    table, told = capsys.readouterr().out.rsplit("┘", 1)
    assert "1.500" in table and "2.500" in table and "column" not in table
    assert "column 3 3; column 4 4; " in " ".join(told.split()) and "2,000,000" in told
    show({"rows": rows[:1]}, "Costs", as_json=False)
    assert "column 3" in capsys.readouterr().out.rsplit("┘", 1)[0]
