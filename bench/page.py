"""Write docs/benchmarks.md and docs/board.md: every table of figures, each made from its record.

python -m bench.page

A test makes both pages again and compares. After `make record`, name the new record in `RECORDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ast_fast_kernels.errors import InputError
from bench import board, page_extract, page_pretrained, page_streaming, records
from bench.records import group_of
from bench.table import (
    MACHINE,
    ROOT,
    Cases,
    header,
    library_table,
    line,
    machine,
    machine_row,
    read_cases,
    read_record,
    times,
)
from bench.table import speed_table as fbank_table

HISTORY = "bench/history"
RECORDS = {
    "fbank": f"{HISTORY}/2026-11-29-drop-ins-epyc-avx2-l1d32-2core.json",
    "fbank-xeon": f"{HISTORY}/2026-11-24-xeon-avx512-2core.json",
    "projects": f"{HISTORY}/2026-11-29-drop-ins-epyc-avx2-l1d32-2core.json",
    "files": f"{HISTORY}/2026-11-30-files-epyc-avx2-l1d32-2core.json",
    "pretrained": f"{HISTORY}/2026-11-30-pretrained-epyc-avx2-l1d32-2core.json",
    "streaming": f"{HISTORY}/2026-11-30-pretrained-epyc-avx2-l1d32-2core.json",
    "attention-avx512": f"{HISTORY}/2026-11-27-attention-epyc-avx512-2core.json",
    "attention-avx2": f"{HISTORY}/2026-11-27-attention-epyc-avx2-2core.json",
    "attention-l1d32": f"{HISTORY}/2026-11-29-attention-epyc-avx2-l1d32-2core.json",
    "half": f"{HISTORY}/2026-11-29-attention-epyc-avx2-l1d32-2core.json",
    "sizes": f"{HISTORY}/2026-11-27-training-epyc-avx512-2core.json",
    "stem": f"{HISTORY}/2026-11-28-stem-epyc-avx512-2core.json",
    "training": f"{HISTORY}/2026-11-28-features-epyc-avx512-2core.json",
    "amx": f"{HISTORY}/2026-11-25-step-xeon-amx-2core.json",
}
"""The record of each part of the page.

`projects` (bench_projects.py), `half` (test_half_precision), `pretrained` (bench_pretrained.py),
`streaming` (bench_streaming.py), `extract` (bench_extract.py), `corpus` (corpus_rates.py) and
`fbank-…` (the filterbank on another machine) have sections of their own where they are named.
"""


def link(name: str, words: str = "record") -> str:
    """Return a link from a page in docs/ to a record."""
    return f"[{words}](../{RECORDS[name]})"


def on(name: str) -> str:
    """Name the machine of a record, and link to it."""
    return f"{machine(read_record(RECORDS[name]))} ({link(name)})"


def machines_table() -> str:
    rows = [machine_row(read_record(path)) for path in RECORDS.values()]
    rows.sort(key=lambda row: row.count("–"), reverse=True)  # of one machine, the record that knows
    known = {row[0]: row for row in rows}
    return "\n".join([*header(MACHINE), *(line(known[name]) for name in sorted(known))])


def has(name: str, group: str) -> bool:
    """Return whether a record has cases of a group."""
    return any(group_of(case) == group for case in read_record(RECORDS[name])["benchmarks"])


def cases(name: str, group: str) -> list[dict[str, Any]]:
    """Return a record's cases of one group, each with its parameters and measurements."""
    every = read_record(RECORDS[name])["benchmarks"]
    found = [case for case in every if group_of(case) == group]
    if not found:
        raise InputError(f"{RECORDS[name]} must have cases of {group}, got none")
    about = {"record": RECORDS[name], "group": group}
    return [
        {**case["params"], **case["extra_info"], "precision": _precision(case), **about}
        for case in found
    ]


def _precision(case: dict[str, Any]) -> str:
    return "bfloat16" if "bfloat16" in case["name"] else "float32"


def percent(share: float) -> str:
    """Return a share of 1 in per cent, with one digit."""
    return f"{100 * share:.1f} %"


