"""The GPU's record, run on toy sizes in the interpreter: its logic, not its figures."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu_record
from bench.gpu_file import KINDS, RecordFile, choice, failures, table
from bench.gpu_tests import pieces

ROOT = Path(__file__).parents[2]
TINY = [sys.executable, "-m", "bench.gpu_record", "--tiny"]
TRAINING = ("training step", "training step of all patches", "fold", "fold's last epoch")
INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """The record, and what was printed."""
    path = tmp_path_factory.mktemp("record") / "gpu.json"
    done = subprocess.run(
        [*TINY, "--out", str(path), "--commit", "of-a-tarball"],
        cwd=ROOT, env=INTERPRETED, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [other.name for other in path.parent.iterdir()] == ["gpu.json"]
    return json.loads(path.read_text()), done.stdout


def test_stages_run_in_their_order_and_end_well(ran: tuple[dict, str]) -> None:
    stages = ran[0]["stages"]
    assert list(stages) == [
        "facts", "errors", "hazards", "attention", "block", "fbank", "training",
        "compiled", "tests", "sweep",
    ]  # fmt: skip
    assert {stage["ended"] for stage in stages.values()} == {0}


def test_every_kernel_is_held_to_float64(ran: tuple[dict, str]) -> None:
    errors = ran[0]["errors"]
    assert len(errors) == 15
    for op in ("attention", "layer norm", "layer norm of a bfloat16 update", "gelu", "fbank",
               "attention (1, 17, 2, 16) TF32"):  # fmt: skip
        assert any(name.startswith(op) for name in errors), op
    assert all(row["holds"] and 0 < row["error"] <= row["bound"] for row in errors.values())
    assert all(row["holds"] for row in ran[0]["hazards"].values())


def test_every_comparison_has_its_candidates(ran: tuple[dict, str]) -> None:
    times = ran[0]["times"]
    assert {"triton", "triton, int16", "torch eager"} <= times["fbank, 1 clips"]["called"].keys()
    attention = times["attention (1, 17, 2, 16) forward"]
    candidates = {"flash", "cudnn", "efficient", "torch's choice", "triton"}
    assert candidates == {*attention["called"], *attention["cannot"]}
    for op in ("add_layer_norm", "linear_gelu"):
        for way in ("forward", "forward and backward"):
            assert {"triton", "torch eager"} <= times[f"{op} (5, 32) {way}"]["called"].keys()
    flex = times["attention (1, 17, 2, 16) forward beside FlexAttention"]
    assert flex["called"].keys() == {"triton", "FlexAttention"}
    for name in TRAINING:
        peers = {"transformers"} if name == "training step of all patches" else set()
        assert times[name]["called"].keys() == {"triton", "torch"} | peers
    assert times["fold"]["clips"] == times["fold's last epoch"]["clips"] == 4
    assert len(ran[0]["sweep"]) == 2


def test_the_record_says_what_auto_takes_and_which_is_faster(ran: tuple[dict, str]) -> None:
    choices = ran[0]["auto"]
    assert len(choices) == 6  # three operations, each way
    for name, row in choices.items():
        assert row["auto"] in ("numba", "reference")  # of the CPU
        for kind in KINDS:
            assert row[kind]["faster"] in ("ours", "torch's", "neither"), (name, kind)
        assert row == choice(ran[0]["times"][name])


def test_auto_is_wrong_where_it_takes_the_slower() -> None:
    def times(*microseconds: float) -> dict[str, float]:
        return dict(zip(("low", "median", "high"), microseconds, strict=True))

    ours = {"called": times(9, 10, 11), "graph": times(4, 5, 6), "cold": times(19, 20, 21)}
    torchs = {"called": times(4, 5, 6), "graph": times(9, 10, 11), "cold": times(20, 22, 23)}
    row: dict = {"auto": "triton", "torch": "sdpa", "cannot": {}}
    row |= {kind: {"triton": ours[kind], "sdpa": torchs[kind]} for kind in KINDS}
    found = choice(row)
    assert found == {
        "auto": "triton",
        "called": {"ours is faster by": 0.5, "faster": "torch's"},
        "graph": {"ours is faster by": 2.0, "faster": "ours"},
        "cold": {"ours is faster by": 1.1, "faster": "neither"},
        "wrong": ["called"],
    }
    assert choice({**row, "auto": "sdpa"})["wrong"] == ["graph"]
    assert choice({**row, "graph": {"sdpa": torchs["graph"]}}).keys() == {
        "auto", "called", "cold", "wrong",
    }  # fmt: skip
    record = {"device": "a", "date": "now", "commit": None, "times_mean_something": True}
    shown = table({**record, "auto": {"attention forward": found}}).splitlines()[-1]
    cells = ["attention forward", "triton", "0.50 ×, torch's", "2.00 ×, ours", "1.10 ×, neither"]
    assert shown.split("  ")[0] == cells[0]
    assert [cell.strip() for cell in shown.split("  ") if cell.strip()] == [
        *cells, "WRONG as called",
    ]  # fmt: skip


def test_a_process_gets_neighbours_in_one_file() -> None:
    names = [f"a.py::{test}" for test in range(5)] + ["b.py::x", "b.py::y"]
    assert pieces(names, 3) == [names[:3], names[3:5], names[5:]]
    assert pieces(names, 100) == [[name] for name in names]
    assert pieces([], 3) == []


def test_a_time_is_warm_and_cold_and_has_its_spread(ran: tuple[dict, str]) -> None:
    for name, row in ran[0]["times"].items():
        kinds = ("called",) if name in TRAINING else ("called", "graph", "cold")
        for kind in kinds:
            spread = row[kind]["triton"]
            assert 0 < spread["low"] <= spread["median"] <= spread["high"], (name, kind)


def test_the_record_says_where_it_is_from(ran: tuple[dict, str]) -> None:
    record, shown = ran
    assert {"command", "date", "platform", "seconds"} <= record.keys()
    assert (record["commit"], record["device"]) == ("of-a-tarball", "interpreter")
    assert record["times_mean_something"] is False
    assert {"torch", "triton", "numpy"} <= record["facts"]["versions"].keys()
    assert "TIMES MEAN NOTHING" in shown.upper()
    for name in (*record["errors"], *record["times"], *record["sweep"]):
        assert name in shown


def test_the_tests_on_the_gpu_are_part_of_it(ran: tuple[dict, str]) -> None:
    tests = ran[0]["tests"]["gpu"]
    assert (tests["failed"], tests["codes"]) == ([], [])
    assert tests["counts"] == {"skipped": tests["collected"]}  # there is no GPU here
    assert tests["collected"] > 10


def test_a_kill_at_any_moment_leaves_all_earlier_figures(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    seed = time.time_ns()
    chance = random.Random(seed)
    with subprocess.Popen(
        [*TINY, "--out", str(path), "--stages", "facts,errors"],
        cwd=ROOT, env=INTERPRETED, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as command:  # fmt: skip
        said: list[str] = []
        wanted = chance.randint(1, 8)  # of 10 errors
        for line in command.stdout:
            said.append(line)
            if sum(line.startswith("kept errors") for line in said) == wanted:
                break
        time.sleep(chance.uniform(0, 0.3))
        command.send_signal(signal.SIGKILL)
        said += command.stdout  # ends when the stage's process has ended too
    assert command.returncode == -signal.SIGKILL, seed
    record = json.loads(path.read_text())
    kept = [line.strip().removeprefix("kept ").partition(": ") for line in said]
    assert len(kept) > wanted, seed
    for section, _, name in kept:
        assert name in record[section], (seed, section, name)
    assert list(record["stages"].values())[-1]["ended"] is None, seed
    assert any("ended with None" in line for line in failures(record)), seed
    assert "TIMES MEAN NOTHING" in table(record).upper()


def kept_file(path: Path) -> RecordFile:
    file = RecordFile(path)
    facts = {"device": "interpreter", "date": "now", "commit": None, "times_mean_something": False}
    file.record = {**facts, "began": time.time()}
    return file


KEEPS = """
from pathlib import Path
from bench.gpu_file import RecordFile
RecordFile(Path({path!r})).keep("errors", {name!r}, {{"error": 1.0, "bound": 2.0, "holds": True}})
"""


def test_a_stage_may_crash_exit_or_hang(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    file = kept_file(path)
    ends = {
        "errors": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "hazards": "raise SystemExit(7)",
        "block": "import time; time.sleep(100)",
        "fbank": "",
    }
    commands = {
        name: [sys.executable, "-c", KEEPS.format(path=str(path), name=name) + end]
        for name, end in ends.items()
    }
    gpu_record.run_stages(file, list(ends), 100.0, commands.__getitem__, {"block": 3.0})
    record = json.loads(path.read_text())
    assert record["errors"].keys() == ends.keys()
    assert [stage["ended"] for stage in record["stages"].values()] == [
        -signal.SIGSEGV, 7, "limit", 0,
    ]  # fmt: skip
    assert len(failures(record)) == 3


def test_without_time_left_a_stage_does_not_begin(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_record, "LEAST_SECONDS", 0.5)
    file = kept_file(tmp_path / "gpu.json")
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    gpu_record.run_stages(file, ["errors", "block"], 1.0, lambda name: command, {})
    ended = [stage["ended"] for stage in file.record["stages"].values()]
    assert ended == ["limit", "no time left"]


def test_a_step_that_raises_leaves_the_steps_after_it(tmp_path: Path, capsys) -> None:
    import torch

    from bench.gpu_timer import TINY as SIZES
    from bench.gpu_timer import Recorder

    file = kept_file(tmp_path / "gpu.json")
    recorder = Recorder(file, torch.device("cpu"), SIZES)

    def broken() -> None:
        raise RuntimeError("an illegal memory access\nwas met")

    with recorder.step("one"):
        broken()
    recorder.compare("two", {"triton": broken, "torch": lambda: None})
    recorder.check("three", 2.0, 1.0)
    record = json.loads(file.path.read_text())
    assert record["raised"] == {"one": "RuntimeError: an illegal memory access"}
    assert record["times"]["two"]["cannot"] == {"triton": "RuntimeError: an illegal memory access"}
    assert record["times"]["two"]["called"].keys() == {"torch"}
    assert "IS TOO LARGE" in table(record)
    assert len(failures(record)) == 3


KERNELS_ALONE = """
import sys
from pathlib import Path
for name in ("tyro", "tomli_w", "soundfile", "soxr", "platformdirs"):
    sys.modules[name] = None
