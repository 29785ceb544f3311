"""Package: compiled library, weights, manifest, golden inputs and outputs, for one target, in one file.

For a target of several builds it holds a library for each; they share everything else. Each of `builds` is a Package on
the same file whose manifest is that build's, and `pick` finds the one for a machine.

The file is described in `archive`, the manifest in `manifest`. A package is always backed by a file, its own temporary
one until it is saved, so weights are mapped and never held in memory twice; those that are stored coded (see `coding`)
are unpacked when they are asked for.
"""

from __future__ import annotations

import hashlib
import lzma
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcompress import archive, arrays, cpu, golden, manifest, package_writer, remote, runtime
from tvmcompress.archive import Limits
from tvmcompress.coding import parts
from tvmcompress.errors import PackageError, TvmcompressError, UsageError, did_you_mean
from tvmcompress.golden import Check, Verification
from tvmcompress.ir.files import atomic_write
from tvmcompress.spec import TensorSpec, spec_from_json

if TYPE_CHECKING:
    from tvmcompress.device import Device

BLOCK = 1 << 20


class Package:
    """See the module. Made by `build` or `load`."""

    def __init__(self, path: Path, contents: dict, members: dict, limits: Limits, owned: Any = None):
        self.path = path
        self.manifest = contents
        self._members = members
        self._limits = limits
        self._owned = owned  # the temporary folder that `path` lies in, when it is ours

    @classmethod
    def build(
        cls,
        *,
        library: str | os.PathLike | Mapping[str, str | os.PathLike],
        weights: Iterable[tuple[str, arrays.Array]],
        manifest: dict,
        golden_inputs: Mapping[str, np.ndarray],
        golden_outputs: Mapping[str, np.ndarray],
        storage: str = "auto",
    ) -> Package:
        """A new package.

        `library` is a linked Relax library with `main(inputs …, weights …) -> tuple`, the weights being those given
        here, in this order, or, when `manifest["entry"]["prepare"]` is true, what its function `prepare(weights …)`
        returns. A weight may be a function that makes the array, called when its turn comes. `manifest` holds what
        `tvmcompress.manifest` lists; when it has `builds`, `library` is the file of each by the name of its member.
        `storage` says which weights are stored coded: "auto" those with many zeros, few distinct values or indices that
        ascend, where that saves a fifth; "xz" and "zstd" whatever saves a tenth; "plain" none. Raises PackageError when
        a field is missing, UsageError for an unknown storage, MissingDependencyError, TvmcompressError on a full disk.
        """
        parts.check_storage(storage)
        folder = tempfile.TemporaryDirectory(prefix="tvmcompress-")
        path = Path(folder.name, "package.tar")
        try:
            package_writer.write(path, library, weights, manifest, golden_inputs, golden_outputs, storage)
            package = cls.load(path)
        except OSError as error:
            folder.cleanup()
            raise TvmcompressError(f"cannot write the package to {folder.name}: {error.strerror or error}") from error
        except BaseException:
            folder.cleanup()
            raise
        package._owned = folder
        return package

    @classmethod
    def load(cls, path: str | os.PathLike, limits: Limits | None = None) -> Package:
        """Open a package file; its weights are mapped when they are first used. Raises PackageError.

        Names, sizes, limits and the libraries' hashes are checked here; the hashes of everything else by `verify`.
        """
        limits = limits or Limits()
        members = archive.read(path, limits)
        if members["manifest.json"].size > limits.manifest:
            raise PackageError(f"{path}: the manifest is larger than the limit of {limits.manifest:,} bytes")
        contents = manifest.parse(_read(path, members["manifest.json"]), str(path))
        package = cls(Path(path), contents, members, limits)
        package._check_members()
        package._check_arrays()
        package._check_builds()
        return package

    def save(self, path: str | os.PathLike) -> None:
        """Write the file, whole or not at all."""
        with atomic_write(path) as temporary:
            shutil.copyfile(self.path, temporary)

    # What is in it ------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.manifest["name"]

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, shapes and dtypes, in the order of the model's own."""
        return tuple(spec_from_json(s) for s in self.manifest["inputs"])

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The same of what comes out; a dimension that depends on data is None."""
        return tuple(spec_from_json(s) for s in self.manifest["outputs"])

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes: of the whole file, and of each part as it lies in the file; `library` is those of all builds.

        `unpacked` are those of the stored weights in memory, before kernels' own form is made of them.
        """
        found: dict[str, int] = {}
        for name, member in self._members.items():
            part = "library" if archive.LIBRARY.fullmatch(name) else name.split(".")[0]
            found[part] = found.get(part, 0) + member.size
        unpacked = sum(arrays.nbytes(row) for row in self.manifest["weights"])
        return {"package": self.path.stat().st_size, **found, "unpacked": unpacked}

    @property
    def target(self) -> str:
        """The name of what it is compiled for."""
        return self.manifest["target"].get("name", "another target")

    @property
    def library_bytes(self) -> int:
        """The size of the library as it lies in the file; of a package of several builds, of the last one's."""
        return self._members[self._library].size

    @property
    def builds(self) -> tuple[Package, ...]:
        """A package for each build, on the same file, the most demanding first; a package of one build is its own."""
        if "builds" not in self.manifest:
            return (self,)
        contents = manifest.of_builds(self.manifest)
        return tuple(Package(self.path, of, self._members, self._limits, self._owned) for of in contents)

    @property
    def _library(self) -> str:
        return self.manifest["entry"].get("library", archive.library())

    def weights(self) -> list[np.ndarray]:
        """The stored weights in order, on a private mapping of the file: writing to them changes no file.

        Those that are stored coded are unpacked, each time anew, into memory of their own. Raises PackageError when
        they do not hold what the manifest says, MissingDependencyError without the library that unpacks them.
        """
        member = self._members["weights.bin"]
        with open(self.path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        whole = np.frombuffer(mapping, np.uint8)[member.offset : member.offset + member.size]
        rows = self.manifest["weights"]
        taken = [rows[i] for i in self.manifest["entry"].get("weights", range(len(rows)))]
        try:
            return arrays.read(whole, taken, runtime.aligned)
        except ValueError as error:
            raise PackageError(f"{self.path}: {error}") from error

    def golden(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Example inputs and the outputs that the compiler saw for them."""
        index = self.manifest["golden"]
        whole = np.frombuffer(self._unpack("golden.bin.xz", self._limits.golden), np.uint8)
        try:
            inputs, outputs = (
                {r["name"]: arrays.view(whole, r).copy() for r in index[k]} for k in ("inputs", "outputs")
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError(f"{self.path}: golden.bin does not hold what the manifest says") from error
        return inputs, outputs

    @contextmanager
    def library(self) -> Iterator[Path]:
        """The library as a file in a private folder, removed on leaving: code once loaded needs its file no more.

        Ask `refusal` before loading it.
        """
        code = self._unpack(self._library, self._limits.library)
        with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
            # A name of its own: on a board, a second upload under one name would overwrite code that is loaded.
            path = Path(folder, f"{Path(folder).name}.so")
            path.write_bytes(code)
            yield path

    # Whether it may run -------------------------------------------------------------------------------------------

    def pick(self, machine: dict | None = None, build: str | None = None) -> Package:
        """The first of `builds` that a machine (this one, or one by its `cpu.describe()`) can run; or `build`, by name.

        Raises PackageError when it can run none, naming what it lacks for the last, the least demanding; UsageError
        when there is no build of that name.
        """
        builds = self.builds
        if build is not None:
            names = [b.target for b in builds]
            builds = tuple(b for b in builds if b.target == build)
            if not builds:
                near = did_you_mean(build, names) or f"; it has {', '.join(names)}"
                raise UsageError(f"{self.name} has no build '{build[:80]}'{near}")
        for candidate in builds:
            if not (reason := candidate.refusal(machine)):
                return candidate
        advice = "Compile it for that device" if machine else "Compile it again with --target native"
        raise PackageError(f"{reason}. {advice}")

    def refusal(self, machine: dict | None = None) -> str:
        """Why a machine (this one, or one by its `cpu.describe()`) cannot run this build; empty when it can."""
        needs, target = self.manifest["needs"], self.target
        arch = machine["architecture"] if machine else cpu.architecture()
        what = "the device" if machine else "this machine"
        if needs["arch"] != arch:
            return f"{self.name} is for {needs['arch']} ({target}); {what} is {arch}"
        lacking = (
            sorted(set(needs["features"]) - set(machine["features"])) if machine else cpu.missing(needs["features"])
        )
        if lacking:
            return f"{self.name} is compiled for {target}; {what} lacks {', '.join(lacking)}"
        if needs["gpu"] and not machine and not runtime.CUDA_DRIVER.exists():
            return f"{self.name} needs a CUDA device ({needs['gpu']}, target {target}); none was found here"
        return ""

    def check_hashes(self) -> list[tuple[str, bool]]:
        """For each member, whether its SHA-256 is what the manifest says."""
        wanted = self.manifest["members"]
        return [
            (name, self._sha256(name) == wanted[name]["sha256"]) for name in sorted(self._members) if name in wanted
        ]

    def verify(
        self, threads: int | None = None, hashes_only: bool = False, device: Device | None = None
    ) -> Verification:
        """Check every hash, then run the golden inputs on this machine and compare outputs within the tolerance.

        Of several builds every one that can run is run. `device` (see `tvmcompress.device`) runs them instead.

        What does not hold is a row of the result. Raises PackageError when the package cannot run there at all.
        """
        checks = [
            Check(name, ok, "" if ok else "its SHA-256 is not the manifest's") for name, ok in self.check_hashes()
        ]
        if hashes_only or not all(check.ok for check in checks):
            return Verification(tuple(checks))
        machine = remote.machine(device)
        self.pick(machine)
        builds = self.builds
        refused = {build.target: why for build in builds if (why := build.refusal(machine))}
        for build in builds:
            if build.target not in refused:
                checks += build._check_outputs(f" of {build.target}" if len(builds) > 1 else "", device, threads)
        return Verification(tuple(checks), tuple(refused.values()))

    def _check_outputs(self, of: str, device: Device | None, threads: int | None) -> list[Check]:
        inputs, wanted = self.golden()
        results = remote.open_program(self, device, threads)([inputs[spec.name] for spec in self.inputs])
        tolerance, names = self.manifest["tolerance"], [spec.name for spec in self.outputs]
        return [golden.compare(f"output '{n}'{of}", got, wanted[n], tolerance) for n, got in zip(names, results)]

    def _check_builds(self) -> None:
        for build in self.builds:
            if build._library not in filter(archive.LIBRARY.fullmatch, self._members):
                raise PackageError(f"{self.path}: not a whole package; missing {build._library}")
            stored = range(len(self.manifest["weights"]))
            if any(not isinstance(i, int) or i not in stored for i in build.manifest["entry"].get("weights", [])):
                raise PackageError(f"{self.path}: '{build.target}' takes weights that are not there")
        for name in filter(archive.LIBRARY.fullmatch, self._members):
            self._check_hash(name)

    def _check_members(self) -> None:
        wanted = self.manifest["members"]
        for name, member in self._members.items():
            if name == "manifest.json":
                continue
            row = wanted.get(name)
            if not isinstance(row, dict) or not {"size", "sha256", "unpacked"} <= row.keys():
                raise PackageError(f"{self.path}: the manifest does not describe '{name}'")
            if row["size"] != member.size:
                raise PackageError(f"{self.path}: '{name}' has {member.size} bytes, the manifest says {row['size']}")

    def _check_arrays(self) -> None:
        size, end, unpacked = self._members["weights.bin"].size, 0, 0
        for row in self.manifest["weights"]:
            try:
                inside = arrays.nbytes(row)
            except (TypeError, ValueError, AttributeError) as error:
                raise PackageError(f"{self.path}: weight '{row['name']}' has no valid dtype and shape") from error
            try:
                stored = arrays.stored(row)
            except ValueError as error:
                raise PackageError(f"{self.path}: weight '{row['name']}' cannot be unpacked: {error}") from error
            if row["offset"] < end or row["offset"] % arrays.ALIGNMENT or row["offset"] + stored > size:
                raise PackageError(f"{self.path}: weight '{row['name']}' does not lie where the manifest says")
            end = row["offset"] + stored
            unpacked += inside if "coding" in row else 0
        if unpacked > self._limits.weights:
            limit = self._limits.weights
            raise PackageError(f"{self.path}: its weights unpack to {unpacked:,} bytes, beyond the limit of {limit:,}")

    def _check_hash(self, name: str) -> None:
        if self._sha256(name) != self.manifest["members"][name]["sha256"]:
            raise PackageError(f"{self.path}: '{name}' is damaged (its SHA-256 is not the manifest's)")

    def _sha256(self, name: str) -> str:
        member, digest = self._members[name], hashlib.sha256()
        with open(self.path, "rb") as file:
            file.seek(member.offset)
            left = member.size
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()

    def _unpack(self, name: str, limit: int) -> bytes:
        """A member's contents, never more than the manifest says and the limit allows."""
        self._check_hash(name)
        size = self.manifest["members"][name]["unpacked"]
        if not isinstance(size, int) or size > limit:
            raise PackageError(f"{self.path}: '{name}' unpacks to {size:,} bytes, beyond the limit of {limit:,}")
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
        try:
            data = unpacker.decompress(_read(self.path, self._members[name]), max_length=size + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise PackageError(f"{self.path}: '{name}' cannot be unpacked: {error}") from error
        if len(data) != size:
            raise PackageError(f"{self.path}: '{name}' does not unpack to the {size:,} bytes that the manifest says")
        return data


def _read(path: str | os.PathLike, member: archive.Member) -> bytes:
    with open(path, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
