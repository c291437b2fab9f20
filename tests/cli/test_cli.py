"""The frame: commands are found, sources are read, errors become exit codes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from warmroute.cli import main as frame
from warmroute.cli.main import COMMANDS, cli, main
from warmroute.config import Config, EngineConfig, Loaded, LogConfig
from warmroute.config.leaves import LEAVES
from warmroute.errors import EngineError, IndexCorruptionError

SRC = Path(__file__).parents[2] / "src"
ENGINE = ("--engine", "http://a:1")


def run_python(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """This interpreter as a process of its own, on the source tree."""
    env = os.environ | {"PYTHONPATH": str(SRC)} | environ
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def settings_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `check-config --json` says of each leaf's source."""
    assert main(["check-config", "--json", *arguments]) == 0
    shown: dict[str, dict[str, str]] = json.loads(capsys.readouterr().out)
    return shown["sources"]


# The frame.


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"], terminal_width=200)
    assert result.exit_code == 0
    for name, line in COMMANDS.items():
        assert f"  {name} " in result.output
        assert line in " ".join(result.output.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module_and_its_line(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").partition("\n\n")[0] == COMMANDS[name]
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_every_module_with_a_command_is_in_the_table() -> None:
    found = set()
    for path in (SRC / "warmroute" / "cli").glob("*.py"):
        top = ast.parse(path.read_text()).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in top):
            found.add(path.stem.replace("_", "-"))
    assert found == set(COMMANDS)


def test_help_imports_no_command() -> None:
    heavy = ["aiohttp", "msgspec", "yaml", "zmq", "tokenizers", "rich", "warmroute.config"]
    code = f"""
import sys
from warmroute.cli.main import main
assert main(["--help"]) == 0
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    result = run_python("-c", code)
    assert (result.returncode, result.stderr) == (0, "[]\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("warmroute")


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nope"], ["serve", "--gateway.prot", "1"], ["serve", "--port"], ["check-config", "stray"]):
        assert main(arguments) == 2
        assert "Error: " in capsys.readouterr().err


def test_without_a_command_there_is_help() -> None:
    assert "Commands:" in CliRunner().invoke(cli, []).output
    assert main([]) == 2


def replace_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command("broken")
    def command() -> None:
        raise error

    module = types.ModuleType("warmroute.cli.broken")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "warmroute.cli.broken", module)
    monkeypatch.setitem(frame.COMMANDS, "broken", "Fail.")


def test_our_errors_are_lines_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    replace_command(monkeypatch, EngineError("one\ntwo"))
    assert main(["broken"]) == 2
    assert capsys.readouterr() == ("", "warmroute: one\nwarmroute: two\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), IndexCorruptionError("x")], ids=["unexpected", "our fault"])
def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    replace_command(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["broken"])


def test_an_unexpected_error_is_a_traceback_and_1() -> None:
    code = (
        "import sys; import warmroute.cli.main as m; m.COMMANDS['main'] = 'x'; m.command = m.click.Command('x', "
        "callback=lambda: 1 / 0); sys.modules['warmroute.cli.main'] = m; sys.exit(m.main(['main']))"
    )
    result = run_python("-c", code)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in result.stderr


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_command(monkeypatch, KeyboardInterrupt())
    assert main(["broken"]) == 130


# Reading the sources.


def test_every_leaf_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    values = {key: str(leaf.default) for key, leaf in LEAVES.items() if leaf.default is not None and key != "engines"}
    flags = [word for key, text in values.items() for word in (f"--{key}", text)]
    sources = settings_of(*ENGINE, *flags, capsys=capsys)
    assert {key for key, source in sources.items() if source.startswith("flag")} == {*values, "engines"}
    helped = CliRunner().invoke(cli, ["serve", "--help"]).output
    assert all(f"{leaf.flag} " in helped or f"{leaf.flag}, " in helped for leaf in LEAVES.values())


def test_the_three_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("engines: [http://a:1]\ngateway: {port: 1, retries: 1}\ntokenizer:\n  mode: off\n")
    monkeypatch.setenv("WARMROUTE_GATEWAY_PORT", "2")
    monkeypatch.setenv("WARMROUTE_GATEWAY_HOST", "::")
    sources = settings_of("--config", str(path), "--port", "3", capsys=capsys)
    assert {key: source for key, source in sources.items() if source != "default"} == {
        "engines": f"file {path}",
        "gateway.port": "flag --gateway.port",
        "gateway.host": "environment WARMROUTE_GATEWAY_HOST",
        "gateway.retries": f"file {path}",
        "tokenizer.mode": f"file {path}",
    }


def test_the_file_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "w.yaml", tmp_path / "other.yaml"
    path.write_text("engines: [http://a:1]\n")
    other.write_text("engines: [http://b:1]\n")
    monkeypatch.setenv("WARMROUTE_CONFIG", str(path))
    assert settings_of(capsys=capsys)["engines"] == f"file {path}"
    assert settings_of("--config", str(other), capsys=capsys)["engines"] == f"file {other}"


def test_files_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9")
    for path, problem in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (latin, "'utf-8' codec can't decode"),
    ):
        assert main(["check-config", "--config", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"warmroute: --config: '{path}' cannot be read: {problem}")
    monkeypatch.setenv("WARMROUTE_CONFIG", "/nowhere")
    assert main(["check-config"]) == 2
    assert "WARMROUTE_CONFIG: '/nowhere' cannot be read: No such file" in capsys.readouterr().err


# check-config.


def test_check_config_shows_and_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AIBRIX_USE_REMOTE_TOKENIZER", "true")
    assert main(["check-config", *ENGINE]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"tokenizer.mode = remote +# alias AIBRIX_USE_REMOTE_TOKENIZER\n", out)
    assert err.startswith("note: AIBRIX_USE_REMOTE_TOKENIZER = true is understood as tokenizer.mode = remote (set ")
    assert main(["check-config", "--json", *ENGINE]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["notes"]) == 1
    assert err == ""


def test_check_config_tells_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("gateway: {port: 0, port: 1}\n")
    assert main(["check-config", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"warmroute: {path}:1:20: not understood as YAML: 'port' is given twice.")
    path.write_text("gateway: {prot: 0}\nlog: {level: x}\n")
    assert main(["check-config", "--config", str(path), "--port", "-1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[:2] for line in err.splitlines()] == [
        ["warmroute", " gateway.prot"],
        ["warmroute", " gateway.port"],
        ["warmroute", " log.level"],
    ]


def test_check_config_looks_into_files_if_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice secret\n")
    named = ["--gateway.keys_file", str(keys), "--admin.keys_file", "/nowhere", "--tokenizer.path", "/nowhere"]
    named += ["--tls.certificate", "/nowhere", "--tls.key", "/nowhere", "--routing.policy", "nowhere.py:Policy"]
    named += ["--discovery.file.path", "/nowhere", "--admission.redis_url", "redis://h", "--tls.engine_ca", "/nowhere"]
    named += ["--admission.redis_password_file", "/nowhere"]
    assert main(["check-config", *ENGINE, *named]) == 0
    capsys.readouterr()
    assert main(["check-config", "--files", *ENGINE, *named]) == 2
    told = [line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines() if line.startswith("warmroute")]
    assert told == [
        *("gateway.keys_file", "admin.keys_file", "tls.certificate", "tls.engine_ca", "admission.redis_password_file"),
        *("discovery.file.path", "tokenizer.path", "routing.policy"),
    ]
    assert "secret" not in capsys.readouterr().err
    assert main(["check-config", "--files", *ENGINE]) == 0


@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_without_engines_serve_would_not_start(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    assert capsys.readouterr().err.startswith(
        "warmroute: engines: none are listed. Give `--engine URL` (once per engine)"
    )


def test_the_reference_is_made_in_place(tmp_path: Path) -> None:
    docs = SRC.parent / "docs" / "configuration.md"
    page = tmp_path / "page.md"
    page.write_text(docs.read_text().replace("| `gateway.port` | `8080` |", "| stale |"))
    assert main(["check-config", "--reference", str(page)]) == 0
    assert page.read_text() == docs.read_text()


# serve.


def test_serve_hands_the_configuration_to_the_gateway(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Config] = []
    logging_as: list[LogConfig] = []

    def run(config: Config, reread: Callable[[], Loaded]) -> int:
        ran.append(config)
        assert reread().config == config
        return 7

    serving = types.ModuleType("warmroute.app.serving")
    serving.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "warmroute.app.serving", serving)
    monkeypatch.setenv("AIBRIX_KV_EVENT_SYNC_ENABLED", "false")
    monkeypatch.setattr("warmroute.cli.serve.set_up_logging", logging_as.append)
    assert main(["serve", *ENGINE, "--engine", "http://b:1", "--host", "::1", "--log.level", "error"]) == 7
    (config,) = ran
    assert config.engines == (EngineConfig(url="http://a:1"), EngineConfig(url="http://b:1"))
    assert (config.gateway.host, config.events.enabled) == ("::1", False)
    assert logging_as == [LogConfig(level="error")]
    (note,) = caplog.messages
    assert note.startswith("AIBRIX_KV_EVENT_SYNC_ENABLED = false is understood as events.enabled = false")


# As a process.


@pytest.mark.parametrize("module", ["warmroute", "warmroute.cli.main"])
def test_as_a_process(module: str) -> None:
    good = run_python("-m", module, "check-config", *ENGINE, WARMROUTE_GATEWAY_PORT="1234")
    assert (good.returncode, good.stderr) == (0, "")
    assert "# environment WARMROUTE_GATEWAY_PORT\n" in good.stdout
    bad = run_python("-m", module, "serve", *ENGINE, WARMROUTE_GATEWAY_PORT="x", WARMROUTE_NOPE="1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert [line.split(":")[:2] for line in bad.stderr.splitlines()] == [
        ["warmroute", " WARMROUTE_NOPE"],
        ["warmroute", " gateway.port"],
    ]
