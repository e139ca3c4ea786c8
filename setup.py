"""Packaging of ast-fast, without its kernels: every dependency stands here with its reason."""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = "0.5.0"  # and that of the kernels, kernels/pyproject.toml: one checkout, one version

INSTALL_REQUIRES = [
    f"ast-fast-kernels[torch,audio]=={VERSION}",  # features, the transformer's kernels, decoding
    "torch>=2.9",  # the model and its training
    "numpy>=1.26",  # arrays at the package's borders
    "soundfile>=0.13",  # writes the synthesised set
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

EXTRACT = f"ast-fast-kernels[extract]=={VERSION}"  # features of a corpus; brings pyarrow

RAY = f"ast-fast-kernels[ray]=={VERSION}"  # a corpus on a cluster; brings ray, jsonschema, protobuf

HUB = "huggingface_hub>=0.34"  # fetches checkpoints, if asked; transformers has it and its cache

ONNX = [
    "onnx>=1.19",  # checks an exported file; torch's exporter needs it too
    "onnxscript>=0.5",  # torch's exporter to ONNX; brings onnx_ir
    "onnxruntime>=1.25",  # runs what is exported; earlier ones multiply bytes wrongly by AMX
]

EXTRAS_REQUIRE = {
    "tensorboard": [TENSORBOARD],
    "hub": [HUB],
    "onnx": ONNX,  # a model as a file for other programs
    "extract": [EXTRACT],
    "ray": [RAY],
    "test": [
        TENSORBOARD,
        EXTRACT,
        HUB,
        RAY,
        *ONNX,
        f"ast-fast-kernels[triton]=={VERSION}",  # the GPU kernels, interpreted and compiled
        "triton>=3.7; platform_system == 'Linux'",  # older interpreters fail with numpy 2.4
        "pytest>=8",
        "pytest-benchmark>=5",
        "pytest-xdist>=3.6",  # shares the tests out to processes; brings execnet
        "threadpoolctl>=3.5",  # benchmarks hold every library's BLAS to the same threads
        "hypothesis>=6.100",  # property tests over configs and shapes
        "kaldi-native-fbank>=1.20",  # an independent Kaldi fbank to agree with
        "librosa>=0.11",  # its mel spectrogram, to agree with; brings joblib, pooch, msgpack
        "datasets>=4.0",  # reads shards back; brings pandas, fsspec, multiprocess and xxhash
        "lhotse>=1.30",  # its Fbank and cuts; brings cytoolz, intervaltree, audioread
        "python_speech_features>=0.6",  # to agree with; needs numpy and scipy, which it doesn't say
        "transformers>=4.57",  # the extractors of AST and Whisper, to agree with
    ],
}
EXTRAS_REQUIRE["bench"] = [  # peers of benchmarks, where the tests' own are not enough
    *EXTRAS_REQUIRE["test"],
    "asrfront>=0.2.2",  # the fastest filterbank on a CPU that we know of; needs numpy alone
]
EXTRAS_REQUIRE["docs"] = [
    "mkdocs-material>=9.6",  # the site: theme and search; brings mkdocs and pymdown-extensions
    "mkdocstrings-python>=2.0",  # the reference from docstrings; brings mkdocstrings, griffe
]
EXTRAS_REQUIRE["dev"] = [*EXTRAS_REQUIRE["test"], "ruff>=0.14", "mypy>=1.18", "build>=1.2"]

setup(
    name="ast-fast",
    version=VERSION,
    description="Fast log-mel filterbanks and a minimal Audio Spectrogram Transformer",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["ast_fast", "ast_fast.*"]),
    package_data={"": ["*.html", "*.css", "py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
