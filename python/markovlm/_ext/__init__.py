"""Chooses the build of the compiled core that fits this CPU; ``MARKOVLM_ISA`` forces one.

Nothing falls back in silence: a build that is wanted and cannot be had is an error that lists those that can.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from ..errors import ValueRangeError
from . import _cpu

__all__ = ["available_builds", "build_info", "core"]


def available_builds() -> list[str]:
    """Builds that are in this installation and that this CPU can run, best first."""
    return [name for name in _cpu.runnable_builds() if importlib.util.find_spec(f"{__name__}._core_{name}") is not None]


def _load() -> Any:
    available = available_builds()
    wanted = os.environ.get("MARKOVLM_ISA") or (available[0] if available else None)
    if wanted is None:
        raise ImportError(
            f"markovlm: no build of the core fits this CPU, which runs {', '.join(_cpu.runnable_builds())}; "
            "reinstall with `pip install --force-reinstall --no-binary markovlm markovlm`"
        )
    if wanted not in available:
        raise ValueRangeError(
            f"MARKOVLM_ISA: expected one of {', '.join(available)} (in this installation and run by this CPU), got "
            f"{wanted!r}; unset it to let markovlm choose"
        )
    return importlib.import_module(f"{__name__}._core_{wanted}")


if TYPE_CHECKING:
    from . import _core as core
else:
    core = _load()


def build_info() -> dict[str, Any]:
    """How the loaded core was built, and what else could run here.

    Returns
    -------
    dict
        ``isa`` (``"baseline"``, ``"v3"`` = AVX2, ``"v4"`` = AVX-512, ``"bf16"`` = AVX-512 with products of bfloat16,
        ``"amx"`` = these in tile registers), ``available`` (installed and run by this CPU), ``build_type``,
        ``vector_floats`` (float32 per vector) and ``compiler``.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.build_info()["isa"] in mk.build_info()["available"]
    True
    """
    return {**core.build_info(), "available": available_builds()}
