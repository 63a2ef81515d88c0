"""Register glocal's models with timm the moment timm is there, without importing timm (and torch) to do it.

``import glocal`` takes milliseconds, so ``glocal --help`` and a mistyped command answer at once; and after
``import glocal, timm`` every model is in timm's registry, whichever of the two came first.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_timm() -> None:
    """Register now where timm has been imported, otherwise as the last step of its import."""
    if "timm" in sys.modules:
        importlib.import_module("glocal.models")
    else:
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm:  # no subclass of importlib.abc.MetaPathFinder: importing that takes a tenth of `glocal --help`
    """Finds timm as usual and appends ``import glocal.models`` to its execution; then steps aside.

    Some libraries only ask whether timm could be imported (``importlib.util.find_spec``): that changes nothing here.
    """

    asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm" or self.asking:
            return None
        self.asking = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self.asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            execute(module)
            importlib.import_module("glocal.models")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
