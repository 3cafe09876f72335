"""Sizes from the command line: what fits becomes shapes, what does not is named with what to do."""

from __future__ import annotations

import pytest
from onnx import ModelProto, TensorProto, helper

from passes.errors import ModelError
from passes.input_sizes import parse, resolve


def model(**inputs: list[int | str | None] | None) -> ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    return helper.make_model(helper.make_graph([], "sizes", values, []))


def test_given_sizes_fill_what_is_open() -> None:
    open_model = model(x=["N", 3, "H", "W"], y=["N", 7], z=[2, 2])
    shapes = resolve(open_model, parse(["x:4,3,32,16"]))
    assert shapes == {"x": (4, 3, 32, 16), "y": (4, 7), "z": (2, 2)}
    assert resolve(model(x=[1, 3]), {}) == {"x": (1, 3)}
    assert parse(["a:b:1,2", "s:"]) == {"a:b": (1, 2), "s": ()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", "--shape expects NAME:SIZES such as x:1,3,224,224; got 'x'"),
        (":1,2", "--shape expects NAME:SIZES"),
        ("x:1,-2", "--shape expects whole numbers above 0 after 'x'; got '1,-2'"),
        ("x:1,0", "--shape expects whole numbers above 0"),
        ("x:1,n", "--shape expects whole numbers above 0"),
        ("x:1.5", "--shape expects whole numbers above 0"),
    ],
)
def test_malformed_texts_are_named(text: str, expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse([text])
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["q:1"], "--shape names 'q', which is no input; the inputs are 'x' float32[N,3,H], 'y' float32[N]"),
        (["x:1,3"], "--shape gives 2 sizes for 'x' float32[N,3,H], which has 3"),
        (["x:1,4,8"], "--shape gives 4 where 'x' float32[N,3,H] has 3; a size that the model fixes cannot change"),
        (["x:1,3,8", "y:2"], "--shape gives N two sizes: 1 by 'x' and 2 by 'y'"),
        ([], "sizes are open in 'x' float32[N,3,H], 'y' float32[N] (symbols: H, N); give them, for example "),
        (["y:1"], "sizes are open in 'x' float32[N,3,H] (symbols: H, N); give them, for example --shape x:1,3,1"),
    ],
)
def test_what_does_not_fit_the_model_is_named(given: list[str], expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(model(x=["N", 3, "H"], y=["N"]), parse(given))
    assert str(caught.value).startswith(expected)


def test_one_input_twice_is_refused() -> None:
    with pytest.raises(ModelError, match=r"names the input 'x' twice"):
        parse(["x:1", "x:2"])