def one(found: list[dict[str, Any]], **which: object) -> dict[str, Any]:
    """Return the one case with these parameters."""
    fitting = [case for case in found if all(case.get(key) == which[key] for key in which)]
    if len(fitting) != 1:
        words = ", ".join(f"{key} {value}" for key, value in which.items())
        raise InputError(
            f"{found[0]['record']} must have one case of {found[0]['group']} with {words}, "
            f"got {len(fitting)}"
        )
    return fitting[0]


def fbank_tables(name: str = "fbank") -> str:
    read = read_cases(read_record(RECORDS[name]))
    return "\n\n".join("\n".join(rows) for rows in (fbank_table(read), library_table(read)))


def other_machines() -> str:
    """Return the filterbank's tables of other machines."""
    return "".join(
        f"\n### On {machine(read_record(RECORDS[name]))}\n\nThe version of {_date(name)} "
        f"({link(name)}).\n\n{fbank_tables(name)}\n"
        for name in RECORDS
        if name.startswith("fbank-")
    )


def _date(name: str) -> str:
    return RECORDS[name].rpartition("/")[2][:10]


def projects() -> str:
    """Return the section of bench_projects.py."""
    if "projects" not in RECORDS:
        return ""
    parts = "\n".join(
        f"{words}\n\n{turns_table(group, titles)}\n"
        for words, group, titles in (
            ("Kaldi's noise of factor 1, in batches and clip by clip:", "dither", CLIPS),
            ("`kaldi.mfcc` and `kaldi.spectrogram` with their defaults, clip by clip:",
             "kaldi-functions", {"function": "function"}),
            ("transformers' extractors, one clip of 10 s, given as an array, returned as a tensor:",
             "compat-transformers", {"name": "extractor"}),
            ("lhotse's `Fbank`, `extract` of one clip and `extract_batch` of 16:",
             "compat-lhotse", CLIPS),
            ("speechbrain's `Fbank`:", "compat-speechbrain", {"recipe": "arguments", **CLIPS}),
            ("lhotse's noise, drawn once for a waveform, 16 clips:", "dither-lhotse", {}),
            ("Forward and backward of float32 waveforms:", "gradient", CLIPS),
            ("Other lengths of the FFT, windows of 44.1 and 48 kHz:", "fft-lengths",
             {"length": "FFT length", **CLIPS}),
            ("One clip again and again, which stays in the caches:", "one-clip",
             {"seconds": "seconds"}),
            ("int16 samples beside float32:", "int16", {"preset": "preset", **CLIPS}),
        )
    )  # fmt: skip
    return f"""
### As projects use it

What a project gains when its import is swapped, with the arguments of its own code, a clip of 5 s a
call: microseconds of ours, how many times as fast it is, and how far its features are from the
library's at most. `kaldi.fbank` with dither adds torchaudio's own noise. transformers pads a clip
to 10 s (AST, CLAP) or 30 s (Whisper). Measured on {on("projects")}.

{project_table()}

The next tables have microseconds a clip of ours, by the backend that `auto` chose, and how many
times as fast it is as each other candidate; all take turns.

{parts}"""


def project_table() -> str:
    """Return the table of projects, one thread beside two."""
    rows = header(["project", "library", "calls", "µs, 1 thread", "1 thread", "µs, 2 threads",
                   "2 threads", "difference"])  # fmt: skip
    for pair in _project_pairs():
        words = [pair[0]["project"], pair[0]["library"], f"`{pair[0]['calls']}`"]
        for case in pair:
            words += [f"{case['microseconds_per_clip']['ours']:,.0f}", _gain(case)]
        rows.append(line([*words, f"{max(case['largest_difference'] for case in pair):.0e}"]))
    return "\n".join(rows)


def readme_table() -> str:
    """Return README's first table."""
    rows = header(["you use", "by", "µs a clip, theirs → ours", "1 thread", "2 threads"])
    for pair in _project_pairs():
        took = pair[0]["microseconds_per_clip"]
        library = pair[0]["library"]
        micros = f"{took[library]:,.0f} → {took['ours']:,.0f}"
        rows.append(line([pair[0]["project"], library, micros, *map(_gain, pair)]))
    return "\n".join(rows)


def _project_pairs() -> list[list[dict[str, Any]]]:
    """Return each project's cases of one thread and two."""
    found = cases("projects", "projects")
    names = dict.fromkeys(case["project"] for case in found)
    return [[one(found, project=name, threads=threads) for threads in (1, 2)] for name in names]


