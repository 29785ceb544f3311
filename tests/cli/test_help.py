"""`--help` says what it always said, is quick, and ends with an example that runs."""

import re
import subprocess
import sys

import click
import pytest

from tests.boards import answers, board, eventually, free_port, tracker
from tests.cli.files import ROOT, briefly, quick
from tvmcompress.cli import COMMANDS, cli

PATHS = ["", *COMMANDS, "target list", "target show", "target detect", "recipe list", "recipe show"]
PATHS += [f"device {name}" for name in ("serve", "tracker", "list", "doctor", "bundle", "keys")]
PATHS += [f"log {name}" for name in ("show", "export", "import", "merge", "repair", "prune")]


def help_of(path: str) -> str:
    command, context = cli, click.Context(cli, info_name="tvmcompress", **cli.context_settings)
    for word in path.split():
        command = command.get_command(context, word)
        context = click.Context(command, parent=context, info_name=word, **cli.context_settings)
    return command.get_help(context) + "\n"


def examples_of(path: str) -> list[str]:
    return re.findall(r"^ +(tvmcompress .+)$", re.split(r"Examples?:", help_of(path))[1], re.MULTILINE)


@pytest.mark.parametrize("path", PATHS)
def test_help(path, golden):
    golden(f"help/{path.replace(' ', '-') or 'tvmcompress'}.txt", help_of(path))


@pytest.mark.parametrize("path", PATHS)
def test_help_ends_with_an_example(path):
    last = help_of(path).rstrip().splitlines()[-1]
    assert examples_of(path) and last.strip() == examples_of(path)[-1]


@pytest.fixture(scope="module")
def boards():
    """A tracker and a board where the examples look for them."""
    try:
        with tracker(9190) as known, board("--name", "native", "--tracker", known.address, port=9090) as one:
            assert (known.port, one.port) == (9190, 9090), "somebody else has these ports"
            eventually(lambda: answers(9090))
            yield
    except AssertionError as error:
        pytest.skip(str(error))


EXAMPLES = sorted({e for path in PATHS for e in examples_of(path)})
SERVING = [e for e in EXAMPLES if e.startswith(("tvmcompress device serve", "tvmcompress device tracker"))]


@pytest.mark.parametrize("example", SERVING)
def test_the_example_serves(folder, example):
    """Until it is interrupted."""
    words = [*example.split()[1:], "--port", str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "tvmcompress", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline().startswith("listening on 127.0.0.1:")
    process.terminate()
    assert process.wait(10) == 143
    process.stdout.close()


# Those that speak to boards share two ports, and so one process.
@pytest.mark.parametrize(
    "example",
    [pytest.param(e, marks=[pytest.mark.alone] * ("localhost:9" in e)) for e in EXAMPLES if e not in SERVING],
)
def test_the_example_runs(folder, monkeypatch, capsys, request, example):
    monkeypatch.chdir(folder)
    if "localhost:9" in example:
        request.getfixturevalue("boards")
    briefly(monkeypatch)
    code = quick(example.removeprefix("tvmcompress "))
    told = capsys.readouterr()
    if "--target rpi4" in example and code == 5:
        assert "install" in told.err  # the cross linker is not there, and that is said
        return
    if "device bundle" in example and "cannot be fetched" in told.err:
        pytest.skip(told.err)
    assert code == 0, told.err
    assert told.out and not told.err


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from tvmcompress.cli import main; main(['--help']); main(['measure', '--help']); "
        "print([m for m in ('tvm', 'tvm_ffi', 'torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
