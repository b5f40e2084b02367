"""Installs caffe_port. Pinned versions of everything are in requirements.lock; here are the ranges it works with."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

TEST = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.90"]
DATA = ["lmdb>=1.0"]  # what Data layers read LMDB with
LEVELDB = ["plyvel>=1.4"]  # and LevelDB; with wheels for Linux on x86-64 up to Python 3.12
PLOT = ["matplotlib>=3.8"]  # what a training's --plot draws with
BOARD = ["tensorboard>=2.14"]  # and its --log-dir writes events with
LINT = ["ruff>=0.6", "mypy>=1.11"]


def version() -> str:
    text = (HERE / "caffe_port" / "__init__.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


setup(
    name="caffe_port",
    version=version(),
    description="Caffe in PyTorch: definitions, weights, layers and solver, exact to the numbers of two real Caffes",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["caffe_port", "caffe_port.*"]),
    package_data={"caffe_port.schema": ["caffe.proto"], "caffe_port.dialects": ["*.proto"]},
    install_requires=[
        "torch>=2.4,<3",
        "numpy>=1.26,<3",
        "protobuf>=4.21",
        "h5py>=3.8",
        "scipy>=1.11",
        "pillow>=10",
        "safetensors>=0.4",
        "tqdm>=4.64",
        "argcomplete>=3.1",
        "opencv-contrib-python-headless>=4.8,<5",
    ],
    entry_points={"console_scripts": ["caffe-port=caffe_port.tools.caffe:main"]},
    extras_require={"data": DATA, "leveldb": LEVELDB, "plot": PLOT, "board": BOARD, "test": TEST, "lint": LINT},
)
