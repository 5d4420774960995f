"""Editable installs that type checkers can follow; they cannot follow an import hook.

All else is in pyproject.toml. Two links make .editable/sigscale the package as it is installed, so that new
files appear and `rm -rf build` does no harm.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent
LINKS = {ROOT / ".editable" / "sigscale": "../sigscale", ROOT / "sigscale" / "kernels": "../kernels"}


class LinkedWheel(editable_wheel):
    """Puts .editable on the path where links can be made; else setuptools falls back to its import hook."""

    def finalize_options(self) -> None:
        super().finalize_options()
        try:
            for link, target in LINKS.items():
                link.parent.mkdir(exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(target, target_is_directory=True)
        except OSError:
            return
        self.package_dir = {"": ".editable"}


setup(cmdclass={"editable_wheel": LinkedWheel})
