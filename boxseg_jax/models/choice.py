"""Constructors by name, with messages that help when a name is wrong."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from boxseg_jax.errors import InputError


def pick(table: Mapping[Any, Any], name: Any, what: str) -> Any:
  """Gives `table[name]`.

  Args:
    table: the known names.
    name: the wanted one.
    what: what the names stand for, for the message.

  Raises:
    InputError: for an unknown name; the message has the nearest name and all of them.
  """
  if name in table:
    return table[name]
  known = [str(key) for key in table]
  nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
  hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
  raise InputError(f"unknown {what} {name!r}{hint} (known: {', '.join(known) or 'none'})")


def construct(constructor: Callable, options: Mapping[str, Any], what: str, **fixed) -> Any:
  """Calls `constructor(**fixed, **options)` if it knows every option.

  Args:
    constructor: takes keyword-only options.
    options: what the user gave.
    what: the thing being made, for the message.
    **fixed: arguments that the user has no say in.

  Raises:
    InputError: for an unknown option; the message has the nearest one and all of them.
  """
  parameters = inspect.signature(constructor).parameters.values()
  open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
  known = {p.name: p for p in parameters if p.name not in fixed}
  for name in () if open_ended else options:
    pick(known, name, f"option of {what}")
  return constructor(**fixed, **options)
