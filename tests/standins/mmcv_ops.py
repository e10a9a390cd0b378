"""Empty classes in the place of mmcv's compiled operators, which no head that is tested here calls.

mmdetection imports them all, and mmcv does not build with every torch.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch import nn


class _Empty(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def stand_in():
    """Let ``mmcv.ops`` be imported where it was not built."""
    if importlib.util.find_spec("mmcv._ext") is None and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
