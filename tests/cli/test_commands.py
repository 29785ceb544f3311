"""What the commands write and print, and what they do with what is wrong."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from tests.cli.files import ROOT, network, quick, tvmcompress
from tvmcompress.errors import SampleError, TvmcompressError


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_run_keeps_the_models_names_and_matches_onnx_runtime(here, capsys):
    import onnxruntime

    assert quick("run float.tar --inputs calib.npz --outputs y.npz --json -") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"samples": 12, "build": "native", "outputs": {"y": {"shape": [12, 10], "dtype": "float32"}}}
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    images = np.load("calib.npz")["x"]
    wanted = np.concatenate([session.run(None, {"x": image[None]})[0] for image in images])
    np.testing.assert_allclose(np.load("y.npz")["y"], wanted, rtol=1e-3, atol=1e-4)


def test_measure_and_verify_on_a_board(here):
    """This machine as a board behind RPC."""
    command = [sys.executable, "-m", "tvmcompress.serving", "--port", "19490"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            board = f"rpc://{server.stdout.readline().split()[-1]}"
            done = tvmcompress(f"verify small.tar --device {board} --json -", here)
            assert json.loads(done.stdout)["ok"] is True, done.stderr
            arguments = f"--samples test.npz --limit 2 --repeats 5 --device {board} --json -"
            done = tvmcompress(f"measure small.tar {arguments}", here)
            assert json.loads(done.stdout)["latency"]["package"]["runs"] == 5, done.stderr
        finally:
            server.kill()


def test_measure_writes_json_and_a_page(here, capsys):
    arguments = "measure small.tar --reference float.tar --samples test.npz --repeats 10"
    assert quick(f"{arguments} --json report.json --html report.html") == 0
    report = json.loads((here / "report.json").read_text())
    assert report["quality"]["overall"]["snr_db"] > 20 and report["quality"]["accuracy"]["rows"] == 4
    assert report["package"]["macs"]["integer"] > 0
    assert {"conv1", "conv2", "fc"} <= {row["name"] for row in report["layers"]}
    assert (here / "report.html").read_text().startswith("<!doctype html>")
    assert "signal to noise" in capsys.readouterr().out


def test_several_builds(here, capsys, tmp_path):
    """Compiled into one package, listed, chosen, forced, and each verified."""
    package = f"{tmp_path}/two.tar"
    assert quick(f"compile small.model --target x86-64-v2,x86-64-v3 -o {package}") == 0
    assert f"{package}: " in (told := capsys.readouterr().out) and "x86-64-v3,x86-64-v2, 2 builds" in told
    assert quick(f"inspect {package}") == 0
    told = capsys.readouterr().out
    assert "x86-64-v3, " in told and ", runs here; needs also abm avx avx2" in told and "x86-64-v2, " in told
    for option, build in (("", "x86-64-v3"), ("--build x86-64-v2", "x86-64-v2")):
        assert quick(f"run {package} --inputs x.npz --outputs {tmp_path}/{build}.npz {option}") == 0
        assert f"by the build for {build}" in capsys.readouterr().out
    one, other = (np.load(tmp_path / f"x86-64-{level}.npz")["y"] for level in ("v2", "v3"))
    np.testing.assert_array_equal(one, other)
    assert quick(f"verify {package}") == 0
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        "good output 'y' of x86-64-v3",
        "good output 'y' of x86-64-v2",
    ]


def test_json_on_stdout_is_all_there_is(here, capsys):
    for arguments in ("verify small.tar", "inspect small.tar", "inspect model.onnx", "target show rpi4", "recipe list"):
        assert quick(f"{arguments} --json -") == 0
        assert json.loads(capsys.readouterr().out)


def test_compile_says_what_its_recipe_did(here, capsys, tmp_path):
    recipe = tmp_path / "nothing.toml"
    recipe.write_text("[prune_magnitude]\nmin_size = 1000000\n[[cluster_weights]]\n[[cluster_weights]]\n")
    assert quick(f"compile model.onnx --recipe {recipe} --log none -o {tmp_path}/s.tar") == 0
    out = capsys.readouterr().out
    assert "prune_magnitude: 0 of 3 layers pruned" in out and "smaller than min_size" in out
    # A pass that comes twice is told of twice.
    assert len(re.findall(r"cluster_weights: \d of 3 layers clustered", out)) == 2


def test_compile_tells_of_zeros_in_every_build(here, capsys, tmp_path):
    recipe = tmp_path / "prune.toml"
    recipe.write_text("[prune_magnitude]\ndensity = 0.1\nmin_size = 0\n")
    where = "--target x86-64-v2,x86-64-v3 --log none"
    assert quick(f"compile model.onnx --recipe {recipe} {where} -o {tmp_path}/s.tar") == 0
    out = capsys.readouterr().out
    assert "Layers with zeros on x86-64-v2" in out and "Layers with zeros on x86-64-v3" in out


def test_the_report_of_compress_says_what_is_left(here, capsys, tmp_path):
    recipe = tmp_path / "thin.toml"
    recipe.write_text("[prune_channels]\nround_to = 1\n")
    assert quick(f"compress model.onnx --recipe {recipe} -o {tmp_path}/s.model") == 0
    assert re.search(r"prune_channels leaves \d+\.\d% of the multiply-accumulates", capsys.readouterr().out)


def test_the_report_of_compress_says_what_stayed_float(here, capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[quantize_static]\nskip = ["fc"]\n')
    assert quick(f"compress model.onnx --recipe {recipe} --samples calib.npz -o {tmp_path}/s.model") == 0
    out = capsys.readouterr().out
    assert "2 of 3 layers quantized" in out and "fc stays float" in out


def test_the_report_of_compress_says_what_was_clustered_and_divided(here, capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[factorize]\nmethod = "svd"\n[cluster_weights]\nmin_size = 0\nskip = ["fc"]\n')
    assert quick(f"compress model.onnx --recipe {recipe} -o {tmp_path}/s.model") == 0
    out = capsys.readouterr().out
    assert "0 of 3 layers factorized" in out and "fc stays whole: smaller than min_size = 4096" in out
    assert "2 of 3 layers clustered" in out and "fc keeps its weights: skipped by name 'fc'" in out


WRONG = [
    ("verify none.tar", 4, "none.tar: No such file or directory"),
    ("verify model.onnx", 4, "not a package"),
    ("inspect none.onnx", 4, "none.onnx"),
    ("compress small.tar --recipe int8 -o o.model", 4, "is a package (already compiled), not a model"),
    ("compress model.onnx --recipe int9 --samples calib.npz -o o.model", 2, "did you mean"),
    ("compress model.onnx --recipe int8 -o o.model", 4, "needs samples"),
    ("compress model.onnx --recipe int8 --samples none.npz -o o.model", 4, "no file or folder 'none.npz'"),
    ("compress model.onnx --recipe int8 --samples calib.npz -o model.onnx", 2, "is the input itself"),
    ("compress model.onnx --recipe int8 --samples calib.npz -o nowhere/o.model", 2, "there is no folder 'nowhere'"),
    ("compile model.onnx --target rpi44 -o o.tar", 2, "did you mean"),
    ("compile model.onnx --target x86-64-v3,rpi4 -o o.tar", 2, "builds are for one architecture"),
    ("compile model.onnx --samples calib.npz -o o.tar", 2, "give a --recipe"),
    ("compress model.onnx --recipe prune50-int8 -o o.model", 4, 'say repair = "none"'),
    ("compile model.onnx --log old.db -o old.db", 2, "is the input itself"),
    ("tune model.onnx --log old.db --json old.db", 2, "is the input itself"),
    ("tune model.onnx --log old.db --events old.db", 2, "is the input itself"),
    ("log export --log old.db -o old.db", 2, "is the input itself"),
    ("log merge nosuch.db --log new.db", 2, "no tuning log 'nosuch.db'"),
    ("tune model.onnx --json nowhere/x.json", 2, "there is no folder 'nowhere'"),
    ("compare model.onnx --budget nan", 2, "wanted seconds"),
    ("device serve --port 99999", 2, "0<=x<=65535"),
    ("device serve --tracker nowhere", 2, "wanted HOST:PORT"),
    ("compile model.onnx --shape x=1xx3 -o o.tar", 2, "wanted NAME=1x3x224x224"),
    ("compile model.onnx --value x -o o.tar", 2, "wanted NAME=3"),
    ("compile model.onnx -o .", 2, "is a folder"),
    ("run small.tar --inputs model.onnx --outputs o.npz", 4, "not a file of NumPy arrays"),
    ("run small.tar --inputs x.npz --outputs o.npz --threads 0", 2, "threads"),
    ("run small.tar --inputs x.npz --outputs o.npz --device mars", 2, "wanted local, HOST:PORT"),
    ("run small.tar --inputs x.npz --outputs o.npz --build v9", 2, "model has no build 'v9'; it has native"),
    ("measure small.tar --samples test.npz --device mars", 2, "wanted local, HOST:PORT"),
    ("verify small.tar --device mars", 2, "wanted local, HOST:PORT"),
    ("measure small.tar --samples x.npz --reference none.onnx", 4, "no file 'none.onnx'"),
    ("frobnicate", 2, "No such command"),
    ("tune model.onnx --budget soon", 2, "wanted a time like 90s, 30m or 1h30m"),
    ("tune model.onnx --budget 0", 2, "wanted more than nothing"),
    ("tune model.onnx --trials 0", 2, "wanted at least 1"),
    ("tune model.onnx --until lots", 2, "wanted a share like 5%"),
    ("tune model.onnx --target riscv64", 2, "riscv64 does not run on this machine"),
    ("tune model.onnx --target x86-64-any", 2, "has several builds: tune for one of"),
    ("tune model.onnx --from rpi44", 2, "no target 'rpi44'"),
    ("tune model.onnx --from native", 2, "is the target that is tuned for"),
    ("tune model.onnx --from rpi4", 2, "no trials of it; others there: none"),
    ("tune model.onnx --samples calib.npz", 2, "give a --recipe that uses them"),
    ("log show --log none.db", 2, "no tuning log 'none.db'"),
    ("log show --log nosuch://host/name", 2, "wanted a path or postgresql://"),
    ("log import none.jsonl", 2, "no file 'none.jsonl'"),
    ("log merge none.db", 2, "no tuning log 'none.db'"),
    ("log prune", 2, "say what to remove"),
    ("compare model.onnx --on rpi9", 2, "no target 'rpi9'; did you mean"),
    ("compare model.onnx --on rpi4", 2, "does not run on this machine; say where: rpi4@HOST:PORT"),
    ("compare model.onnx --on rpi4@board", 2, "wanted TARGET@HOST:PORT"),
    ("compare model.onnx --on native --on local", 2, "name each place once"),
    ("compare model.onnx --recipe int8 --recipe int8", 2, "recipe 'int8' is given twice"),
    ("compare model.onnx --recipe int9", 2, "int9"),
    ("compare model.onnx --fail-if-slower much", 2, "wanted a share like 5%, got 'much'"),
    ("compare model.onnx --fail-if-slower=-1%", 2, "wanted a share like 5%"),
    ("compare model.onnx --baseline small.tar", 2, "--fail-if-slower compares with; give that too"),
    ("compare model.onnx --baseline none.json --fail-if-slower 5%", 4, "none.json: No such file"),
    ("compare model.onnx --baseline test.npz --fail-if-slower 5%", 4, "test.npz: not a comparison"),
    ("compare model.onnx -o model.onnx", 2, "is the input itself"),
    ("compare model.onnx --json nowhere/c.json", 2, "there is no folder 'nowhere'"),
    ("compile model.onnx --log none.db -o o.tar", 2, "no tuning log 'none.db'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_said_in_two_lines(here, capsys, arguments, code, message):
    before = sorted((f.name, f.stat().st_mtime_ns) for f in here.iterdir())
    assert quick(arguments) == code
    told = capsys.readouterr()
    assert message in told.err and "Traceback" not in told.err and told.out == ""
    lines = [line for line in told.err.strip().splitlines() if not line.startswith(("Usage:", "Try '"))]
    assert 1 <= len([line for line in lines if line]) <= 2
    assert sorted((f.name, f.stat().st_mtime_ns) for f in here.iterdir()) == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((1, 3, 12, 12), np.float32)}, "input 'x' is missing; got 'z'"),
        ({"x": np.zeros((1, 3, 12, 12))}, "'x': wanted dtype float32, got float64"),
        ({"x": np.zeros((1, 3, 13, 12), np.float32)}, "wanted shape 1x3x12x12"),
        ({"x": np.full((1, 3, 12, 12), np.nan, np.float32)}, "holds NaN"),
    ],
)
@pytest.mark.parametrize("command", ["compress model.onnx --recipe int8 --samples", "run small.tar --inputs"])
def test_wrong_samples(here, tmp_path, capsys, command, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    output = f"--outputs {tmp_path}/o.npz" if command.startswith("run") else f"-o {tmp_path}/o.model"
    assert quick(f"{command} {tmp_path}/s.npz {output}") == 4
    assert message in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.tflite", "m.model", "m"])
@pytest.mark.parametrize("content", ["empty", "random", "cut short"])
def test_files_that_are_no_models(here, tmp_path, capsys, name, content):
    whole = (here / "model.onnx").read_bytes()
    random = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()
    (tmp_path / name).write_bytes({"empty": b"", "random": random, "cut short": whole[: len(whole) // 2]}[content])
    for command in ("inspect", f"compile -o {tmp_path}/o.tar"):
        assert quick(f"{command} {tmp_path / name}") == 4
        told = capsys.readouterr().err
        assert told.startswith("error: ") and "this is a bug" not in told and len(told.splitlines()) <= 2
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_a_full_disk(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tvmcompress.package.shutil.copyfile", full)
    assert quick("compile small.model -o o.tar") == 1
    assert "cannot write o.tar: No space left on device" in capsys.readouterr().err
    assert not (here / "o.tar").exists() and not list(here.glob(".o.tar*"))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SampleError("wanted this"), 4, "error: wanted this\n"),
        (TvmcompressError("ours"), 1, "error: ours\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "error: x: Permission denied\n"),
        (ZeroDivisionError("a\nb"), 1, "error: ZeroDivisionError: b\nthis is a bug; TVMCOMPRESS_DEBUG=1 shows where\n"),
    ],
)
def test_every_error_has_its_code(monkeypatch, capsys, error, code, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("tvmcompress.package.Package.load", fail)
    assert quick("verify small.tar") == code
    assert capsys.readouterr().err == message


def test_debugging_shows_where(folder):
    done = tvmcompress("-v verify none.tar", folder)
    assert done.returncode == 4 and "Traceback" in done.stderr and "error: none.tar" in done.stderr


def test_damage_is_found(folder, tmp_path):
    damaged = bytearray((folder / "small.tar").read_bytes())
    damaged[4096 + 3] ^= 0xFF
    (tmp_path / "d.tar").write_bytes(damaged)
    done = tvmcompress("verify d.tar", tmp_path)
    assert done.returncode == 4 and "BAD  weights.bin" in done.stdout
    assert done.stderr == "error: d.tar is not what it should be: weights.bin\n"


def test_a_reader_that_goes_away(folder):
    command = f"{sys.executable} -m tvmcompress target list | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_work_leaves_nothing(folder, tmp_path, number, code):
    np.savez(tmp_path / "many.npz", x=np.zeros((20_000, 3, 12, 12), np.float32))
    onnx.save(network(), tmp_path / "model.onnx")
    before = sorted(f.name for f in tmp_path.iterdir())
    command = ["compile", "model.onnx", "--recipe", "int8", "--samples", "many.npz", "-o", "o.tar"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tvmcompress", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(6)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, len(error.strip().splitlines())) == (code, 1), error
    assert sorted(f.name for f in tmp_path.iterdir()) == before


def test_progress_is_for_terminals_only(folder, tmp_path):
    np.savez(tmp_path / "many.npz", x=np.zeros((4000, 3, 12, 12), np.float32))
    arguments = [
        "run",
        str(folder / "small.tar"),
        "--inputs",
        str(tmp_path / "many.npz"),
        "--outputs",
        "/dev/shm/o.npz",
    ]
    arguments[-1] = str(tmp_path / "o.npz")
    assert tvmcompress(arguments, tmp_path).stderr == ""
    main, end = pty.openpty()
    program = (
        "import sys, time, tvmcompress.cli.screen as screen\n"
        "screen.PATIENCE_S = 0.1\n"
        "with screen.progress() as progress:\n"
        "    for i in range(8):\n"
        "        progress(i + 1, 8, 'calibrating'); time.sleep(0.1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=end, env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    )
    assert process.wait(60) == 0
    os.close(end)
    shown = os.read(main, 100_000).decode()
    assert "calibrating" in shown and "/8" in shown and "0:00:0" in shown
