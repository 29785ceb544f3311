"""Instructions in assembly, counted by what they do."""

import numpy as np
import pytest
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import lower
from tvmcompress.measurement import apart, instructions
from tvmcompress.target import Target

ASSEMBLY = """
	.type	__tvm_ffi_net,@function
__tvm_ffi_net:
	movq	%rdi, %rax
	retq
	.type	net_compute_,@function
net_compute_:
	leaq	.L__tvm_parallel_lambda.3(%rip), %rsi
	callq	*%rax
	retq
	.type	.L__tvm_parallel_lambda.3,@function
.L__tvm_parallel_lambda.3:
	vxorps	%xmm0, %xmm0, %xmm0
.LBB2_1:
	vmovups	(%rdi), %zmm1
.Ltmp7:
	vfmadd231ps	64(%rdi){1to16}, %zmm1, %zmm0
	vpdpbusd	%zmm1, %zmm2, %zmm3
	addq	$64, %rdi
	jne	.LBB2_1
	vmovups	%zmm0, (%rsi)
	retq
"""


def test_instructions_are_counted_by_what_they_do():
    found = instructions.mix(ASSEMBLY, "x86_64", ["net"])["net"]
    assert found["inner"] == {
        "dot product": 1, "multiply-add": 1, "vector": 0, "memory": 1, "branch": 1, "scalar": 1
    }  # fmt: skip
    assert found["all"] == {
        "dot product": 1, "multiply-add": 1, "vector": 1, "memory": 2, "branch": 4, "scalar": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "line", "group"),
    [
        ("aarch64", "sdot v0.4s, v1.16b, v2.4b[0]", "dot product"),
        ("aarch64", "smmla v0.4s, v1.16b, v2.16b", "dot product"),
        ("aarch64", "fmla v8.4s, v13.4s, v12.s[0]", "multiply-add"),
        ("aarch64", "smlal2 v0.4s, v1.8h, v2.h[1]", "multiply-add"),
        ("aarch64", "movi v8.2d, #0000000000000000", "vector"),
        ("aarch64", "ldp q13, q14, [x0, #-32]", "memory"),
        ("aarch64", "b.ne .LBB7_8", "branch"),
        ("aarch64", "cbz x0, .LBB7_8", "branch"),
        ("aarch64", "bic x0, x1, x2", "scalar"),
        ("aarch64", "subs x1, x1, #1", "scalar"),
        ("armv7l", "vmla.f32 q0, q1, d2[0]", "multiply-add"),
        ("armv7l", "vadd.f32 q0, q1, q2", "vector"),
        ("armv7l", "vld1.32 {d0, d1}, [r0]!", "memory"),
        ("riscv64", "vfmacc.vf v8, fa0, v12", "multiply-add"),
        ("riscv64", "vle32.v v8, (a0)", "memory"),
        ("riscv64", "vwmacc.vx v8, a0, v12", "multiply-add"),
        ("riscv64", "bne a0, a1, .LBB0_1", "branch"),
        ("riscv64", "addi a0, a0, 4", "scalar"),
        ("x86_64", "vpmaddwd %zmm0, %zmm1, %zmm2", "dot product"),
        ("x86_64", "vpaddd %zmm0, %zmm1, %zmm2", "vector"),
        ("x86_64", "movl $16, %ecx", "scalar"),
    ],
)
def test_groups(arch: str, line: str, group: str):
    mnemonic, _, operands = line.partition(" ")
    assert instructions.group_of(mnemonic, operands, instructions.compiled(arch)) == group


@pytest.mark.parametrize("target", ["x86-64-v3", "cortex-a72"])
def test_what_threads_share_out_counts_too(target: str):
    """The work of a large kernel is in the bodies of its parallel loops."""
    x = np.zeros((64, 64, 3, 3), np.float32)

    def body(rewriter, data):
        return [rewriter.emit(relax.op.nn.conv2d(data, graph.const(x), padding=1))]

    module = graph.program([("x", (1, 64, 56, 56), "float32")], body)
    machine, watch = Target.load(target).to_tvm(), apart.Watch()
    lower(module, machine, isa_of(machine), watch)
    mix = apart.Kernels(watch.modules[0], Target.load(target)).mix()
    assert sum(counts["inner"]["multiply-add"] for counts in mix.values()) >= 8
