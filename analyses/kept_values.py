"""Results taken apart into JSON values and tensors, and put together again, equal bit for bit. Not a script.

Numbers, text, lists, tuples, dicts, tensors, and the dataclasses of this project; nothing is ever unpickled.
"""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


def taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON values; the tensors among them go to `tensors`, under the name that stands in their place."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if is_dataclass(value) and not isinstance(value, type):
        whole = {field.name: taken_apart(getattr(value, field.name), tensors) for field in fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__name__}", "fields": whole}
    if isinstance(value, dict):
        return {"dict": [[taken_apart(part, tensors) for part in pair] for pair in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [taken_apart(item, tensors) for item in value]}
    if isinstance(value, list):
        return [taken_apart(item, tensors) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def put_together(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `taken_apart` took apart; a ValueError if it is nothing of the kind."""
    try:
        return _put_together(values, tensors)
    except (KeyError, TypeError, AttributeError) as error:  # no such tensor or field, or something else in its place
        raise ValueError(f"no result can be put together from this: {error!r}") from error


def _put_together(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(values, list):
        return [_put_together(item, tensors) for item in values]
    if not isinstance(values, dict):
        return values
    match values:
        case {"tensor": name}:
            return tensors[name]
        case {"class": name, "fields": whole}:
            return _class_of(name)(**{key: _put_together(part, tensors) for key, part in whole.items()})
        case {"dict": pairs}:
            return dict(_put_together(pair, tensors) for pair in pairs)
        case {"tuple": items}:
            return tuple(_put_together(item, tensors) for item in items)
    raise ValueError(f"no result can be put together from {sorted(values)}")


def _class_of(name: str) -> type:
    """A dataclass of the package or of a module beside this one, which must have been imported."""
    module_name, _, class_name = name.partition(":")
    module = sys.modules.get(module_name)
    beside = Path(getattr(module, "__file__", None) or "").parent == Path(__file__).parent
    ours = module_name.startswith("causal_circuits.") or beside
    found = getattr(module, class_name, None) if ours else None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ValueError(f"no result can be put together from {name!r}: it is no dataclass of this project")
    return found
