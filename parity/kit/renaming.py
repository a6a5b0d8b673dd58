"""The original's trace under the port's names."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from parity.kit.calls import CALL, CALLS
from parity.kit.judge import STATES
from parity.kit.names import NameMap
from parity.trace import Trace


def in_port_names(trace: Trace, names: NameMap) -> Trace:
    """The original's trace as if the port's names were its own.

    Raises:
        InputError: two modules or parameters come to the same name.
    """
    names.back(dict.fromkeys(call.rpartition("#")[0] for call in trace.calls))
    tensors: dict[str, Tensor] = {}
    for prefix in (*STATES, *(f"mb{j}.grad" for j in trace.micro_batches())):
        held = names.parameters(trace.group(f"{prefix}."))
        tensors.update({f"{prefix}.{name}": tensor for name, tensor in held.items()})
    for name, tensor in trace.tensors.items():
        renamed = _renamed(name, names)
        if renamed is not None:
            tensors[renamed] = tensor
    calls = [_renamed(f"{CALLS}{call}.out", names) for call in trace.calls]
    return replace(
        trace,
        tensors=tensors,
        trained=names.parameter_names(trace.trained),
        frozen=names.parameter_names(trace.frozen),
        calls=tuple(name[len(CALLS) : -len(".out")] for name in calls if name is not None),
    )


def _renamed(name: str, names: NameMap) -> str | None:
    """A tensor's new name; None for states, which are mapped together, and for modules without a counterpart."""
    if name.partition(".")[0] in STATES or ".grad." in name.partition(CALLS)[0]:
        return None
    call = CALL.fullmatch(name)
    if call is None:
        return name
    module = names.to_port(call["module"])
    return None if module is None else f"{CALLS}{module}{name[call.end('module') :]}"
