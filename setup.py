"""Packaging of ast-fast: every dependency stands here with its reason."""

from pathlib import Path

from setuptools import setup

INSTALL_REQUIRES = [
    "torch>=2.9",  # the model, its training, and the reference of every kernel
    "triton>=3.5; platform_system == 'Linux'",  # the GPU kernels; imported when one is used
    "numpy>=1.26",  # arrays at the package's borders
    "numba>=0.62",  # the CPU kernels
    "soundfile>=0.13",  # decodes every format that libsndfile reads
    "soxr>=0.5",  # resampling
    "tyro>=1.0",  # command line from the config dataclasses
    "tomli-w>=1.0",  # writes config.toml (reading is in the standard library)
    "rich>=13.7",  # progress bars and tables in a terminal
    "safetensors>=0.5",  # checkpoints that execute nothing when read
    "scikit-learn>=1.5",  # confusion matrix, precision, recall, F1
    "scipy>=1.11",  # the t distribution of paired differences; scikit-learn brings it anyway
    "matplotlib>=3.9",  # the report's figures
    "jinja2>=3.1",  # the report's page
    "platformdirs>=4.2",  # where caches belong on each system
    "filelock>=3.15",  # two processes may build one cache
]

TENSORBOARD = "tensorboard>=2.18"  # curves of runs side by side; brings grpcio, protobuf, werkzeug

EXTRAS_REQUIRE = {
    "tensorboard": [TENSORBOARD],
    "test": [
        TENSORBOARD,
        "pytest>=8",
        "pytest-benchmark>=5",
        "threadpoolctl>=3.5",  # benchmarks hold every library's BLAS to the same threads
        "hypothesis>=6.100",  # property tests over configs and shapes
        "kaldi-native-fbank>=1.20",  # an independent Kaldi fbank to agree with
        "transformers>=4.57",  # ASTFeatureExtractor, to agree with
    ],
}
EXTRAS_REQUIRE["bench"] = [  # peers of benchmarks, where the tests' own are not enough
    *EXTRAS_REQUIRE["test"],
    "asrfront>=0.2.2",  # the fastest filterbank on a CPU that we know of; needs numpy alone
    "librosa>=0.11",  # what most people call; brings scipy, joblib, pooch, audioread, msgpack
    "lhotse>=1.30",  # Kaldi's filterbank in plain torch; brings cytoolz, intervaltree, audioread
    "python_speech_features>=0.6",  # an old favourite; needs numpy and scipy, which it doesn't say
]
EXTRAS_REQUIRE["dev"] = [*EXTRAS_REQUIRE["test"], "ruff>=0.14", "mypy>=1.18", "build>=1.2"]

setup(
    name="ast-fast",
    version="0.1.0",
    description="Fast log-mel filterbanks and a minimal Audio Spectrogram Transformer",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        "ast_fast",
        "ast_fast_kernels",
        "ast_fast_kernels._cpu",
        "ast_fast_kernels._gpu",
        "ast_fast_kernels._torch",
        "ast_fast_kernels.attention",
        "ast_fast_kernels.fbank",
        "ast_fast_kernels.gelu",
        "ast_fast_kernels.layer_norm",
        "ast_fast_kernels.linear",
        "ast_fast_kernels.mix",
        "ast_fast_kernels.normalise",
        "ast_fast_kernels.stem",
        "ast_fast_kernels.testing",
    ],
    package_dir={"ast_fast": "ast_fast", "ast_fast_kernels": "kernels/ast_fast_kernels"},
    package_data={"ast_fast": ["*.html", "*.css", "py.typed"], "ast_fast_kernels": ["py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
