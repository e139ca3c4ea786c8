"""Every example of README and the guides runs, and every command line is one that programs take."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tyro

from ast_fast import compare, export, extract, predict, pretrained, select
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.pretrained.preprocessor import Preprocessor
from ast_fast.settings.command_line import Arguments, SeedsJob, parse_config, read_job
from ast_fast.settings.config import ModelConfig
from ast_fast_kernels import FbankConfig, warm
from ast_fast_kernels import extract as kernels_extract
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.testing.stores import write_store

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "kernels/README.md",
    "docs/index.md",
    "docs/board.md",
    "docs/log.md",
    "CONTRIBUTING.md",
]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "guides").glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHAPE = re.compile(r"#.*?(\((?:\d+, )*\d+,?\))")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(text) if name == language]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs_and_gives_the_shapes_that_it_states(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clips = [np.zeros((count, 80), np.float32) for count in (98, 40, 70, 98, 20)]
    columns, types = {"target": [0, 1, 0, 1, 2]}, {"target": "int64"}
    config = FbankConfig.preset("kaldi", num_mel_bins=80)
    write_store(tmp_path / "features", clips, config, columns=columns, types=types)
    if "ast_fast.classifier" in "".join(blocks(page, "python")):
        write_model(tmp_path / "ast-finetuned-audioset-10-10-0.4593")
        for name in ("a.wav", "b.wav"):
            soundfile.write(tmp_path / name, np.zeros(44100), 44100)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        run(block, namespace, page)


def write_model(folder: Path) -> None:
    """Write a narrow model with the frames and the number of classes of AudioSet's."""
    preprocessor = Preprocessor()
    config = preprocessor.config(
        ModelConfig(embed_dim=8, num_heads=1, depth=1, pool="distilled", patch_stride=(10, 10),
                    token_positions=True, head_norm=True)
    )  # fmt: skip
    names = [f"sound {number}" for number in range(527)]
    model = AudioSpectrogramTransformer(
        config.model,
        num_mel_bins=preprocessor.num_mel_bins,
        num_frames=preprocessor.num_frames,
        num_classes=len(names),
    )
    pretrained.save(
        pretrained.Pretrained(model.eval(), config, names, preprocessor.statistics, True), folder
    )


def run(block: str, namespace: dict[str, object], page: str) -> None:
    """Run a block; a line that ends in `# (2, 3)` must leave its first name with that shape."""
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        module = ast.Module([statement], type_ignores=[])
        exec(compile(module, page, "exec"), namespace)
        comment = SHAPE.search(lines[(statement.end_lineno or 1) - 1])
        if comment and isinstance(statement, ast.Assign):
            target = statement.targets[0]
            name = target.elts[0] if isinstance(target, ast.Tuple) else target
            value = eval(ast.unparse(name), namespace)
            assert np.shape(value) == ast.literal_eval(comment[1]), (page, ast.unparse(statement))


def test_a_wrong_shape_in_a_comment_is_found() -> None:
    block = "import numpy as np\nx = np.zeros((2, 3))  # (2, 4) float32\n"
    with pytest.raises(AssertionError, match=r"np\.zeros"):
        run(block, {}, "page")


def commands(page: str) -> Iterator[list[str]]:
    """Yield each command line of a page's shell blocks, in words."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|[;&]", line):
                if words := shlex.split(part, comments=True):
                    yield words


def check(words: Sequence[str]) -> None:
    """Give a command's arguments to the parser of the program that it runs."""
    program, *arguments = words
    if program == "torchrun":
        program, arguments = "python", list(words[words.index("-m") :])
    if program != "python" or arguments[0] != "-m" or not arguments[1].startswith("ast_fast"):
        return
    module, given = arguments[1], arguments[2:]
    if module == "ast_fast.cv":
        run = Arguments(tuple(given))
        match read_job(run):
            case SeedsJob() as job:
                parse_config(job.arguments)
            case None:
                parse_config(run)
    elif module == "ast_fast_kernels.warm":
        warm.parser().parse_args(given)
    elif module in PROGRAMS:
        tyro.cli(PROGRAMS[module], args=given)
    else:
        raise AssertionError(f"no such program: {module}")


PROGRAMS = {
    "ast_fast.predict": predict.Options,
    "ast_fast.extract": extract.Options,
    "ast_fast.compare": compare.Options,
    "ast_fast.select": select.Options,
    "ast_fast.export": export.Options,
    "ast_fast_kernels.extract": kernels_extract.Options,
}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")])
def test_commands_are_ones_that_the_programs_take(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.toml").write_text("[training]\nepochs = 3\n")
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        check(words)


@pytest.mark.parametrize(
    "command",
    [
        "python -m ast_fast.cv --training.epoch 3",
        "torchrun --nproc-per-node 2 -m ast_fast.cv --no-such-flag",
        "python -m ast_fast.predict model.safetensors a.wav --topmost 3",
        "python -m ast_fast.train",
        "python -m ast_fast_kernels.warm --preset kalid",
    ],
)
def test_a_flag_or_program_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises((InputError, SystemExit, AssertionError)):
        check(shlex.split(command))
