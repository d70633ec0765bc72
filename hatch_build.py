"""Compiles the modules that read protobuf, with mypyc, when a build asks for it.

`HATCH_BUILD_HOOKS_ENABLE=1 pip install .` needs a C compiler and Python's headers. Without the variable
nothing of this runs, and what is installed is the same Python, interpreted: see docs/decisions/0021.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules beside their sources: in a wheel, or in the checkout if that is installed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files of a wheel.

        Args:
            version: ``standard`` or ``editable``.
            build_data: gets the compiled files, and that the wheel is for one platform only.

        Raises:
            RuntimeError: the modules cannot be compiled here.
        """
        self._temporary = tempfile.TemporaryDirectory()  # gone with this object, whatever happens
        built = Path(self._temporary.name, "lib")
        try:
            with contextlib.chdir(self.root):
                paths = _compile(self.config["modules"], Path(self._temporary.name), built)
        except (Exception, SystemExit) as error:  # with the latter mypyc reports errors of its own
            raise RuntimeError(
                f"modules cannot be compiled ({error}): install a C compiler and Python's headers, "
                "or build without HATCH_BUILD_HOOKS_ENABLE"
            ) from error
        for path in paths:
            place = path.relative_to(built).as_posix()
            if version == "editable":
                shutil.copy2(path, Path(self.root, place))
            else:
                build_data["force_include"][str(path)] = place
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _compile(modules: list[str], temporary: Path, built: Path) -> list[Path]:
    """The compiled files of some modules, below `built`. Their paths are relative: they stay in the files."""
    from mypyc.build import mypycify  # here: only a build that compiles has it installed
    from setuptools import Distribution

    # The types of what these modules import beyond the package are not needed, and not installed here.
    options = [
        "--ignore-missing-imports",
        "--follow-imports=silent",
        "--config-file=",
        f"--cache-dir={temporary / 'cache'}",
    ]
    extensions = mypycify(
        [*options, *modules],
        opt_level="3",
        debug_level="0",
        target_dir=str(temporary / "c"),
        group_name="otel_activity",
    )
    command = Distribution({"name": "otel_activity", "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib = str(built)
    command.build_temp = str(temporary / "o")
    command.ensure_finalized()
    command.run()
    return [Path(path) for path in command.get_outputs()]
