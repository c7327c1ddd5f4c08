"""Builds the engine in `native/` beside the package's modules, where there is a C compiler; without one it says so.

The library has no Python in it: it is loaded by ctypes, and one build serves every version.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
SOURCES = sorted(p.as_posix() for p in Path("native/src").rglob("*.c"))
HEADERS = sorted(p.as_posix() for p in Path("native").rglob("*.h"))


class BuildLibrary(build_ext):
    """A plain shared library, called by its own name alone."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix("")) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:  # noqa: ARG002
        return []

    def get_libraries(self, ext: Extension) -> list[str]:
        return list(ext.libraries)

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as e:
            self.warn(f"the native engine isn't built, all else works without it: {e}")


class WithSources(build_py):
    """The engine's sources beside the modules too: networks are exported as C with them in it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("native/src", Path(self.build_lib, "mobilenets", "native", "src"), dirs_exist_ok=True)


class Wheel(bdist_wheel):
    """For this system, and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "mobilenets.deploy.engines.libmnet",
            SOURCES,
            depends=HEADERS,
            include_dirs=["native/include"],
            extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden", "-pthread"],
            extra_link_args=["-pthread"],
            libraries=["m"] if sys.platform != "win32" else [],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "build_py": WithSources, "bdist_wheel": Wheel},
)