from bench import gpu_record
gpu_record.measure("training", Path(sys.argv[1]), tiny=False)
for name in gpu_record.STAGES.keys() - {"training"}:
    gpu_record.function_of(name)
"""


def test_what_a_stage_lacks_is_why_it_is_left_out(tmp_path: Path) -> None:
    """As where the kernels are installed alone."""
    file = kept_file(tmp_path / "gpu.json")
    file.keep("stages", "training", {"ended": 0, "seconds": 1.0})
    command = [sys.executable, "-c", KERNELS_ALONE, str(file.path)]
    subprocess.run(command, cwd=ROOT, check=True)
    record = json.loads(file.path.read_text())
    assert record["skipped"] == {"training": "platformdirs is not installed"}
    assert failures(record) == []


@pytest.mark.parametrize("code", [2, 5, -signal.SIGSEGV], ids=["usage", "no-tests", "crash"])
def test_pytest_may_end_in_any_way(code: int, tmp_path: Path, monkeypatch) -> None:
    import torch

    from bench import gpu_tests
    from bench.gpu_timer import TINY as SIZES
    from bench.gpu_timer import Recorder

    ending = (
        f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"
    )
    said = "print('tests/t.py::test_a b PASSED [ 5%]\\ntests/t.py::test_c FAILED', flush=True)"

    def pytest_like(arguments: list[str]) -> subprocess.Popen:
        program = f"{said}; {ending}"
        if "--collect-only" in arguments:
            program = "print('t.py::a b\\nt.py::c\\nt.py::d')"
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(gpu_tests, "_pytest", pytest_like)
    file = kept_file(tmp_path / "gpu.json")
    gpu_tests.run_gpu_tests(Recorder(file, torch.device("cpu"), SIZES))
    tests = json.loads(file.path.read_text())["tests"]["gpu"]
    assert tests["counts"] == {"passed": 1, "failed": 1}
    assert tests["codes"] == [code]
    assert failures(file.record) == [
        "FAILED tests/t.py::test_c",
        f"tests: 2 of 3 ran, pytest ended with [{code}]",
    ]


def test_without_git_the_commit_is_not_known(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_record._commit() is None


def test_a_record_that_could_not_be_written_is_refused_at_once(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    old = tmp_path / "old.json"
    old.touch()
    folder = "a file in a folder that can be written to, got"
    for path, rule in (
        (tmp_path / "no" / "gpu.json", folder),
        (tmp_path, folder),
        (old, "a new file, so that no record is lost;"),
    ):
        with pytest.raises(SystemExit) as ended:
            gpu_record.main(["--tiny", "--out", str(path)])
        assert ended.value.code == 2
        assert f"--out must be {rule} {path}" in capsys.readouterr().err.splitlines()[-1]


def test_a_second_record_of_a_day_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "2026-11-30-h200.json"
    assert gpu_record._unused(path) == path
    path.touch()
    (tmp_path / "2026-11-30-h200-2.json").touch()
    assert gpu_record._unused(path).name == "2026-11-30-h200-3.json"


@pytest.mark.parametrize(
    ("arguments", "interpret", "words"),
    [
        ([], "0", "this needs a CUDA GPU; --tiny tries the steps without one"),
        (["--tiny"], "0", "--tiny needs TRITON_INTERPRET=1"),
        ([], "1", "TRITON_INTERPRET=1 is for --tiny: a GPU would not be used"),
        (["--tiny"], "1", "--tiny needs --out: its record is not one of a GPU"),
        (["--stages", "facts,test"], "0", "--stages must be of facts, errors, "),
        (["--seconds", "10"], "0", "--seconds must be above 10, got 10"),
    ],
    ids=["no-gpu", "tiny", "interpreted", "no-out", "stages", "seconds"],
)
def test_what_it_cannot_do_here_it_says(
    arguments: list[str], interpret: str, words: str, monkeypatch, capsys
) -> None:
    import torch

    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_record.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.aot
def test_kernels_are_compiled_beforehand(tmp_path: Path) -> None:
    """Layer norm of two widths and GELU, each way, by launches that end after it."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu_warm", "--arch", "90", "--stages", "block"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "sm_90" in run.stdout
    assert "6 kernels compiled, 0 found" in run.stdout
    assert len(list(tmp_path.glob("*/*.cubin"))) == 6
