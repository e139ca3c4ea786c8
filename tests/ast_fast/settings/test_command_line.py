import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ast_fast.augment import draw_feature_changes, draw_mixtures, kept_patches
from ast_fast.machine.device import Placement
from ast_fast.settings.command_line import DEMO_DEFAULTS, parse_config, print_help
from ast_fast.settings.config import Config, ModelConfig, Paths, TrainingConfig
from ast_fast.settings.rules import check_config
from ast_fast.settings.toml import config_to_toml, config_values
from ast_fast.settings.values import settings
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PRESETS

DATA = ["--data", "somewhere"]


def test_nothing_given_is_the_defaults_of_the_demo() -> None:
    assert config_values(parse_config([])) == config_values(Config()) | DEMO_DEFAULTS


def test_a_named_data_set_is_trained_with_the_defaults_of_the_dataclasses() -> None:
    assert parse_config(DATA) == Config(paths=Paths(data=Path("somewhere")))
    assert parse_config(["--download"]) == Config(download=True)


def test_flags_go_over_toml_and_toml_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n[training]\nepochs = 7\nbatch_size = 8\n")
    config = parse_config(["--config", str(path), "--training.epochs", "9"])
    assert (config.training.epochs, config.training.batch_size, config.seed) == (9, 8, 3)
    assert config.training.warmup_epochs == DEMO_DEFAULTS["training.warmup_epochs"]


