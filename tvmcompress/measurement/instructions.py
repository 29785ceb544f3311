"""What instructions a kernel is made of: mnemonics of its assembly, counted by what they do.

Counted as they stand, once each; and those of innermost loops, where the time goes, once more by themselves. It is a
count of code, not of what was executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

DOT, FUSED, VECTOR, MEMORY, BRANCH, SCALAR = "dot product", "multiply-add", "vector", "memory", "branch", "scalar"
GROUPS = (DOT, FUSED, VECTOR, MEMORY, BRANCH, SCALAR)

# By architecture, in order: the first that matches `mnemonic operands` has it.
X86 = (
    (DOT, r"(vpdp\w+|vdpbf16ps|v?pmaddwd|v?pmaddubsw|tdp\w+) "),
    (FUSED, r"vfn?m(add|sub)\w+ "),
    (BRANCH, r"(j\w+|call\w*|ret\w*)( |$)"),
    (MEMORY, r"(v?mov\w*|push\w*|pop\w*|v?p?broadcast\w*|prefetch\w*|vp?(scatter|gather)\w*) .*\("),
    (VECTOR, r".*%[xyz]mm\d"),
)
ARM = (
    (DOT, r"([su]dot|usdot|sudot|us?mmla|smmla|bfdot|bfmmla|bfmlal[bt]|fmlal2?|v[su]dot\.\w+) "),
    (FUSED, r"(fn?m(add|sub|la|ls)|[su]ml[as]l2?|ml[as]|smlabb|v(fm|fnm|ml)[as]l?\.\w+) "),
    (BRANCH, r"(b(\.\w+|l|lr|r|x|lx|eq|ne|lt|le|gt|ge|hs|lo|hi|ls|mi|pl)?|ret|cbn?z|tbn?z)( |$)"),
    (MEMORY, r"(ld\w*|st\w*|vld\w*(\.\w+)?|vst\w*(\.\w+)?|prfm|push|pop|vpush|vpop) "),
    (VECTOR, r"v\w+\.\w+ |.* \{? ?(v\d+\.\d*\w+|q\d+|z\d+\.)"),
)
RISCV = (
    (DOT, r"vqdot\w*\.\w+ "),
    (FUSED, r"(fn?m(add|sub)\.\w|vf?w?n?m(acc|add|sac|sub)\w*\.v\w+) "),
    (BRANCH, r"(b[egln]\w+|j\w*|call|tail|ret)( |$)"),
    (MEMORY, r"(l[bhwd]u?|s[bhwd]|fl[hwd]|fs[hwd]|v[ls][es]?\w*\d\w*\.v) "),
    (VECTOR, r"v\w+(\.\w+)* "),
)
RULES = {"x86_64": X86, "aarch64": ARM, "armv7l": ARM, "riscv64": RISCV}

LABEL = re.compile(r"^([\w.$]+):")
INSIDE = re.compile(r"^[ \t]+([a-z][\w.]*)(?:[ \t]+(.*))?$")
LAMBDA = re.compile(r"(?:\.L)?__tvm_parallel_lambda[\w.]*")  # the body of a parallel loop, a function of its own

Rules = list[tuple[str, re.Pattern]]
Counts = dict[str, dict[str, int]]  # "all" and "inner": by group


@dataclass
class Block:
    """Instructions from a label, or behind a branch, to the next branch or label."""

    function: str
    label: str
    lines: list[tuple[str, str]]  # mnemonic, operands


def mix(assembly: str, arch: str, kernels: Iterable[str]) -> dict[str, Counts]:
    """For each kernel {"all": {group: count}, "inner": the same of its innermost loops}.

    What TVM puts around a kernel to check its arguments does not count, the bodies of its parallel loops do.
    """
    rules = compiled(arch)
    own = {f"{name}_compute_": name for name in kernels}
    found = {name: nothing() for name in own.values()}
    parts = list(blocks(assembly, rules))
    for block in parts:  # bodies of loops belong to whom they are named by
        for _, operands in block.lines if block.function in own else ():
            own |= dict.fromkeys(LAMBDA.findall(operands), own[block.function])
    for block in parts:
        if block.function not in own:
            continue
        counts, last = found[own[block.function]], block.lines[-1]
        groups = [group_of(mnemonic, operands, rules) for mnemonic, operands in block.lines]
        turns = bool(block.label) and groups[-1] == BRANCH and block.label in re.split(r"[\s,#]+", last[1])
        for group in groups:
            counts["all"][group] += 1
            counts["inner"][group] += turns
    return found


@cache
def compiled(arch: str) -> Rules:
    return [(group, re.compile(rule)) for group, rule in RULES.get(arch, ())]


def nothing() -> Counts:
    return {"all": dict.fromkeys(GROUPS, 0), "inner": dict.fromkeys(GROUPS, 0)}


def group_of(mnemonic: str, operands: str, rules: Rules) -> str:
    text = f"{mnemonic} {operands}".rstrip()
    return next((group for group, rule in rules if rule.match(text)), SCALAR)


def blocks(assembly: str, rules: Rules) -> Iterator[Block]:
    function, label, lines = "", "", list[tuple[str, str]]()
    functions = set(re.findall(r"^\s*\.type\s+([\w.$]+),\s*[@%]function", assembly, re.MULTILINE))
    for line in assembly.splitlines():
        if found := LABEL.match(line):
            if found[1].startswith(".Ltmp"):  # of debug information
                continue
            if lines:
                yield Block(function, label, lines)
            label, lines = found[1], []
            if label in functions:
                function = label
        elif function and (found := INSIDE.match(line)):
            lines.append((found[1], (found[2] or "").strip()))
            if group_of(*lines[-1], rules) == BRANCH:
                yield Block(function, label, lines)
                label, lines = "", []
    if lines:
        yield Block(function, label, lines)


def added(rows: Iterable[Counts]) -> Counts:
    """Several counts as one."""
    total = nothing()
    for row in rows:
        for part, counts in row.items():
            for group, count in counts.items():
                total[part][group] += count
    return total
