"""Inputs: what fits is fitted, what does not is refused by name, and the two parts never share a sample."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from PIL import Image

from passes import inputs, runtime
from passes.errors import DataError
from passes.inputs import Inputs
from passes.leaves import HIGHEST, LOWEST, paint
from passes.samples import digest_feeds
from passes.settings import ImagePreparation, Settings
from passes.synthetic import synthesise

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def model_of(interface: str, nodes: str = "", weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    model = parser.parse_model(f"{HEADER} g ({interface}) => () {{ {nodes or 'y = Identity (x)'} }}")
    for name, value in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.output.append(onnx.ValueInfoProto(name=model.graph.node[-1].output[0]))
    return model


ONE = model_of("float[N,3] x")
TWO = model_of("float[N,3] a, int64[N,L] b", "y = Identity (a)")


def settings(*data: Path | str, labels: Path | None = None, **image: object) -> Settings:
    preparation = ImagePreparation(**image)  # type: ignore[arg-type]
    return Settings(data=tuple(map(str, data)), labels=labels, image=preparation)


def saved(path: Path, *arrays: np.ndarray, **named: np.ndarray) -> Path:
    np.savez(path, *arrays, **named)
    return path


def ramp(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def made(array: np.ndarray, labels: np.ndarray | None = None) -> Inputs:
    return Inputs(feeds={"x": array}, labels=labels, source="test", digest=digest_feeds({"x": array}))


# Files that fit.


def test_npz_npy_and_function_give_the_same_inputs(tmp_path: Path) -> None:
    x = ramp(5, 3)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "make.py").write_text(
        "import numpy as np\ndef f():\n    return {'x': np.load(r'%s')}\n" % (tmp_path / "x.npy")
    )
    sources = (
        saved(tmp_path / "x.npz", x=x),
        saved(tmp_path / "n.npz", x),
        tmp_path / "x.npy",
        f"{tmp_path / 'make.py'}:f",
    )
    loaded = [inputs.load(settings(source), ONE) for source in sources]
    for result in loaded:
        np.testing.assert_array_equal(result.feeds["x"], x)
        assert (result.samples, result.labels, result.notes) == (5, None, ())
    assert len({result.digest for result in loaded}) == 1
    assert loaded[0].source == f"5 samples from {sources[0]}"


def test_several_sources_are_joined_in_order(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a.npz", x=ramp(2, 3)), saved(tmp_path / "b.npz", x=-ramp(3, 3))
    np.save(tmp_path / "labels.npy", np.arange(5))
    result = inputs.load(settings(first, second, labels=tmp_path / "labels.npy"), ONE)
    np.testing.assert_array_equal(result.feeds["x"], np.concatenate([ramp(2, 3), -ramp(3, 3)]))
    np.testing.assert_array_equal(result.labels, np.arange(5))


@pytest.mark.parametrize("named", [True, False])
def test_test_data_folders_are_read_in_numeric_order(tmp_path: Path, named: bool) -> None:
    for number in (0, 2, 10):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        tensor = numpy_helper.from_array(np.full((1, 3), number, np.float32), "x" if named else "")
        (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
        (folder / "output_0.pb").write_bytes(b"ignored")
    result = inputs.load(settings(tmp_path), ONE)
    np.testing.assert_array_equal(result.feeds["x"][:, 0], [0, 2, 10])
    assert inputs.load(settings(tmp_path / "test_data_set_2"), ONE).samples == 1


@pytest.mark.parametrize(
    ("found", "expected", "values"),
    [("float64", "float", [0.1]), ("int32", "int64", [7]), ("int64", "int32", [-7]), ("float32", "float16", [0.5])],
)
def test_safe_conversions_are_made_with_a_note(tmp_path: Path, found: str, expected: str, values: list[float]) -> None:
    path = saved(tmp_path / "x.npz", x=np.array([values, values], dtype=found))
    result = inputs.load(settings(path), model_of(f"{expected}[N,1] x"))
    target = {"float": "float32"}.get(expected, expected)
    assert result.feeds["x"].dtype == target
    assert result.notes == (f"input 'x' was converted from {found} to {target}",)


def test_fixed_batches_are_no_limit_to_the_samples(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", x=ramp(7, 3))
    for declared in ("1", "4"):
        assert inputs.load(settings(path), model_of(f"float[{declared},3] x")).samples == 7


def test_inputs_without_a_batch_axis_take_several_rows_a_sample(tmp_path: Path) -> None:
    model = model_of(
        "float[N,3] x, float[2,5] c, float s", "p = Add (x, s)\n q = ReduceSum <keepdims = 0> (c)\n y = Add (p, q)"
    )
    x, c, s = ramp(3, 3), ramp(6, 5), ramp(3)
    result = inputs.load(settings(saved(tmp_path / "x.npz", x=x, c=c, s=s)), model)
    assert (result.samples, dict(result.rows)) == (3, {"x": 1, "c": 2, "s": 1})
    values = np.concatenate([part["y"] for part in runtime.run_batches(runtime.session(model), result.feeds, 8)])
    np.testing.assert_allclose(values, x + (s + c.reshape(3, 10).sum(axis=1))[:, None], rtol=1e-6)
    part = inputs.take(result, np.array([2, 0]))
    np.testing.assert_array_equal(part.feeds["c"], c[[4, 5, 0, 1]])
    assert part.samples == 2


# Files that do not fit.


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": ramp(2, 3), "z": ramp(2, 3)}, "has 'z', which the model has not; its inputs are 'x' float32[N,3]"),
        ({}, "has no array for 'x'; the model's inputs are 'x' float32[N,3]"),
        ({"x": ramp(6)}, "has float32[6] for input 'x' float32[N,3]: expected rank 2"),
        ({"x": np.float32(1)}, "has float32[] for input 'x' float32[N,3]: expected rank 2"),
        ({"x": ramp(2, 4)}, "has float32[2,4] for input 'x' float32[N,3]: axis 1 must be 3, it is 4"),
        ({"x": ramp(0, 3)}, "it holds no samples"),
        ({"x": ramp(2, 3, dtype="uint8")}, "has uint8[2,3] for input 'x' float32[N,3]: expected float32"),
        ({"x": np.full((2, 3), np.nan, np.float32)}, "it holds NaN or infinity"),
        ({"x": np.full((2, 3), np.inf)}, "it holds NaN or infinity"),
        ({"x": np.full((2, 3), 1e300)}, "some values do not fit float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = saved(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        inputs.load(settings(path), ONE)
    assert str(caught.value).startswith(str(path))


def test_integers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "data.npz", x=np.array([[2**31]], dtype=np.int64))
    with pytest.raises(DataError, match="some values do not fit int32"):
        inputs.load(settings(path), model_of("int32[N,1] x"))


def test_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "data.npz", a=ramp(4, 3), b=ramp(5, 2, dtype="int64"))
    with pytest.raises(DataError, match="different numbers of samples: 'a' 4, 'b' 5"):
        inputs.load(settings(path), TWO)


def test_rows_that_make_no_whole_sample_are_refused(tmp_path: Path) -> None:
    model = model_of("float[N,3] x, float[2,5] c", "y = Identity (x)")
    path = saved(tmp_path / "data.npz", x=ramp(2, 3), c=ramp(5, 5))
    with pytest.raises(DataError, match="a sample takes 2 rows and 5 is no multiple"):
        inputs.load(settings(path), model)


def test_sources_of_different_open_sizes_are_refused(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.npz", a=ramp(2, 3), b=ramp(2, 4, dtype="int64"))
    second = saved(tmp_path / "b.npz", a=ramp(2, 3), b=ramp(2, 5, dtype="int64"))
    with pytest.raises(DataError, match=re.escape("'b' int64[N,L] differ in shape beyond the first axis")):
        inputs.load(settings(first, second), TWO)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npz", b"not an archive", "is not an .npz archive"),
        ("x.npz", b"PK\x03\x04 cut", "is not an .npz archive"),
        ("x.npy", b"nothing", "is not a NumPy array"),
        ("x.npy", b"", "is not a NumPy array"),
        ("x.csv", b"1,2,3", "is no .npz, .npy, folder or file.py:function"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        inputs.load(settings(tmp_path / name), ONE)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("x.npz", "x.npy"):
        with pytest.raises(DataError, match="Object arrays cannot be loaded"):
            inputs.load(settings(tmp_path / name), ONE)


def test_absent_and_unsuitable_sources_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ramp(2, 3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "test_data_set_0").mkdir()
    for source, model, message in (
        (tmp_path / "absent.npz", ONE, "there is no data at"),
        (tmp_path / "empty", ONE, "holds neither test_data_set_* nor images"),
        (tmp_path / "x.npy", TWO, "holds one array, the model has 2 inputs"),
        (tmp_path, ONE, "holds no input_*.pb"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            inputs.load(settings(source), model)
    with pytest.raises(DataError, match="no data was given"):
        inputs.load(settings(), ONE)
    with pytest.raises(DataError, match="the model has no inputs"):
        inputs.load(settings(tmp_path / "x.npy"), model_of("", "y = Constant <value = float {1.0}> ()"))


def test_broken_test_data_is_refused(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"test_data_set_{number}").mkdir()
    first, second = (tmp_path / f"test_data_set_{number}" / "input_0.pb" for number in (0, 1))
    first.write_bytes(numpy_helper.from_array(ramp(1, 3), "x").SerializeToString())
    second.write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match=r"input_0\.pb is not a serialised tensor"):
        inputs.load(settings(tmp_path), ONE)
    second.write_bytes(numpy_helper.from_array(ramp(1, 4), "x").SerializeToString())
    with pytest.raises(DataError, match="differ in shape"):
        inputs.load(settings(tmp_path), ONE)
    second.rename(second.with_name("input_7.pb"))
    (second.with_name("input_7.pb")).write_bytes(numpy_helper.from_array(ramp(1, 3), "q").SerializeToString())
    with pytest.raises(DataError, match="belongs to no input"):
        inputs.load(settings(tmp_path), ONE)
    second.with_name("input_7.pb").unlink()
    for folder, names in ((first.parent, "ab"), (second.parent, "a")):
        for index, name in enumerate(names):
            array = ramp(1, 3, dtype="float32" if name == "a" else "int64")
            (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    with pytest.raises(DataError, match="not every test_data_set has every input: 'a' 2, 'b' 1"):
        inputs.load(settings(tmp_path), TWO)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def g(): pass", "has no function 'f'"),
        ("def f(): return [1]", "gave a list; expected a dict"),
        ("def f(): raise ValueError('of mine')", "raised ValueError: of mine"),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "raised SyntaxError"),
    ],
)
def test_functions_that_fail_are_refused(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "make.py").write_text(code)
    with pytest.raises(DataError, match=message):
        inputs.load(settings(f"{tmp_path / 'make.py'}:f"), ONE)
    with pytest.raises(DataError, match="there is no file"):
        inputs.load(settings(f"{tmp_path / 'absent.py'}:f"), ONE)


# Labels.


def test_labels_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    data, wanted = saved(tmp_path / "x.npz", x=ramp(3, 3)), np.array([2, 0, 1])
    np.save(tmp_path / "l.npy", wanted.astype(np.uint8))
    saved(tmp_path / "l.npz", wanted)
    saved(tmp_path / "both.npz", X=ramp(3), Y=wanted)
    (tmp_path / "l.txt").write_text("2\n0\n\n1\n")
    for name in ("l.npy", "l.npz", "both.npz", "l.txt"):
        labels = inputs.load(settings(data, labels=tmp_path / name), ONE).labels
        assert labels is not None
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, wanted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n2\n", "has 2 labels, the data has 3 samples"),
        ("1\n2\n3\n4\n", "has 4 labels, the data has 3 samples"),
        ("cat\ndog\nbird\n", "must have one class index a line"),
        ("1\n2 3\n4\n", "must have one class index a line"),
        ("-1\n0\n0\n", "must have one class index a line"),
        ("", "must have one class index a line"),
        ("a.png 1\nb.png 2\nc.png 3", "names files, the data are no folders of images"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "l.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        inputs.load(settings(saved(tmp_path / "x.npz", x=ramp(3, 3)), labels=tmp_path / "l.txt"), ONE)


def test_label_arrays_that_are_no_class_indices_are_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "x.npz", x=ramp(3, 3))
    for array in (np.ones(3), np.ones((3, 2), np.int64), np.array([-1, 0, 1])):
        np.save(tmp_path / "l.npy", array)
        with pytest.raises(DataError, match="labels are class indices from 0"):
            inputs.load(settings(data, labels=tmp_path / "l.npy"), ONE)
    with pytest.raises(DataError, match=r"there is no file .* with labels"):
        inputs.load(settings(data, labels=tmp_path / "absent.npy"), ONE)
    with pytest.raises(DataError, match="has a, b; expected one array"):
        inputs.load(settings(data, labels=saved(tmp_path / "l.npz", a=np.arange(3), b=np.arange(3))), ONE)


# Images.


def picture(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def pixels_of(seed: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


def test_images_are_scaled_ordered_and_laid_out(tmp_path: Path) -> None:
    for seed in range(3):
        picture(tmp_path / f"{seed}.png", pixels_of(seed))
    (tmp_path / "notes.txt").write_text("no image")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (np.stack([pixels_of(seed) for seed in range(3)])[..., ::-1] / 255 - mean) / std
    for interface, axes in (("float[N,3,4,6] x", (0, 3, 1, 2)), ("float[N,4,6,3] x", (0, 1, 2, 3))):
        result = inputs.load(settings(tmp_path, mean=mean, std=std, channels="bgr"), model_of(interface))
        np.testing.assert_allclose(result.feeds["x"], expected.transpose(axes), atol=1e-5)
        assert result.feeds["x"].dtype == np.float32


def test_crop_takes_the_centre_after_the_shorter_side_is_resized(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3))
    wide[:, 8:16] = 200
    picture(tmp_path / "a.png", wide)
    result = inputs.load(settings(tmp_path, crop=8, divide_by=1.0), model_of("uint8[N,3,8,8] x"))
    np.testing.assert_array_equal(result.feeds["x"], np.full((1, 3, 8, 8), 200, np.uint8))


def test_image_labels_follow_their_files_also_when_only_some_are_read(tmp_path: Path) -> None:
    for index in range(6):
        picture(tmp_path / f"p {index}.png", np.full((4, 4, 3), index * 10))
    (tmp_path / "l.txt").write_text("".join(f"p {index}.png {index}\n" for index in reversed(range(6))))
    np.save(tmp_path / "l.npy", np.arange(6))
    for labels in (tmp_path / "l.txt", tmp_path / "l.npy"):
        few = Settings(
            data=(str(tmp_path),), labels=labels, samples=2, eval_samples=2, image=ImagePreparation(divide_by=10.0)
        )
        result = inputs.load(few, model_of("float[N,3,4,4] x"))
        assert result.samples == 4
        np.testing.assert_allclose(result.feeds["x"][:, 0, 0, 0], result.labels)
    (tmp_path / "l.txt").write_text("p 0.png 0\n")
    with pytest.raises(DataError, match=r"has no label for 5 files, the first is 'p 1\.png'"):
        inputs.load(settings(tmp_path, labels=tmp_path / "l.txt"), model_of("float[N,3,4,4] x"))


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", pixels_of(0))
    for model, image, message in (
        (ONE, {}, "images need an input of rank 4"),
        (model_of("float[N,8,4,4] x"), {}, "images need an input of rank 4"),
        (TWO, {}, "fits one input; the model has 2"),
        (model_of("float[N,3,4,4] x"), {"crop": 5}, "the image crop is 5"),
        (model_of("float[N,1,4,4] x"), {"mean": (0.1, 0.2, 0.3)}, "give one value"),
        (model_of("uint8[N,3,4,4] x"), {}, "takes whole pixels; set the image's divide_by to 1"),
    ):
        with pytest.raises(DataError, match=message):
            inputs.load(settings(tmp_path, **image), model)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.jpg is not an image"):
        inputs.load(settings(tmp_path), model_of("float[N,3,4,4] x"))


# Splitting.


@given(values=st.lists(st.integers(0, 6), min_size=2, max_size=40), seed=st.integers(0, 5), limit=st.integers(1, 30))
def test_parts_are_disjoint_and_within_their_limits(values: list[int], seed: int, limit: int) -> None:
    data = made(np.repeat(np.array(values, np.float32)[:, None], 2, axis=1), np.array(values))
    if len(set(values)) < 2:
        with pytest.raises(DataError, match="samples are equal"):
            inputs.split(data, calibration=limit, evaluation=limit, seed=seed)
        return
    first, second = inputs.split(data, calibration=limit, evaluation=limit, seed=seed)
    assert not {*first.feeds["x"][:, 0]} & {*second.feeds["x"][:, 0]}
    assert 0 < first.samples <= limit
    assert 0 < second.samples <= limit
    for part in (first, second):
        np.testing.assert_array_equal(part.feeds["x"][:, 0], part.labels)
    again = inputs.split(data, calibration=limit, evaluation=limit, seed=seed)
    assert (again[0].digest, again[1].digest) == (first.digest, second.digest)


def test_split_depends_on_the_seed_and_fills_the_limits() -> None:
    data = made(ramp(100, 2))
    first, second = inputs.split(data, calibration=30, evaluation=10, seed=0)
    assert (first.samples, second.samples) == (30, 10)
    assert inputs.split(data, calibration=30, evaluation=10, seed=1)[0].digest != first.digest
    assert [part.samples for part in inputs.split(data, calibration=300, evaluation=100, seed=0)] == [50, 50]


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(DataError, match="need at least 2 samples; got 1"):
        inputs.split(made(ramp(1, 2)), calibration=1, evaluation=1, seed=0)


# Synthetic inputs.


def test_dead_leaves_have_the_statistics_of_photographs() -> None:
    images = paint(200, 32, 32, 3, np.random.default_rng(0))
    assert images.min() >= LOWEST
    assert images.max() <= HIGHEST
    assert abs(float(images.mean())) < 0.2
    assert 0.8 < float(images.std()) < 1.2
    red, green = images[..., 0].ravel(), images[..., 1].ravel()
    assert 0.8 < np.corrcoef(red, green)[0, 1] < 0.95
    neighbours = np.corrcoef(images[:, :, 1:, 0].ravel(), images[:, :, :-1, 0].ravel())[0, 1]
    assert neighbours > 0.85
    # Power falls with frequency about as 1/f^2; white noise is flat.
    power = (np.abs(np.fft.fft(images[..., 0], axis=2)) ** 2).mean(axis=(0, 1))
    slope = np.polyfit(np.log(np.arange(1, 13)), np.log(power[1:13]), 1)[0]
    assert -2.6 < slope < -1.2
    np.testing.assert_array_equal(paint(5, 32, 32, 3, np.random.default_rng(0)), images[:5])


def test_synthetic_inputs_are_deterministic_and_seeded() -> None:
    model = model_of("float[N,3,16,16] x")
    first = synthesise(model, 4, 0)
    assert (first.samples, first.feeds["x"].dtype) == (4, np.float32)
    assert first.source == "4 synthetic samples: dead-leaves images (normalised) for 'x'"
    assert synthesise(model, 4, 0).digest == first.digest != synthesise(model, 4, 1).digest


def test_images_follow_the_first_normalisation() -> None:
    plain = synthesise(model_of("float[N,3,16,16] x"), 8, 0).feeds["x"]
    mean = np.array([0.4, 0.5, 0.6], np.float32).reshape(1, 3, 1, 1)
    std = np.array([0.2, 0.3, 0.4], np.float32).reshape(1, 3, 1, 1)
    shifted = model_of("float[N,3,16,16] x", "a = Sub (x, m)\n y = Div (a, s)", {"m": mean, "s": std})
    np.testing.assert_allclose((synthesise(shifted, 8, 0).feeds["x"] - mean) / std, plain, atol=1e-5)
    pixels = synthesise(model_of("float[N,3,16,16] x", "y = Div (x, k)", {"k": np.array(255, "f4")}), 8, 0).feeds["x"]
    assert pixels.min() >= 0
    assert 200 < pixels.max() <= 255
    statistics = {"g": np.ones(3, "f4"), "b": np.zeros(3, "f4"), "m": np.full(3, 120, "f4"), "v": np.full(3, 900, "f4")}
    normalised = model_of("float[N,3,16,16] x", "y = BatchNormalization (x, g, b, m, v)", statistics)
    np.testing.assert_allclose((synthesise(normalised, 8, 0).feeds["x"] - 120) / 30, plain, atol=1e-4)
    declared = model_of("float[N,3,16,16] x")
    helper.set_model_props(declared, {"Image.NominalPixelRange": "NominalRange_0_255"})
    np.testing.assert_allclose(synthesise(declared, 8, 0).feeds["x"], pixels)


def test_images_are_laid_out_and_typed_as_the_input() -> None:
    assert synthesise(model_of("uint8[N,12,10,3] x"), 2, 0).feeds["x"].shape == (2, 12, 10, 3)
    assert int(synthesise(model_of("uint8[N,12,10,3] x"), 20, 0).feeds["x"].max()) > 200
    assert synthesise(model_of("float16[1,1,H,W] x"), 2, 0).feeds["x"].shape == (2, 1, 224, 224)
    assert int(synthesise(model_of("int8[N,12,10,3] x"), 20, 0).feeds["x"].min()) < -100


def test_ids_stay_in_the_range_of_what_they_index() -> None:
    table = {"t": np.zeros((7, 2), np.float32), "p": np.zeros((9, 2), np.float32)}
    model = model_of(
        "int64[N,L] ids, int32[N,L] position_ids, int64[N,L] attention_mask, bool[N] flag",
        "e = Gather (t, ids)\n c = Cast <to = 7> (position_ids)\n q = Gather (p, c)\n y = Add (e, q)",
        table,
    )
    feeds = synthesise(model, 50, 0).feeds
    assert (int(feeds["ids"].min()), int(feeds["ids"].max())) == (0, 6)
    np.testing.assert_array_equal(feeds["position_ids"][3], np.arange(16) % 9)
    assert feeds["attention_mask"].all()
    assert feeds["flag"].all()
    assert feeds["position_ids"].dtype == np.int32
    next(runtime.run_batches(runtime.session(model), feeds, 8))


def test_one_hot_codes_bound_the_ids() -> None:
    depth = model_of("int32[N,4] x", "y = OneHot (x, d, v)", {"d": np.array(11), "v": np.array([0, 1], "f4")})
    assert int(synthesise(depth, 100, 0).feeds["x"].max()) == 10
    compared = model_of("int32[N,4,1] x", "y = Equal (x, c)", {"c": np.arange(13, dtype=np.int32)})
    assert int(synthesise(compared, 100, 0).feeds["x"].max()) == 12


def test_open_sizes_are_consistent_by_name() -> None:
    model = model_of(
        "int64[B,seq] x, float[B,2,past,4] k, int64[B,total] attention_mask, float[2,B,seq] h", "y = Identity (x)"
    )
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + seq"
    feeds = synthesise(model, 3, 0).feeds
    shapes = {name: array.shape for name, array in feeds.items()}
    assert shapes == {"x": (3, 16), "k": (3, 2, 0, 4), "attention_mask": (3, 16), "h": (6, 1, 16)}


def test_inputs_that_cannot_be_made_up_are_refused() -> None:
    with pytest.raises(DataError, match="no input can be made up for 'x' no tensor"):
        synthesise(model_of("seq(float[N]) x"), 2, 0)
    with pytest.raises(DataError, match="no input can be made up for 'x' float32 of any shape"):
        synthesise(_shapeless(), 2, 0)
    with pytest.raises(DataError, match="the model has no inputs"):
        synthesise(model_of("", "y = Constant <value = float {1.0}> ()"), 2, 0)


def _shapeless() -> onnx.ModelProto:
    model = model_of("float[N] x")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model
