"""The registry of small models: a name in, a function without arguments out that builds the checked ONNX model.

What each one holds, its own docstring says, in `models.networks`, `models.wiring` and `models.oddities`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from models import networks, oddities, wiring

TINY: Mapping[str, Callable[[], onnx.ModelProto]] = MappingProxyType(
    {
        build.__name__: build
        for build in (
            networks.plain_conv,
            networks.residual_pair,
            networks.concat,
            networks.flatten_gemm,
            networks.inverted_residual,
            networks.grouped,
            networks.channel_shuffle,
            wiring.mlp,
            wiring.shared_weight,
            wiring.twin_convs,
            wiring.dynamic_reshape,
            wiring.squeeze_excite,
            wiring.unet_like,
            wiring.conv1d,
            wiring.two_inputs_two_outputs,
            wiring.redundant,
            oddities.initializers_as_inputs,
            oddities.annotated,
            oddities.custom_operator,
            oddities.float16,
            oddities.quantised,
            oddities.branching,
            oddities.local_function,
        )
    }
)

UNRUNNABLE = frozenset({"custom_operator"})
"""Models that ONNX Runtime cannot open."""
