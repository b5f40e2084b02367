"""Installs caffe_port under the name caffe, for all scripts of an environment: ``pip install ./shim``."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "caffe_port_shim.pth"


class BuildWithPth(build_py):
    """Puts the .pth file, which loads the module when Python starts, beside the module."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(PTH, str(Path(self.build_lib) / PTH))


setup(
    name="caffe_port_shim",
    version="0.1.0",
    description="import caffe gives caffe_port, where there is no Caffe",
    license="BSD-2-Clause",
    python_requires=">=3.10",
    install_requires=["caffe_port"],
    py_modules=["caffe_port_shim"],
    cmdclass={"build_py": BuildWithPth},
)
