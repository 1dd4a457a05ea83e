"""PEP 517 backend: setuptools, built against the torch that the user has.

Build isolation hides the user's packages, and a torch downloaded for the build alone may differ
from the installed one and weighs gigabytes. So the hooks look into the site-packages of the
interpreter that runs them, put that torch at the end of the path, and ask for torch as a build
requirement only where none is found that is new enough.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import site
import sys
import sysconfig

import toolchain
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks of the backend)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def get_requires_for_build_wheel(config_settings=None):
    return [] if _installed_torch() else [toolchain.torch_requirement()]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _make_torch_importable()
    # Setuptools packs whatever an earlier build left there, modules since removed included.
    for left in (toolchain.ROOT / "build").glob("lib*"):
        shutil.rmtree(left)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _make_torch_importable()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _make_torch_importable() -> None:
    if importlib.util.find_spec("torch") is None and (folder := _installed_torch()):
        print(f"imgfast: building against the torch in {folder}")
        site.addsitedir(folder)  # behind the build requirements, which stay in force


def _installed_torch() -> str | None:
    """The site-packages folder of the user's environment that holds a new enough torch."""
    for folder in _site_folders():
        for found in importlib.metadata.distributions(name="torch", path=[folder]):
            if toolchain.torch_is_new_enough(found.version):
                return folder
    return None


def _site_folders() -> list[str]:
    folders = site.getsitepackages()
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if sys.prefix == sys.base_prefix:  # pip turns the user's folder off in isolation
        folders.append(site.getusersitepackages())
    # Front ends that build in an environment of their own leave the active one in these.
    for prefix in filter(None, (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"))):
        names = {"base": prefix, "platbase": prefix}
        folders += [sysconfig.get_path("purelib", vars=names)]
    return list(dict.fromkeys(folder for folder in folders if os.path.isdir(folder)))
