import os
from pathlib import Path

import pytest

from tvmcompress import cpu
from tvmcompress.cpu_features import DEVICE_NAMES, HWCAP


def test_this_machine():
    facts = cpu.describe()
    assert facts["architecture"] in DEVICE_NAMES
    assert 1 <= facts["cores"] <= len(os.sched_getaffinity(0))
    assert facts["features"]
    assert cpu.missing(facts["features"]) == []


def test_missing_names_what_is_missing():
    assert cpu.missing(["no_such_feature", "another", *sorted(cpu.features())[:2]]) == ["another", "no_such_feature"]


def test_usable_follows_the_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu.usable() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("limit", "wanted"), [("max 100000", 0.0), ("150000 100000", 1.5), ("50000 100000", 0.5), ("", 0.0)]
)
def test_quota_of_a_control_group(tmp_path: Path, limit: str, wanted: float):
    (tmp_path / "cpu.max").write_text(limit)
    assert cpu._quota_v2(tmp_path) == wanted


@pytest.mark.parametrize(("quota", "wanted"), [("-1", 0.0), ("200000", 2.0)])
def test_quota_of_an_old_control_group(tmp_path: Path, quota: str, wanted: float):
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert cpu._quota_v1(tmp_path) == wanted


@pytest.mark.parametrize(("quota", "wanted"), [(0.0, 4), (0.5, 1), (2.5, 2), (9.0, 4)])
def test_usable_is_cut_down_by_a_quota(monkeypatch, quota: float, wanted: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cpu, "_cgroup_quota", lambda: quota)
    assert cpu.usable() == wanted


def test_sizes():
    assert [cpu.parse_size(t) for t in ("48K", "2M", "512", "x")] == [49152, 2097152, 512, 0]


def test_riscv_isa():
    assert cpu.parse_riscv_isa("rv64imafdcv_zba_zicond") == frozenset("imafdcv") | {"zba", "zicond"}
    assert cpu.parse_riscv_isa("rv64gc") == frozenset("imafdc")


def test_hwcap_bits():
    # Bit numbers of Linux: HWCAP_CRC32 = 1 << 7, HWCAP_ASIMDDP = 1 << 20, HWCAP_SVE = 1 << 22; HWCAP2_I8MM = 1 << 13,
    # HWCAP2_BF16 = 1 << 14, HWCAP2_SME = 1 << 23.
    # 32-bit: HWCAP_NEON = 1 << 12, HWCAP_VFPD32 = 1 << 19, HWCAP_I8MM = 1 << 27.
    first, second = HWCAP["aarch64"]
    assert cpu.parse_hwcap(1 << 7 | 1 << 20 | 1 << 22, first) == {"crc32", "asimddp", "sve"}
    assert cpu.parse_hwcap(1 << 13 | 1 << 14 | 1 << 23, second) == {"i8mm", "bf16", "sme"}
    assert cpu.parse_hwcap(1 << 12 | 1 << 19 | 1 << 27 | 1 << 3, HWCAP["armv7l"][0]) == {"neon", "vfpd32", "i8mm"}
    assert cpu.parse_hwcap(1 << 4, HWCAP["armv7l"][1]) == {"crc32"}


def test_names_of_the_device_and_of_llvm():
    assert cpu.device_names("x86_64", ["avx512vnni", "lzcnt", "fast-gather"]) == {"avx512_vnni", "abm"}
    assert cpu.device_names("aarch64", ["dotprod", "fullfp16", "aes"]) == {"asimddp", "fphp", "asimdhp"}
    # Half of what fullfp16 needs is not fullfp16.
    assert cpu.llvm_names("aarch64", ["fphp", "asimddp"]) == {"dotprod"}
