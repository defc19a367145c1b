"""Every public name with what it does, from the docstrings: docs/API.md, which a test compares with this.

    python docs/write_api.py

The front door is `import causal_circuits as cc`; modules with more public names than it has are listed after it.
"""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import causal_circuits as cc  # noqa: E402  # the package may not be installed

# In the order in which data flows, as in ARCHITECTURE.md.
MODULES = ["graphs", "tasks", "information", "models", "recording", "training", "films", "heads", "interventions"]
MODULES += ["discovery", "generalization", "classical", "circuits", "figures", "running"]

HEAD = """# Public names

Made from the docstrings by `python docs/write_api.py`; a test compares it with them. `help(cc.train)` shows arguments,
shapes, units and errors, and for every function and class an example that the tests run.
"""


def module_of(value: Any, name: str) -> str:
    """The first part of the module that a public name comes from; constants do not know, so they are looked for."""
    home = getattr(value, "__module__", "")
    if home.startswith(cc.__name__ + "."):
        return home.split(".")[1]
    return next(module for module in MODULES if hasattr(importlib.import_module(f"{cc.__name__}.{module}"), name))


def entry(prefix: str, name: str, value: Any) -> str:
    """One line: the name, its parameters, and what its docstring opens with; of a constant, its value."""
    if inspect.isroutine(value) or inspect.isclass(value):
        claim = (inspect.getdoc(value) or "").splitlines()[0]
        return f"- `{prefix}{name}{parameters(value)}` - {claim}"
    choices = [option for option in get_args(value) if isinstance(option, str)]
    if choices:
        return f"- `{prefix}{name}` - The type of {', '.join(map(repr, choices))}."
    return f"- `{prefix}{name}` - A type." if get_args(value) else f"- `{prefix}{name}` = `{value}`"


def parameters(value: Any) -> str:
    """The names of a function's parameters; nothing for a class, whose docstring lists its fields."""
    if inspect.isclass(value):
        return ""
    return f"({', '.join(inspect.signature(value).parameters)})"


def front_door() -> list[str]:
    """The names of `cc`, module by module."""
    lines = ["\n## `import causal_circuits as cc`"]
    values = {name: getattr(cc, name) for name in cc.__all__}
    home = {name: module_of(value, name) for name, value in values.items() if not inspect.ismodule(value)}
    for module in MODULES:
        names = [name for name in home if home[name] == module]
        if names:
            lines += [f"\n### {module}\n", *(entry("cc.", name, values[name]) for name in names)]
    return lines


def further_names(module: ModuleType) -> list[str]:
    """The public names of a module that the front door does not have."""
    home = module.__name__
    names = [name for name in module.__all__ if getattr(cc, name, None) is not getattr(module, name)]
    heading = f"\n## `from {cc.__name__} import {home.split('.')[1]}`\n"
    return [heading, *(entry("", name, getattr(module, name)) for name in names)] if names else []


def api() -> str:
    """The whole page."""
    lines = [HEAD.rstrip(), *front_door()]
    for name in MODULES:
        module = importlib.import_module(f"{cc.__name__}.{name}")
        lines += further_names(module) if hasattr(module, "__all__") else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "API.md").write_text(api())
