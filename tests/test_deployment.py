import subprocess
import sys
import threading

import numpy as np
import pytest

from tests import standin
from tvmcompress import runtime, threads
from tvmcompress.deployment import deploy
from tvmcompress.errors import PackageError, SampleError, UsageError


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return standin.package(standin.library(tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="module")
def deployment(package):
    return deploy(package)


X = np.linspace(-2, 3, 32, dtype=np.float32).reshape(standin.SHAPE)
Y = standin.expected(X, standin.weights())


def test_it_computes_under_the_models_own_names(deployment):
    outputs = deployment({"x": X})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], Y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["aligned", "misaligned", "read only", "transposed"])
def test_inputs_of_any_placement(deployment, kind):
    x = runtime.aligned(standin.SHAPE, np.float32)
    x[:] = X
    if kind == "misaligned":
        x = np.frombuffer(bytearray(4) + X.tobytes(), np.float32, offset=4).reshape(standin.SHAPE)
    elif kind == "read only":
        x.flags.writeable = False
    elif kind == "transposed":
        x = np.asfortranarray(X)
    np.testing.assert_allclose(deployment({"x": x})["y"], Y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x, X)


def test_outputs_stay_what_they_were(deployment):
    first = deployment({"x": X})["y"]
    copy = first.copy()
    deployment({"x": X + 1})
    np.testing.assert_array_equal(first, copy)
    first[:] = 0  # writable, and nobody else's
    np.testing.assert_allclose(deployment({"x": X})["y"], Y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing; got nothing"),
        ({"X": X}, "input 'x' is missing; got 'X'"),
        ({"x": X, "extra": X}, "no input 'extra'; it has 'x'"),
        ({"x": X.astype(np.float64)}, "'x': wanted dtype float32, got float64"),
        ({"x": X[:1]}, "'x': wanted shape 2x16, got 1x16"),
        ({"x": X.tolist()}, "wanted a NumPy array, got list"),
    ],
)
def test_wrong_inputs_are_told_apart(deployment, inputs, message):
    with pytest.raises(SampleError, match=message):
        deployment(inputs)


def test_calls_from_several_threads(deployment):
    results = {}

    def work(number):
        for _ in range(20):
            results[number] = deployment({"x": X + number})["y"]

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in range(4):
        wanted = standin.expected(X + number, standin.weights())
        np.testing.assert_allclose(results[number], wanted, rtol=1e-4, atol=1e-4)


def test_a_path_will_do(package, tmp_path):
    package.save(tmp_path / "p.tar")
    np.testing.assert_allclose(deploy(tmp_path / "p.tar")({"x": X})["y"], Y, rtol=1e-5, atol=1e-5)


def test_threads_are_all_usable_cpus_or_what_is_asked_for(package, deployment):
    import tvm_ffi

    assert deployment.threads == threads.cpu.usable()
    assert deploy(package, threads=1).threads == 1
    count = tvm_ffi.get_global_func("runtime.NumThreads")
    deploy(package, threads=1)
    assert count() == 1
    deploy(package)
    assert count() == threads.cpu.usable()
    with pytest.raises(UsageError, match="wanted a number from 1, got 0"):
        deploy(package, threads=0)


def test_a_gpu_package_without_a_gpu(package):
    needs = {**package.manifest["needs"], "gpu": "sm_80"}
    other = type(package)(package.path, {**package.manifest, "needs": needs}, package._members, package._limits)
    if runtime.CUDA_DRIVER.exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(PackageError, match=r"needs a CUDA device \(sm_80"):
        deploy(other)


def test_bfloat16_goes_in_and_out_without_a_copy():
    import ml_dtypes

    array = runtime.aligned((3, 4), ml_dtypes.bfloat16)
    array[:] = np.arange(12).reshape(3, 4)
    tensor = runtime.tensor(array)
    assert str(tensor.dtype) == "bfloat16"
    back = runtime.array(tensor)
    assert back.dtype == array.dtype and np.shares_memory(back, array)


@pytest.fixture(scope="module")
def board():
    """This machine as a board behind RPC, its server in a process of its own (it changes its working directory)."""
    from tvmcompress.device import Device

    command = [sys.executable, "-m", "tvmcompress.serving", "--port", "19290"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[-1]
            with Device.open(f"rpc://{address}") as device:
                yield device
        finally:
            server.kill()


@pytest.mark.parametrize("prepare", [False, True])
def test_on_a_board(board, tmp_path, prepare):
    package = standin.package(standin.library(tmp_path, prepare), prepare)
    deployment = deploy(package, board, threads=1)
    wanted = standin.expected(X, standin.weights(), prepare)
    np.testing.assert_allclose(deployment({"x": X})["y"], wanted, rtol=1e-4, atol=1e-4)
    report = deployment.measure(X, reference=package, repeats=5)
    assert report.latency["package"]["runs"] == report.latency["reference"]["runs"] == 5
    assert report.memory["package"] is None and "by its clock" in report.how["processes"]


def test_a_package_for_another_board(board, package):
    needs = {**package.manifest["needs"], "features": ["warp9"]}
    other = type(package)(package.path, {**package.manifest, "needs": needs}, package._members, package._limits)
    with pytest.raises(PackageError, match=r"the device lacks warp9\. Compile it for that device"):
        deploy(other, board)