def _gain(case: dict[str, Any]) -> str:
    return times(case["ours_is_faster_by"][case["library"]], 1)


CLIPS = {"waveforms": "clips"}


def turns_table(group: str, titles: dict[str, str]) -> str:
    """Return a table of cases of bench_projects.py; `titles` are those of their parameters."""
    found = cases("projects", group)
    others = list(dict.fromkeys(name for case in found for name in case["ours_is_faster_by"]))
    rows = header([*titles.values(), "threads", "backend", "µs a clip", *others])
    for case in sorted(found, key=lambda case: case["threads"]):
        given = [str(case[name]) for name in (*titles, "threads")]
        ratios = [times(case["ours_is_faster_by"].get(name), 1) for name in others]
        micros = f"{case['microseconds_per_clip']['ours']:,.0f}"
        rows.append(line([*given, case["backend"], micros, *ratios]))
    return "\n".join(rows)


FILES = {
    "wav-16000": "WAV, 16 kHz",
    "wav-44100": "WAV, 44.1 kHz",
    "wav-44100-stereo": "WAV, 44.1 kHz, stereo",
    "flac-44100": "FLAC, 44.1 kHz",
    "ogg-44100": "OGG, 44.1 kHz",
    "mp3-44100": "MP3, 44.1 kHz",
}


def files_table() -> str:
    """Return the table of bench_files.py."""
    rows = header(["files", "µs a clip, theirs", "ours", "1 thread", "ours, 2 threads",
                   "2 threads beside 1"])  # fmt: skip
    found = cases("files", "files")
    for kind, words in FILES.items():
        took = one(found, kind=kind)["microseconds_per_clip"]
        theirs, ours, pair = (took[name] for name in (
            "soundfile, soxr and torchaudio", "ours", "ours on 2 threads"))  # fmt: skip
        micros = [f"{value:,.0f}" for value in (theirs, ours, pair)]
        rows.append(line([words, *micros[:2], times(theirs / ours, 1), micros[2],
                          times(ours / pair)]))  # fmt: skip
    return "\n".join(rows)


def resample_table() -> str:
    """Return the table of bench_resample.py: one thread, then two."""
    titles = ("hq", "hq int16", "hq stereo int16", "fast")
    rows = header(["Hz", "threads", "soxr HQ, µs", *titles])
    groups = dict.fromkeys(map(group_of, read_record(RECORDS["files"])["benchmarks"]))
    for group in groups:
        if group.startswith("resample-"):
            for case in sorted(cases("files", group), key=lambda case: case["threads"]):
                words = " → ".join(f"{rate:,}" for rate in case["rates"])
                theirs = f"{case['microseconds']['soxr HQ']:,.0f}"
                ratios = [times(case["faster_than_soxr_by"][name], 1) for name in titles]
                rows.append(line([words, str(case["threads"]), theirs, *ratios]))
    return "\n".join(rows)


def half_table() -> str:
    """Return the section of attention in half precision."""
    if "half" not in RECORDS:
        return ""
    rows = header(["clips, heads, tokens, head_dim", "dtype", "backend", "ms, both", "forward",
                   "both"])  # fmt: skip
    forward = cases("half", "attention-half-forward")
    for case in cases("half", "attention-half-both"):
        batch, tokens, heads, head_dim = case["shape"]
        other = one(forward, shape=case["shape"], dtype=case["dtype"])
        ratios = [times(each["faster_than_sdpa_by"]) for each in (other, case)]
        shape, dtype = f"{batch}, {heads}, {tokens}, {head_dim}", _dtype(case)
        took = f"{case['milliseconds']['auto']:.1f}"
        rows.append(line([shape, dtype, case["backend"], took, *ratios]))
    return f"""
### In half precision

What `auto` chooses against `scaled_dot_product_attention` in the same dtype, two threads. A CPU
without instructions for a dtype emulates it, in torch by far the slowest way.
Measured on {on("half")}.

{chr(10).join(rows)}
"""


def sections(**of: Callable[[Cases, str], str]) -> str:
    """Return the sections of the records that are named, by the names of these."""
    return "".join(
        section(partial(cases, name), on(name)) for name, section in of.items() if name in RECORDS
    )


def _dtype(case: dict[str, Any]) -> str:
    return str(case["dtype"]).removeprefix("torch.")


