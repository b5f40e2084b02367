"""The published networks: a builder, and the definitions that it writes, as files.

The files are in the folder ``prototxt`` of the repository and in ``caffe_port/definitions/published`` of an installed
package; :func:`published` returns the one that exists.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["data", "published"]

_PACKAGE = Path(__file__).resolve().parents[1]


def published() -> Path:
    """The folder of the published definitions, such as ``fcn8s/fcn-8s-pascal-deploy.prototxt``."""
    return data("prototxt", "definitions/published")


def data(in_repository: str, in_package: str) -> Path:
    """A folder of data files: the package's own copy where it was installed with one, else the repository's."""
    installed = _PACKAGE / in_package
    return installed if installed.is_dir() else _PACKAGE.parent / in_repository