def test_data_named_in_toml_leaves_the_demo(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('data = "somewhere"\n')
    assert parse_config(["--config", str(path)]) == Config(paths=Paths(data=Path("somewhere")))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_filterbank_s_own(name: str) -> None:
    assert parse_config([*DATA, "--fbank.preset", name]).fbank == FbankConfig.preset(name)


def test_a_preset_replaces_what_came_before_it_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[fbank]\nnum_mel_bins = 40\nlow_freq = 50\npreset = "kaldi"\n')
    in_file = ["--config", str(path)]
    assert parse_config(in_file).fbank == FbankConfig.preset(
        "kaldi", num_mel_bins=40, low_freq=50.0
    )
    assert parse_config([*in_file, "--fbank.low-freq", "30"]).fbank == FbankConfig.preset(
        "kaldi", num_mel_bins=40, low_freq=30.0
    )
    on_top = [*in_file, "--fbank.preset", "seed", "--fbank.low-freq", "30"]
    assert parse_config(on_top).fbank == FbankConfig.preset("seed", low_freq=30.0)


def test_flags_change_a_preset_as_its_library_would(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[fbank]\npreset = "lhotse"\n')
    for named in (["--fbank.preset", "lhotse", *DATA], ["--config", str(path)]):
        config = parse_config([*named, "--fbank.window-type", "blackman"])
        assert config.fbank == FbankConfig.preset("lhotse", window_type="blackman")
        assert config.fbank.window_periodic


GOOD_FLAGS: list[tuple[list[str], str, object]] = [
    (["--folds", "1", "3"], "folds", [1, 3]),
    (["--folds=2"], "folds", [2]),
    (["--model.patch-size", "8", "4"], "model.patch_size", [8, 4]),
    (["--model.patch_size=8", "4"], "model.patch_size", [8, 4]),
    (["--fbank.high-freq", "-400"], "fbank.high_freq", -400.0),
    (["--fbank.n-fft", "1024"], "fbank.n_fft", 1024),
    (["--fbank.n-fft", "none"], "fbank.n_fft", None),
    (["--training.learning-rate", "3e-4"], "training.learning_rate", 3e-4),
    (["--training.learning-rate", "1"], "training.learning_rate", 1.0),
    (["--skip-bad-files"], "skip_bad_files", True),
    (["--augment.no-roll"], "augment.roll", False),
    (["--augment.roll", "false"], "augment.roll", False),
    (["--features.no-norm-per-sample"], "features.norm_per_sample", False),
    (["--subset", "esc10"], "subset", "esc10"),
    (["--out", "a b"], "out", "a b"),
    (["--seed", str(2**63 - 1)], "seed", 2**63 - 1),
    (["--fbank.preset", "kaldi"], "fbank.window_type", "povey"),
    (["--fbank.num-mel-bins", "40", "--fbank.preset", "kaldi"], "fbank.num_mel_bins", 40),
]


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    GOOD_FLAGS,
    ids=[" ".join(argv) for argv, _, _ in GOOD_FLAGS],
)
def test_a_flag_sets(argv: list[str], key: str, value: object) -> None:
    assert config_values(parse_config([*DATA, *argv]))[key] == value


BITS = f"a number of {int('9' * 400).bit_length()} bits"
WRONG_FLAGS = [
    ("--trainin.epochs 3", "unknown flag --trainin.epochs; did you mean --training.epochs?"),
    ("--epochs 3", "unknown flag --epochs; did you mean --training.epochs?"),
    ("--training.lr 1", "unknown flag --training.lr; did you mean --training.learning-rate?"),
    ("--model.embed_dims 1", "unknown flag --model.embed_dims; did you mean --model.embed-dim?"),
    ("--no-rol", "unknown flag --no-rol; did you mean --augment.no-roll?"),
    ("--xyzzy", "unknown flag --xyzzy; --help lists them all"),
    ("run", "every argument must be a flag, got 'run'"),
    ("--training.epochs x", "--training.epochs must be an integer, got 'x'"),
    ("--training.epochs 2.5", "--training.epochs must be an integer, got 2.5"),
    ("--training.epochs", "--training.epochs takes one value, got none"),
    ("--seed 1 2", "--seed takes one value, got 2 values: 1 2"),
    ("--augment.no-roll yes", "--augment.no-roll takes no value, got yes"),
    ("--augment.roll maybe", "--augment.roll must be true or false, got 'maybe'"),
    ("--augment.gain-db loud", "--augment.gain-db must be a number, got 'loud'"),
    ("--augment.gain-db 1e308", "--augment.gain-db must be from -1e+12 to 1e+12, got 1e+308"),
    (f"--augment.gain-db {'9' * 400}", "--augment.gain-db must be a finite number, got {bits}"),
    (
        "--model.embed-dim 1000000000000000000",
        "--model.embed-dim must be from -2147483647 to 2147483647, got 1000000000000000000",
    ),
    (
        "--model.patch-stride 1 -2147483648",
        "--model.patch-stride must be from -2147483647 to 2147483647, got -2147483648",
    ),
    (
        "--seed 9223372036854775808",
        "--seed must be from -9223372036854775807 to 9223372036854775807, got 9223372036854775808",
    ),
    ("--seed 1 --seed 1", "--seed is given twice"),
    ("--augment.roll --augment.no-roll", "--augment.roll is given twice"),
    ("--config a --config b", "--config is given twice"),
    ("--folds", "--folds takes values, or the word none for no value"),
    ("--data ~nosuchuser/x", "--data must be in a home folder that exists, got '~nosuchuser/x'"),
    ("--data a\udcff", r"--data must be text in UTF-8, got 'a\udcff'"),
    ("--config a\udcff", r"--config must be text in UTF-8, got 'a\udcff'"),
    (
        "--fbank.preset kaldj",
        "--fbank.preset must be one of {presets}, got 'kaldj'; did you mean kaldi?",
    ),
    ("--augment.gain-db nan", "--augment.gain-db must be a finite number, got nan"),
    ("--model.patch-size 16", "--model.patch-size must be 2 integers, got 16"),
    ("--model.patch-size 16 b", "--model.patch-size must be an integer, got 'b'"),
    ("--folds one", "--folds must be an integer, got 'one'"),
    (
        "--backend tritn",
        "--backend must be one of auto, reference, numba, triton, got 'tritn'; "
        "did you mean triton?",
    ),
    (
        "--fbank.low-freq 9000",
        "fbank.low_freq must be from 0 to below the upper edge (8000 Hz), got 9000.0",
    ),
    ("--resume", "--resume needs --out, the folder of the run to resume"),
]


@pytest.mark.parametrize(
    ("argv", "message"),
    WRONG_FLAGS,
    ids=[ascii(argv[:40]) for argv, _ in WRONG_FLAGS],
)
def test_a_wrong_flag_is_named_with_its_rule(argv: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(argv.split())
    assert str(caught.value) == message.format(presets=", ".join(PRESETS), bits=BITS)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--data must be a path, got ''$"):
        parse_config(["--data", ""])


def test_every_wrong_flag_gets_a_line() -> None:
    with pytest.raises(InputError) as caught:
        parse_config(["--seed", "x", "--nope", "--training.epochs", "y"])
    assert str(caught.value).splitlines() == [
        "--seed must be an integer, got 'x'",
        "unknown flag --nope; --help lists them all",
        "--training.epochs must be an integer, got 'y'",
    ]


LONG = 1 << 20000
LONG_SHOWN = "a number of 20001 bits"
BACKENDS = "auto, reference, numba, triton"
WRONG_TOML = [
    ("[training]\nepoch = 3", "unknown key training.epoch; did you mean training.epochs?"),
    ("[trainin]\nepochs = 3", "unknown key trainin; did you mean training?"),
    ("epochs = 3", "unknown key epochs; did you mean training.epochs?"),
    ('[training]\nepochs = "3"', "training.epochs must be an integer, got '3'"),
    ("[training]\nepochs = true", "training.epochs must be an integer, got True"),
    ("[training]\nlearning_rate = inf", "training.learning_rate must be a finite number, got inf"),
    ("training = 3", "training must be a table, got 3"),
    ("[augment]\nroll = 1", "augment.roll must be true or false, got 1"),
    ("folds = 1", "folds must be integers, got 1"),
    ("[model]\npatch_size = [16]", "model.patch_size must be 2 integers, got 16"),
    ("data = 3", "data must be a path, got 3"),
    ("seed = " + "9" * 5000, "not valid TOML: a number is too long"),
    (f"seed = {LONG:#x}", f"seed must be from -{2**63 - 1} to {2**63 - 1}, got {LONG_SHOWN}"),
    (f"backend = {LONG:#x}", f"backend must be one of {BACKENDS}, got {LONG_SHOWN}"),
    ("seed = " + "[" * 3000 + "]" * 3000, "not valid TOML: nested too deeply"),
    ("seed =", "not valid TOML: Invalid value (at end of document)"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    WRONG_TOML,
    ids=[text.replace("\n", " ")[:40] for text, _ in WRONG_TOML],
)
def test_a_wrong_key_is_named_with_its_file_and_rule(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parse_config(["--config", str(path)])
    assert str(caught.value) == f"{path}: {message}"


def test_a_config_file_must_be_readable(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(InputError) as caught:
        parse_config(["--config", str(path)])
    assert str(caught.value) == (
        f"--config must be a readable TOML file, got {path}: No such file or directory"
    )


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            paths=Paths(data=Path("/data/an odd 'name'"), out=Path("out"), cache=Path("c")),
            subset="esc10",
            folds=(1, 3),
            seed=7,
            backend="reference",
            skip_bad_files=True,
            fbank=FbankConfig.preset("seed", n_fft=1024),
            model=ModelConfig(patch_size=(8, 32), pool="cls", mlp_ratio=1 / 3),
            training=TrainingConfig(epochs=1, learning_rate=1e-7, amp="off"),
        ),
        replace(parse_config([]), download=True),
    ],
    ids=["defaults", "much-changed", "demo"],
)
def test_toml_reads_back_to_the_same_config(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(config_to_toml(config))
    assert parse_config(["--config", str(path)]) == config


def test_a_list_of_a_file_can_be_emptied_by_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("folds = [2, 3]\n[model]\nstem_widths = [32, 96]\n")
    assert parse_config(["--config", str(path)]).model.stem_widths == (32, 96)
    config = parse_config(["--config", str(path), "--model.stem-widths", "none", "--folds", "none"])
    assert config.model.stem_widths == config.folds == ()


def test_every_setting_has_a_flag_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    print_help_to_end()
    shown = capsys.readouterr().out
    missing = [s.flag for s in settings().values() if f"{s.flag} " not in shown.replace(",", " ")]
    assert not missing
    assert "--config PATH" in shown
    assert "--fbank.preset {" in shown
    assert "{None}" not in shown


def print_help_to_end() -> None:
    with pytest.raises(SystemExit) as caught:
        print_help()
    assert caught.value.code == 0


def test_help_wins_over_wrong_flags_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--nope", "--help"])
    assert caught.value.code == 0
    assert "--training.epochs" in capsys.readouterr().out


def test_resume_takes_the_recorded_settings(tmp_path: Path) -> None:
    config = Config(seed=5, training=TrainingConfig(epochs=3))
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    resumed = parse_config(["--resume", "--out", str(tmp_path)])
    assert resumed == replace(config, resume=True, paths=Paths(out=tmp_path))


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(["--resume", "--out", str(tmp_path)])
    assert str(caught.value) == (
        f"--out must hold a run to resume, got {tmp_path}, which has no config.toml"
    )


def test_reading_settings_loads_no_torch() -> None:
    program = "import sys, ast_fast.settings.command_line; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} == {"esc10", "esc50", "minimal"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_settings_that_can_be_trained(path: Path, tmp_path: Path) -> None:
    config = parse_config(["--config", str(path), "--data", str(tmp_path)])
    check_config(config, 80000, Placement(torch.device("cpu"), None))


def test_the_minimal_recipe_has_none_of_the_extras() -> None:
    config = parse_config(["--config", str(RECIPES[-1]), *DATA])
    generator = torch.Generator()
    drawn = draw_mixtures(1000, torch.ones(4), torch.eye(4), config.augment, generator)
    assert drawn.clips.tolist() == [[0], [1], [2], [3]]
    assert (drawn.starts == 0).all()
    assert (drawn.factors == 1).all()
    assert torch.equal(drawn.targets, torch.eye(4))
    changes = draw_feature_changes(4, 60, config.augment, config.fbank, generator)
    assert changes == (None, None, None)
    assert kept_patches(4, 256, config.augment, generator) is None
    assert config.training.ema_decay == 0
    assert config.training.label_smoothing == 0
    assert config.training.optimizer == "adamw"
    assert config.fbank == FbankConfig.preset("seed")
    assert config.model == ModelConfig(embed_dim=128, num_heads=4)