def attention_table(name: str) -> str:
    groups = {title: cases(name, group) for title, group in ATTENTION.items()}
    rows = header(["clips, heads, tokens, head_dim", *ATTENTION, "GFLOP/s"])
    for case in groups["both"]:
        batch, tokens, heads, head_dim = case["shape"]
        ratios = [
            times(one(found, shape=case["shape"])["faster_than_sdpa_by"])
            for found in groups.values()
        ]
        rows.append(
            line([f"{batch}, {heads}, {tokens}, {head_dim}", *ratios, f"{case['gflops']:.0f}"])
        )
    return "\n".join(rows)


ATTENTION = {
    "forward": "attention-forward",
    "backward": "attention-backward",
    "both": "attention-both",
    "a whole block": "block",
}


def projection_table() -> str:
    name = "attention-avx512"
    rows = header(["rows, width, out", *PROJECTIONS])
    for case in cases(name, "linear-forward"):
        found = [one(cases(name, group), size=case["size"]) for group in PROJECTIONS.values()]
        cells = [f"{one['gflops']:.0f} ({times(one['faster_than_reference_by'])})" for one in found]
        rows.append(line([", ".join(map(str, case["size"])), *cells]))
    return "\n".join(rows)


PROJECTIONS = {
    "`linear`, forward": "linear-forward",
    "both": "linear-both",
    "`linear_gelu`, forward": "linear_gelu-forward",
    "both ": "linear_gelu-both",
}


def stem_table() -> str:
    rows = header(["clips, freq, time, width", "dtype", "pass", "1 thread", "2 threads"])
    for passes, words in (("forward", "forward"), ("both", "forward and backward")):
        found = cases("stem", f"stem-{passes}")
        for case in found:
            if case["threads"] == 1:
                which = {key: case[key] for key in ("shape", "precision")}
                ratios = [
                    times(one(found, threads=threads, **which)["faster_than_reference_by"], 1)
                    for threads in (1, 2)
                ]
                shape = ", ".join(map(str, case["shape"]))
                rows.append(line([shape, case["precision"], words, *ratios]))
    return "\n".join(rows)


def data_path_table() -> str:
    rows = header(["operation", "1 thread", "2 threads"])
    for group in ("mix", "normalise"):
        cells = [
            f"{case['microseconds_per_clip']:.0f} µs ({times(case['faster_than_reference_by'], 1)})"
            for case in (one(cases("training", group), threads=threads) for threads in (1, 2))
        ]
        rows.append(line([f"`{group}`", *cells]))
    return "\n".join(rows)


def step_table() -> str:
    titles = ["machine, precision"]
    for width in (128, 192):
        titles += [f"{width} wide: a step", "with half the patches", "inference"]
    rows = header(titles)
    for name, note in STEPS.items():
        steps = cases(name, "step-model")
        inference = cases(name, "inference") if has(name, "inference") else []
        for precision in ("float32", "bfloat16"):
            if not any(case["precision"] == precision for case in steps):
                continue  # the machine only emulates this precision
            words = f"{machine(read_record(RECORDS[name])).removeprefix('the ')}, {precision}{note}"
            cells = []
            for width in (128, 192):
                case = one(steps, width=width, precision=precision)
                cells += [
                    times(case["ours_faster_than_transformers_by"]),
                    times(case["half_faster_than_transformers_by"]),
                    times(
                        one(inference, width=width, precision=precision)[
                            "ours_faster_than_transformers_by"
                        ]
                        if inference
                        else None
                    ),
                ]
            rows.append(line([f"{words} ({link(name)})", *cells]))
    return "\n".join(rows)


STEPS = {
    "training": "",
    "attention-avx2": "",
    "attention-l1d32": "",
    "amx": ", version of 2026-11-25",
}
"""Records of the table of steps, and a note for their rows."""


def recipe_table() -> str:
    found = cases("training", "step-recipe")
    titles = [f"{t} thread{'s' * (t > 1)}, {p}" for t in (1, 2) for p in ("float32", "bfloat16")]
    rows = header(["recipe", *titles])
    for recipe in ("esc50", "esc10"):
        cells = [
            times(
                one(found, recipe=recipe, threads=threads, precision=precision)[
                    "ours_faster_than_transformers_by"
                ],
                1,
            )
            for threads in (1, 2)
            for precision in ("float32", "bfloat16")
        ]
        rows.append(line([f"`recipes/{recipe}.toml`", *cells]))
    return "\n".join(rows)


