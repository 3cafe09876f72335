"""Neural networks of scikit-learn, trained for a moment on made-up data and converted by skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skl2onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MODELS: dict[str, Callable[[], Any]] = {
    "classifier": lambda: MLPClassifier(hidden_layer_sizes=(24, 16), max_iter=5, random_state=0),
    "scaled-classifier": lambda: make_pipeline(
        StandardScaler(), MLPClassifier(hidden_layer_sizes=(32,), activation="tanh", max_iter=5, random_state=0)
    ),
    "regressor": lambda: MLPRegressor(hidden_layer_sizes=(20, 20), max_iter=5, random_state=0),
}


def export_all(folder: Path) -> list[str]:
    """Write one file a model; gives the names."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 12)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)
    for name, build in MODELS.items():
        model = build().fit(x, y)
        options = {"zipmap": False} if "classifier" in name else {}
        proto = skl2onnx.to_onnx(model, x[:1], options=options, target_opset=17)
        (folder / f"tabular-MLP__{name}__skl2onnx.onnx").write_bytes(proto.SerializeToString())
    return list(MODELS)
