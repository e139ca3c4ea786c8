"""The tables and pictures of the documentation are those of their records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ast_fast_kernels.errors import InputError
from bench import board, page, plot, table
from bench.table import Column


def make_case(
    name: str, threads: int, micros: float, group: str = "fbank-ast", **extra: Any
) -> Any:
    parameters = {"waveforms": 64, "threads": threads, "dtype": extra.pop("dtype", "float32")}
    return {
        "group": group,
        "params": parameters | ({"name": name} if name else {"preset": "ast"}),
        "extra_info": {"clips_per_second": 1e6 / micros, **extra},
    }


RECORD: dict[str, Any] = {
    "benchmarks": [
        make_case("slow", 1, 9000.0, ours_is_faster_by=90.04),
        make_case("fast", 1, 400.0, ours_is_faster_by=4.0),
        make_case("fast", 2, 210.0, ours_is_faster_by=4.2),
        make_case("fast", 1, 300.0, ours_is_faster_by=3.0, dtype="int16"),
        make_case("", 1, 100.0, share_of_floor=0.513),
        make_case("", 2, 50.0, share_of_floor=0.48),
        make_case("library", 1, 700.0, "fbank-whisper", ours_is_faster_by=7.0),
        make_case("", 1, 120.0, "fbank-whisper", share_of_floor=0.4),
        {"group": "attention", "params": {}, "extra_info": {}},
    ]
}
CASES = table.read_cases(RECORD)


@pytest.mark.parametrize("path", page.PAGES)
def test_a_page_is_what_its_records_give(path: str) -> None:
    committed = (table.ROOT / path).read_text(encoding="utf-8")
    assert page.PAGES[path]() == committed, "python -m bench.page"


def test_the_picture_is_what_its_record_gives(tmp_path: Path) -> None:
    plot.draw(table.read_record(page.RECORDS["fbank"]), tmp_path / "fbank.svg")
    committed = table.ROOT / "docs" / "fbank.svg"
    assert (tmp_path / "fbank.svg").read_bytes() == committed.read_bytes()


def test_readme_states_the_figures_of_the_records() -> None:
    readme = " ".join((table.ROOT / "README.md").read_text(encoding="utf-8").split())
    headlines = page.headlines()
    for of, figure in headlines.items():
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}", readme), of
    opening = readme.partition("![")[0]
    for of in ("FBANK", "ESC-50", "minutes"):
        assert headlines[of].partition(" ±")[0] in opening, of
    assert f"{headlines['torchaudio'].removesuffix(' ×')} times as fast as torchaudio" in opening


def test_readme_has_the_table_of_projects() -> None:
    assert page.readme_table() in (table.ROOT / "README.md").read_text(encoding="utf-8")


def test_sections_of_projects_and_half_precision_come_with_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in page.RECORDS if name.startswith(("projects", "half", "fbank-"))]:
        monkeypatch.delitem(page.RECORDS, name)
    without = page.benchmarks()
    cases = []
    for group in ("dither", "kaldi-functions", "dither-lhotse", "gradient", "fft-lengths",
                  "one-clip", "int16", "compat-transformers", "compat-lhotse",
                  "compat-speechbrain"):  # fmt: skip
        parameters = {"threads": 2, "waveforms": 1, "function": "mfcc", "length": 1102}
        parameters |= {"seconds": 5, "preset": "ast", "recipe": "default"}
        parameters["name"] = "ASTFeatureExtractor"
        extra = {"backend": "numba", "microseconds_per_clip": {"ours": 1234.5, "theirs": 5000.0}}
        extra |= {"ours_is_faster_by": {"theirs": 4.05} if group != "int16" else {"other": 1.0}}
        cases.append({"name": "a", "group": group, "params": parameters, "extra_info": extra})
    for threads, ratio in ((1, 4.05), (2, 3.0)):
        extra = {"project": "wenet", "library": "torchaudio", "calls": "kaldi.fbank()"}
        extra |= {"largest_difference": 0.0012, "ours_is_faster_by": {"torchaudio": ratio}}
        extra["microseconds_per_clip"] = {"ours": 1234.5, "torchaudio": 5000.0}
        cases.append({"name": "a", "group": "projects", "params": {"threads": threads},
                      "extra_info": extra})  # fmt: skip
    for passes, ratio in (("forward", 1.5), ("both", 2.25)):
        extra = {"faster_than_sdpa_by": ratio, "backend": "numba", "milliseconds": {"auto": 7.75}}
        parameters = {"threads": 2, "shape": [1, 1212, 12, 64], "dtype": "torch.bfloat16"}
        case = {"name": "a", "group": f"attention-half-{passes}", "params": parameters}
        cases.append({**case, "extra_info": extra})
    info = table.read_record(page.RECORDS["training"])["machine_info"]
    path = tmp_path / "2026-11-29-a.json"
    path.write_text(json.dumps({"benchmarks": [*RECORD["benchmarks"], *cases],
                                "machine_info": info}))  # fmt: skip
    for name in ("projects", "half", "fbank-other"):
        monkeypatch.setitem(page.RECORDS, name, str(path))
    with_them = page.benchmarks()
    for line in (
        "| clips | threads | backend | µs a clip | theirs |\n|---|---|---|---|---|\n"
        "| 1 | 2 | numba | 1,234 | 4.0 × |",
        "| mfcc | 2 | numba | 1,234 | 4.0 × |",
        "| wenet | torchaudio | `kaldi.fbank()` | 1,234 | 4.0 × | 1,234 | 3.0 × | 1e-03 |",
        "| 1102 | 1 | 2 | numba | 1,234 | 4.0 × |",
        "| ast | 1 | 2 | numba | 1,234 | 1.0 × |",
        "| 1, 12, 1212, 64 | bfloat16 | numba | 7.8 | 1.50 × | 2.25 × |",
        "### On the EPYC (Zen 5) with AVX-512\n\nThe version of 2026-11-29",
    ):
        assert line in with_them
    for line in without.splitlines():
        assert line in with_them


def forward_case(clips: int, threads: int, precision: str, seconds: dict[str, float]) -> Any:
    gains = {name: took / seconds["ours"] for name, took in seconds.items()}
    extra = {"seconds": seconds, "rounds": 4 - clips, "ours_is_faster_by": gains, "error": 1e-6}
    return {
        "name": f"test_forward[{threads}-threads-{clips}-clips-{precision}]",
        "group": "pretrained",
        "params": {"clips": clips, "threads": threads, "precision": precision},
        "extra_info": extra | {"gflops": 70.4, "every_token_at_best_rate": 3.321},
    }


PRETRAINED = [
    forward_case(3, 2, "float32", {"transformers": 9.0, "onnxruntime": 9.9, "ours": 6.0}),
    forward_case(
        1, 2, "bfloat16", {"transformers": 24.5, "transformers in float32": 4.5, "ours": 3.6}
    ),
    forward_case(1, 2, "float32", {"transformers": 4.5, "onnxruntime": 5.0, "ours": 3.6}),
    {
        "name": "test_export[2-threads]",
        "group": "pretrained-export",
        "params": {"threads": 2},
        "extra_info": {
            "seconds": {"transformers": 4.5, "float32": 5.0, "int8": 2.5},
            "rounds": 3,
            "faster_than_transformers_by": {"float32": 0.9, "int8": 1.8},
            "error": {"float32": 2e-6, "int8": 0.0123},
            "megabytes": {"float32": 347.4, "int8": 90.6},
        },
    },
    {
        "name": "test_extractor[2-threads]",
        "group": "pretrained-extractor",
        "params": {"threads": 2},
        "extra_info": {
            "milliseconds": {"transformers": 62.04, "ours": 1.375},
            "ours_is_faster_by": {"transformers": 45.1},
            "largest_difference": 6.5e-6,
        },
    },
]


class Section:
    """Makes the page with a section and without it."""

    def __init__(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._name, self._monkeypatch = name, monkeypatch
        self._path = tmp_path / "2026-11-30-a.json"

    def without(self) -> str:
        self._monkeypatch.delitem(page.RECORDS, self._name, raising=False)
        return page.benchmarks()

    def of(self, benchmarks: list[Any]) -> str:
        """Return the page with the section of a record of these cases."""
        info = table.read_record(page.RECORDS["training"])["machine_info"]
        self._path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": info}))
        self._monkeypatch.setitem(page.RECORDS, self._name, str(self._path))
        return page.benchmarks()


def check_section(section: Section, title: str, benchmarks: list[Any], parts: list[str]) -> None:
    """Check that it comes with its record, whole, and that the last group is asked for."""
    without = section.without()
    assert title not in without
    with_it = section.of(benchmarks)
    for rows in (title, *parts, "Measured on the EPYC (Zen 5) with AVX-512"):
        assert rows in with_it
    for line in without.splitlines():
        assert line in with_it
    missing = benchmarks[-1]["group"]
    with pytest.raises(InputError, match=f"must have cases of {missing}, got none"):
        section.of(benchmarks[:-1])


def test_the_section_of_a_pretrained_model_comes_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        "| ours, s | than transformers | than transformers in float32 | than onnxruntime |",
        "| float32 | 1 | 2 | 3 | 4.50 | – | 5.00 | 3.60 | 1.25 × | – | 1.39 × | 70 | 3.32 |\n"
        "| float32 | 3 | 2 | 1 | 9.00 | – | 9.90 | 6.00 | 1.50 × | – | 1.65 × | 70 | 3.32 |\n"
        "| bfloat16 | 1 | 2 | 3 | 24.50 | 4.50 | – | 3.60 | 6.81 × | 1.25 × | – | 70 | 3.32 |\n",
        "| float32 | 347 | 2 | 3 | 4.50 | 5.00 | 0.90 × | 2e-06 |\n"
        "| int8 | 91 | 2 | 3 | 4.50 | 2.50 | 1.80 × | 1e-02 |\n",
        "| 2 | 62.0 | 1.38 | 45.1 × | 6e-06 |\n",
    ]
    section = Section("pretrained", tmp_path, monkeypatch)
    check_section(section, "## A pre-trained AST\n", PRETRAINED, parts)


def decision_case(folder: str, threads: int, theirs: float, ours: float) -> Any:
    extra = {"rounds": 7, "milliseconds": {"transformers": theirs, "ours": ours}}
    extra |= {"ours_is_faster_by": {"transformers": theirs / ours}}
    return {
        "name": f"test_decision[{folder}-{threads}-threads]",
        "group": "streaming",
        "params": {"folder": folder, "threads": threads},
        "extra_info": extra | {"milliseconds_of_a_chunk": 0.314, "busy_at_one_a_second": 0.04},
    }


STREAMING = [
    decision_case("base-10s", 2, 4500.0, 3600.0),
    decision_case("our-default-5s", 2, 87.2, 40.1),
    decision_case("our-default-5s", 1, 75.9, 38.1),
    {
        "name": "test_batch[2-threads-our-default-5s]",
        "group": "batches",
        "params": {"folder": "our-default-5s", "threads": 2},
        "extra_info": {
            "clips_per_second": {"1": 40.04, "8": 57.12},
            "faster_than_one_at_a_time": {"1": 1.0, "8": 1.427},
        },
    },
]


def test_the_section_of_a_stream_comes_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        "| default size, 5 s | 1 | 7 | 76 | 38 | 1.99 × | 0.31 |\n"
        "| default size, 5 s | 2 | 7 | 87 | 40 | 2.17 × | 0.31 |\n"
        "| AST-base, 10 s | 2 | 7 | 4,500 | 3,600 | 1.25 × | 0.31 |\n",
        "| threads | 1 | 8 | gain of 8 |\n|---|---|---|---|\n| 2 | 40.0 | 57.1 | 1.43 × |\n",
    ]
    section = Section("streaming", tmp_path, monkeypatch)
    check_section(section, "## A model on a stream\n", STREAMING, parts)


def test_a_machine_is_named_by_its_maker_vectors_and_caches() -> None:
    cpu = {"brand_raw": "AMD EPYC", "vendor_id_raw": "AuthenticAMD", "family": 23, "model": 1}
    cpu |= {"flags": ["avx2"], "l1_data_cache_size": 2 * 32 * 1024, "l2_cache_size": 2**20}
    info = {"cores": 2, "cpu": cpu}
    name = "the EPYC (Zen 1) with AVX2"
    row = [name, "AMD EPYC", "23, 1", "2", "AVX2", "8", "32 KiB", "512 KiB"]
    assert table.machine_row({"machine_info": info}) == [*row, "–"]
    info |= {"float32_lanes": 8, "caches": {"L1d": 2**15, "L2": 2**19, "L3": 2**23}}
    assert table.machine_row({"machine_info": info}) == [*row, "8,192 KiB"]


def test_a_run_of_several_jobs_takes_as_long_as_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "FOLDER", tmp_path)
    (tmp_path / "a").mkdir()
    for folds, end in (("1-2", "10:42:10"), ("3", "10:25:00")):
        job = {"started": "2026-11-28T10:00:00+00:00", "ended": f"2026-11-28T{end}+00:00"}
        (tmp_path / "a" / f"run-folds-{folds}.json").write_text(json.dumps(job))
    assert board.minutes("a") == 42


def test_speeds_are_ours_first_then_from_fast_to_slow() -> None:
    assert table.speed_table(CASES) == [
        "| µs a clip | 64 clips, 1 thread | 64 clips, 2 threads |",
        "|---|---|---|",
        "| **ours** (`numba`) | 100 | 50 |",
        "| share of the floor | 51 % | 48 % |",
        "| fast | 400 (4.0 ×) | 210 (4.2 ×) |",
        "| fast, int16 | 300 (3.0 ×) | – |",
        "| slow | 9,000 (90.0 ×) | – |",
    ]


def test_libraries_stand_with_their_presets() -> None:
    assert table.library_table(CASES) == [
        "| preset | library | 64 clips, 1 thread |",
        "|---|---|---|",
        "| `whisper` | library | 7.0 × |",
    ]


def test_a_record_of_one_convention_has_one_table() -> None:
    cases = [case for case in CASES if case.preset == "ast"]
    assert table.library_table(cases) == []


def test_a_record_from_before_there_were_presets_is_read_as_the_default() -> None:
    extra = {"clips_per_second": 10.0, "ours_is_faster_by": 2.0}
    parameters = {"waveforms": 1, "threads": 2, "name": "reference-batched"}
    old = {"benchmarks": [{"group": "fbank", "params": parameters, "extra_info": extra}]}
    (case,) = table.read_cases(old)
    assert case == table.Case("ast", "reference-batched", "float32", Column(1, 2), 1e5, 2.0, None)


@pytest.mark.parametrize(
    ("clips", "threads", "words"), [(1, 1, "1 clip, 1 thread"), (64, 2, "64 clips, 2 threads")]
)
def test_columns_say_clips_and_threads(clips: int, threads: int, words: str) -> None:
    assert str(Column(clips, threads)) == words


def test_plot_names_every_candidate_but_our_own_oracle(tmp_path: Path) -> None:
    oracle = make_case("reference-batched", 2, 900.0, ours_is_faster_by=9.0)
    torchaudio = make_case("torchaudio-kaldi.fbank", 2, 500.0, ours_is_faster_by=10.0)
    plot.draw({"benchmarks": [*RECORD["benchmarks"], oracle, torchaudio]}, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("ast-fast", "fast", "torchaudio", "20,000", "4,762", "2,000"):
        assert f">{text}</text>" in svg
    assert "library" not in svg
    assert "reference" not in svg