def share_table() -> str:
    found = cases("training", "fold-of-recipe")
    stages = ("features", "forward", "backward", "other")
    rows = header(["recipe", "threads", "clips/s", *stages])
    for recipe in ("esc50", "esc10", "minimal"):
        for threads in (1, 2):
            (case,) = (
                case
                for case in found
                if f"{recipe}.toml" in case["recipe"] and case["threads"] == threads
            )
            shares = [percent(case["shares"][stage]) for stage in stages]
            speed = f"{case['training_clips_per_second']:.0f}"
            rows.append(line([f"`recipes/{recipe}.toml`", str(threads), speed, *shares]))
    return "\n".join(rows)


def headlines() -> dict[str, str]:
    """Return the figures that README states, rounded as they are there."""
    fbank = [case for case in read_cases(read_record(RECORDS["fbank"])) if case.dtype == "float32"]
    batch = {case.name: case for case in fbank if str(case.column) == "64 clips, 2 threads"
             and case.preset in ("ast", "kaldi")}  # fmt: skip
    (ours,) = (case for case in fbank if case.preset == "ast" and not case.name
               and str(case.column) == "64 clips, 2 threads")  # fmt: skip
    step = one(cases("training", "step-model"), width=192, precision="float32", threads=2)
    took = one(cases("files", "files"), kind="wav-44100")["microseconds_per_clip"]
    recipe = one(cases("training", "step-recipe"), recipe="esc50", threads=2, precision="float32")
    return {
        "FBANK": f"{ours.microseconds:.0f} µs",
        "torchaudio": f"{batch['torchaudio-kaldi.fbank'].ratio:.1f} ×",
        "asrfront": f"{batch['asrfront'].ratio:.1f} ×",
        "kaldi-native-fbank": f"{batch['kaldi-native-fbank'].ratio:.0f} ×",
        "ESC-50": board.accuracy("2026-11-28-esc50-block"),
        "minutes": f"{board.minutes('2026-11-28-esc50-block')} minutes",
        "files": times(took["soundfile, soxr and torchaudio"] / took["ours"], 1),
        "files' time": f"{took['ours'] / 1000:.1f} ms",
        "step": times(step["ours_faster_than_transformers_by"], 1),
        "recipe's step": times(recipe["ours_faster_than_transformers_by"], 1),
    }


