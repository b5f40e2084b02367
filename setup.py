"""Installs caffe_port. What it is and needs is in pyproject.toml; exact versions of everything in requirements.lock.

Four folders of data outside the package are installed with it, under names of its own.
"""

from setuptools import find_packages, setup

DATA = {
    "caffe_port.definitions.published": ("prototxt", ["*/*.prototxt", "README.md"]),
    "caffe_port.demo_data": ("tests/reference/demo", ["*"]),
    "caffe_port.demo_weights": ("weights/demo", ["*.npz"]),
    "caffe_port.scripts": ("converters", ["*.py"]),
}

setup(
    packages=[*find_packages(include=["caffe_port", "caffe_port.*"]), *DATA],
    package_dir={name: folder for name, (folder, _) in DATA.items()},
    package_data={
        "caffe_port": ["py.typed"],
        "caffe_port.native": ["*.c", "*.h"],
        "caffe_port.schema": ["*.proto"],
        "caffe_port.dialects": ["*.proto"],
        "caffe_port.pages": ["*.css"],
        "caffe_port.view": ["*.html", "*.css", "*.js", "vendor/*"],
        **{name: patterns for name, (_, patterns) in DATA.items()},
    },
)
