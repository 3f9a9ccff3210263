"""Style methods: the table of them (`specs`, without torch), and a module for each family of methods."""

from instantstyle.methods.options import Option, Options
from instantstyle.methods.specs import METHODS, MethodSpec, StrengthSweep, find_method

__all__ = ["METHODS", "MethodSpec", "Option", "Options", "StrengthSweep", "find_method"]