def benchmarks() -> str:
    """Return docs/benchmarks.md."""
    return f"""# Benchmarks

<!-- python -m bench.page -->

How fast each part is, beside what one would use otherwise. Every figure comes from a committed
record in `bench/history/`, which holds the machine, the versions, the command and the commit.
`python -m bench.page` makes this page from the records; a test makes it again and compares.

Before a case is timed, its result is compared with the reference's. Then both sides take turns in
one process, and the ratio is that of their medians. `2.5 ×` means that ours is 2.5 times as fast.

{machines_table()}

To measure your own machine, install the peers and run one file:
`pip install -c constraints.txt -e '.[bench]'`, then
`pytest bench/bench_fbank.py --benchmark-only`. [CONTRIBUTING.md](../CONTRIBUTING.md) says how
torchaudio joins in and how a record is kept.

## Filterbank

Real clips of 5 s at 16 kHz become 498 × 128 features, the convention of the AST. The table gives
microseconds a clip and, in brackets, our speed-up. Each library runs by its own conventions, and
our filterbank follows them. Measured on {on("fbank")}.

![Clips per second of each library](fbank.svg)

{fbank_tables()}

- `asrfront` 0.2.2 is a C library with its own FFT and SIMD code, the fastest filterbank on a CPU
  that we know of. `kaldi-native-fbank` 1.23.0 is C++; it refuses 128 filters, one of which is
  empty, so it runs with 80.
- torchaudio 2.9.1 runs in a process of its own, on its own torch 2.9.1.
- `reference` is our own filterbank in plain torch, with its tables kept between calls.
- `torch-eager` and `torch-compile` are the AST's recipe as one writes it in torch, batched.
- `transformers` runs its numpy path, as it does when torchaudio is missing.
- The floor is the larger of two times: the arithmetic and the memory traffic that no filterbank
  avoids, at this machine's own measured rates (`bench/floor.py`). At 100 % nothing would be left to
  gain.
{projects()}{other_machines()}
## From files to features

`fbank_files` over 16 files of 5 s, against soundfile in float32, the mean of two channels, soxr's
HQ and torchaudio's `kaldi.fbank`, one thread, files in the page cache, 128 bins. Measured on
{on("files")}.

{files_table()}
{sections(extract=page_extract.extraction, corpus=page_extract.corpus)}
### Resampling

`resample` of 5 s of audio against soxr's HQ, which gets float32, and of stereo the mean, which it
has to take first. All take turns, so each finds the caches as the others left them.
[Numerics](numerics.md) says how the filters differ.

{resample_table()}

## Attention

Backend `numba` against `scaled_dot_product_attention`, float32, from the same packed projections,
two threads. A whole block adds the projections and the MLP, which are torch's in both. GFLOP/s are
ours, forward and backward.

On {on("attention-avx512")}:

{attention_table("attention-avx512")}

On {on("attention-avx2")}:

{attention_table("attention-avx2")}

On {on("attention-l1d32")}:

{attention_table("attention-l1d32")}

A call costs a few tens of microseconds more than torch's, so for a handful of tokens torch is
faster. `auto` takes ours all the same, so that the bits of a result do not depend on the number of
clips.
{half_table()}
## Projections

GFLOP/s of float32 by oneDNN on two threads, and in brackets the speed-up over torch's own product.
The MKL inside torch keeps to AVX2 on CPUs that are not Intel's; oneDNN, which is inside torch too,
does not. Measured on {on("attention-avx512")}.

{projection_table()}

## A stage of the convolution stem

`norm_gelu_conv` in one pass by `numba`, against torch's operators. Measured on
{on("stem")}.

{stem_table()}

## Mixing and normalising

Microseconds a clip of 5 s in batches of 32, and in brackets the speed-up over torch's operators.
`mix` sums two rotated clips read from int16; `normalise` masks, centres and scales 498 × 128
features. Measured on {on("training")}.

{data_path_table()}

## A training step

Our model against transformers' `ASTForAudioClassification` of the same sizes: 32 clips of 256
patches, two threads; transformers' model adds two tokens of its design. A step is forward, backward
and AdamW. bfloat16 is autocast in both. "With half the patches" means that ours drops half of them,
as it does in training.

{step_table()}

The next table compares a step of a recipe as it really trains with a step of transformers' model
of that width on all patches. The recipe keeps a quarter of the patches and adds a convolution stem
(`esc50` a convolution block too); ours is stepped by Muon, transformers' by AdamW.
Measured on {on("training")}.

{recipe_table()}
{sections(pretrained=page_pretrained.section, streaming=page_streaming.section)}
## Where the time of a fold goes

Features are everything from int16 samples to what the model sees: mixing, filterbank, normalising
and masking, and their random numbers. Measured on {on("training")}.

{share_table()}

## A step by its sizes

Milliseconds a clip of one training step, and what its arithmetic alone would take at the rate of
the multiply-adds (float32) or of torch's best product (bfloat16). Measured on
{on("sizes")}. The same step, measured four times in that record, varies by up to a fifth.

![Milliseconds a clip by tokens, width, blocks and batch](model.svg)

## GPU

GPU speed has not been recorded yet. The kernels have run and trained a model on one H200
([log](log.md)); [The Triton kernels](triton.md) has what the compiler makes of them.
`make gpu-record` on a CUDA machine checks every kernel against float64, times it beside torch's and
other libraries', with warm caches and with cold ones, runs the tests marked `gpu`, and keeps each
figure at once in one JSON in `bench/history/`; it takes ten minutes and needs the kernels alone.
`python -m bench.gpu_warm` compiles the kernels beforehand, on a machine without a GPU.

## Accuracy

[Accuracy for time](board.md) has ESC-50 and ESC-10: every recorded run, with its minutes.
"""


PAGES: dict[str, Callable[[], str]] = {
    "docs/benchmarks.md": benchmarks,
    "docs/board.md": board.page,
}


def main() -> None:
    for path, make in PAGES.items():
        text = make()
        records.write(ROOT / path, lambda path, text=text: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    records.run(main)
