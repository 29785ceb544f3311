"""The threads that every library is linked with: each iteration once, whatever the counts, callers and forks."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import tvmcompress as tc
from tests import networks
from tvmcompress import linking, threads

# Stands in for generated code: a loop that counts how often each of its iterations has run, and how a launch fails.
LOOPS = r"""
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef struct { void *sync; int32_t tasks; } environment;
typedef int (*loop)(int, environment *, void *);
int (*__TVMBackendParallelLaunch)(loop, void *, int);
void tvmcompress_iterations(int32_t);
typedef struct { int count; int inner; uint32_t ran[4096]; } closure;

static int body(int task, environment *env, void *data) {
    closure *c = data;
    int step = (c->count + env->tasks - 1) / env->tasks;
    for (int i = task * step; i < (task + 1) * step && i < c->count; i++) {
        __atomic_add_fetch(&c->ran[i], 1, __ATOMIC_RELAXED);
        if (c->inner) {
            closure nested = {.count = c->inner};
            tvmcompress_iterations(nested.count);
            __TVMBackendParallelLaunch(body, &nested, 0);
            for (int j = 0; j < nested.count; j++)
                if (nested.ran[j] != 1) __atomic_add_fetch(&c->ran[i], 100, __ATOMIC_RELAXED);
        }
    }
    return c->count == 13;
}

/* How many of `repeats` loops did not run every iteration once; loops of 13 say that they failed. */
__attribute__((visibility("default"))) int count_faults(int count, int inner, int announced, int repeats) {
    int faults = 0;
    for (int r = 0; r < repeats; r++) {
        closure c = {.count = count, .inner = inner};
        if (announced) tvmcompress_iterations(count);
        int failed = __TVMBackendParallelLaunch(body, &c, 0);
        int fault = failed != (count == 13 ? -1 : 0) && !(count == 13 && failed == 1);
        for (int i = 0; i < count; i++) fault |= c.ran[i] != 1;
        faults += fault;
    }
    return faults;
}

typedef struct { int count, faults; } job;
static void *caller(void *data) {
    job *j = data;
    j->faults = count_faults(j->count, 0, 1, 2000);
    return NULL;
}

/* The same from several threads at a time. */
__attribute__((visibility("default"))) int count_faults_of_callers(int callers) {
    pthread_t handles[16];
    job jobs[16];
    int faults = 0;
    for (int i = 0; i < callers; i++) {
        jobs[i] = (job){20 + i, 0};
        pthread_create(&handles[i], NULL, caller, &jobs[i]);
    }
    for (int i = 0; i < callers; i++) {
        pthread_join(handles[i], NULL);
        faults += jobs[i].faults;
    }
    return faults;
}
"""
MAIN = r"""
int __tvm_ffi_use_threads(void *, const void *, int, void *);
int main(void) {
    int faults = 0;
    for (int threads = 1; threads < 6; threads++) {
        struct { int32_t type; uint32_t padding; int64_t value; } argument = {1, 0, threads}, result;
        __tvm_ffi_use_threads(NULL, &argument, 1, &result);
        for (int count = 1; count < 150; count += 7) faults += count_faults(count, count % 3, 1, 20);
    }
    return (faults + count_faults_of_callers(3)) != 0;
}
"""


class Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_int64))


def compiled(folder: Path, text: str, *options: str) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("no C compiler")
    source, out = folder / "loops.c", folder / "loops"
    source.write_text(text)
    subprocess.run(["gcc", "-O1", *options, str(source), str(linking.THREADS), "-o", str(out), "-lpthread"], check=True)
    return out


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    return ctypes.CDLL(str(compiled(tmp_path_factory.mktemp("loops"), LOOPS, "-shared", "-fPIC")))


def use(loops: ctypes.CDLL, count: int) -> int:
    argument, result = Any(1, 0, count), Any()
    assert loops.__tvm_ffi_use_threads(None, ctypes.byref(argument), 1, ctypes.byref(result)) == 0
    return result.value


@pytest.mark.parametrize("count", [1, 2, 3, 7, 0, -1])
def test_every_iteration_runs_once(loops, count):
    assert use(loops, count) == max(count, 1)
    for iterations in [*range(1, 70), 127, 128, 129, 1000, 4096]:
        assert loops.count_faults(iterations, 0, 1, 20) == 0, iterations
        assert loops.count_faults(iterations, 0, 0, 2) == 0, iterations


def test_loops_within_loops(loops):
    use(loops, 3)
    assert loops.count_faults(40, 9, 1, 100) == 0


def test_several_callers(loops):
    use(loops, 3)
    assert loops.count_faults_of_callers(4) == 0


def test_a_forked_child_has_threads_of_its_own(loops):
    use(loops, 2)
    assert loops.count_faults(50, 0, 1, 10) == 0
    child = os.fork()
    if child == 0:
        os._exit(min(loops.count_faults(50, 0, 1, 10), 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_data_race(tmp_path):
    """By gcc's thread sanitizer, where it is installed."""
    try:
        program = compiled(tmp_path, LOOPS + MAIN, "-fsanitize=thread", "-g")
    except subprocess.CalledProcessError:
        pytest.skip("this gcc has no thread sanitizer")
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stderr[:2000]


# In a process of its own: other tests leave threads behind, and collecting what they left ends some of them.
DEPLOYMENTS = """
import gc, os, sys, time
import numpy as np
import tvmcompress as tc

def running():
    return len(os.listdir("/proc/self/task"))

def must_be(count):  # a thread that has been joined is there for a moment longer
    end = time.monotonic() + 10
    while running() != count:
        assert time.monotonic() < end, (running(), count)

package = tc.compile(tc.load(sys.argv[1]), "native")
x = {"input": np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)}
(wanted,) = tc.deploy(package, threads=1)(x).values()
gc.collect()
time.sleep(1)
before = running()
for count in (2, 5):
    deployment = tc.deploy(package, threads=count)
    (got,) = deployment(x).values()
    np.testing.assert_array_equal(got, wanted)
    must_be(before + count - 1)
    del deployment
    gc.collect()
    must_be(before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_deployment_ends_its_threads_and_any_count_gives_the_same(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(networks.small(64), path)
    done = subprocess.run([sys.executable, "-c", DEPLOYMENTS, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_as_many_as_this_process_may_use():
    assert threads.count() == len(os.sched_getaffinity(0))
    with pytest.raises(tc.errors.UsageError):
        threads.count(0)
