"""What a record says of its machine: vectors, caches, and a name of both.

python -m bench.machine   prints the name of this machine, for records in bench/history/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ast_fast_kernels._cpu.caches import data_caches

VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512"}
BFLOAT16 = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
"""Vector units, and those that multiply bfloat16, by the processor's flag for each."""

GENERATIONS = {(23, 1): "Zen 1", (23, 49): "Zen 2", (25, 1): "Zen 3", (25, 17): "Zen 4",
               (26, 2): "Zen 5"}  # fmt: skip
"""Of AMD's server processors by family and model, which all call themselves EPYC."""


def describe(cpu: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that kernels depend on.

    Args:
        cpu: What pytest-benchmark knows of the processor; its `flags` are read.
    Returns:
        caches: bytes by level (`L1d`, `L2`, `L3`) of the caches that one core uses; float32_lanes:
        of the widest vectors; bfloat16: flags of the units that multiply it.
    """
    from ast_fast_kernels._cpu.simd import host_lanes  # loads Numba, which tables do without

    flags = set(cpu.get("flags", ()))
    return {
        "caches": {_name(level): size for level, size in sorted(data_caches().items())},
        "float32_lanes": host_lanes(),
        "bfloat16": [flag for flag in BFLOAT16 if flag in flags],
    }


def _name(level: int) -> str:
    return f"L{level}" + "d" * (level == 1)


def generation(cpu: Mapping[str, Any]) -> str:
    """Return the generation of an AMD processor; empty if it is not known."""
    if cpu.get("vendor_id_raw") != "AuthenticAMD":
        return ""
    return GENERATIONS.get((cpu.get("family", 0), cpu.get("model", 0)), "")


def maker(cpu: Mapping[str, Any]) -> str:
    """Return the processor's line: Xeon, EPYC, or its own name."""
    brand = str(cpu["brand_raw"])
    return "Xeon" if "Intel" in brand and "Xeon" in brand else brand.removeprefix("AMD ")


def vectors(cpu: Mapping[str, Any]) -> str:
    """Return the name of the processor's widest vectors."""
    names = [words for flag, words in VECTORS.items() if flag in cpu.get("flags", ())]
    return names[-1] if names else "SSE"


def file_name(cpu: Mapping[str, Any], facts: Mapping[str, Any], cores: int) -> str:
    """Return a machine's part of a record's name, such as epyc-avx2-l1d32-2core."""
    words = [maker(cpu).split()[0], vectors(cpu).replace("-", "")]
    if "L1d" in facts["caches"]:
        words.append(f"l1d{facts['caches']['L1d'] // 1024}")
    return "-".join([*words, f"{cores}core"]).lower()


def main() -> None:
    from cpuinfo import get_cpu_info

    cpu = get_cpu_info()
    print(file_name(cpu, describe(cpu), os.cpu_count() or 1))


if __name__ == "__main__":
    main()
