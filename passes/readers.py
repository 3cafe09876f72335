"""Inputs as files hold them: .npz, .npy, ONNX test data, images, a Python function.

One item of the user's data list comes in, a `Block` of arrays by input name goes out, or a DataError that names the
file. Whether the arrays fit the model is not judged here.
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError
from PIL import Image, UnidentifiedImageError

from passes.errors import DataError
from passes.interface import Slot
from passes.records import Array
from passes.settings import ImagePreparation

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
DEFAULT_IMAGE = 224
"""Side of images for inputs whose height and width are open, when no crop is given."""

_USER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What the user's own function may raise; the command line shows it in one line."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Block:
    """What one item of the data list holds.

    Attributes:
        arrays: By input name.
        total: Samples that the item has, of which some may not have been read; None means all were read.
        taken: Which of them were read, ascending; None means all.
        files: Name of the file of each sample that was read, for image folders.
    """

    arrays: Mapping[str, Array]
    total: int | None = None
    taken: Array | None = None
    files: tuple[str, ...] | None = None


def read(item: str, slots: tuple[Slot, ...], image: ImagePreparation, limit: int, seed: int) -> Block:
    """Read one item of the data list.

    Args:
        item: A file, a folder, or `file.py:function`.
        slots: Inputs of the model.
        image: How images are prepared.
        limit: Images to read at most, chosen by the seed.
        seed: Of that choice.

    Raises:
        DataError: The item does not exist, is of no known kind, or cannot be read.
    """
    script, colon, function = item.rpartition(":")
    if colon and script.endswith(".py"):
        return Block(arrays=_call(Path(script), function))
    path = Path(item)
    if not path.exists():
        raise DataError(f"there is no data at {item}; check the path")
    if path.is_dir():
        return _read_folder(path, slots, image, limit, seed)
    if path.suffix == ".npz":
        return Block(arrays=_positional(read_npz(path), slots))
    if path.suffix == ".npy":
        if len(slots) != 1:
            raise DataError(
                f"{path} holds one array, the model has {len(slots)} inputs; give an .npz with {_list(slots)}"
            )
        return Block(arrays={slots[0].name: read_npy(path)})
    raise DataError(f"{path} is no .npz, .npy, folder or file.py:function; convert the data to one of them")


def read_npy(path: Path) -> Array:
    """One array; pickled objects are refused."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a NumPy array: {error}; save it with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of several arrays; name it .npz")
    return array


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays by name; pickled objects are refused."""
    try:
        # Opened here, because NumPy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not an .npz archive: {error}; save it with numpy.savez") from error


def _list(slots: tuple[Slot, ...]) -> str:
    return ", ".join(str(slot) for slot in slots)


def _positional(arrays: dict[str, Array], slots: tuple[Slot, ...]) -> dict[str, Array]:
    """Arrays that numpy.savez numbered itself belong to the inputs in order."""
    numbered = [f"arr_{index}" for index in range(len(slots))]
    if sorted(arrays) != sorted(numbered):
        return arrays
    return {slot.name: arrays[name] for slot, name in zip(slots, numbered, strict=True)}


def _call(script: Path, function: str) -> Mapping[str, Array]:
    if not script.is_file():
        raise DataError(f"there is no file {script} to take {function!r} from; check the path")
    spec = importlib.util.spec_from_file_location(f"_user_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise DataError(f"{script} cannot be loaded as Python; check the file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function, None)
        if not callable(found):
            raise DataError(f"{script} has no function {function!r}; define it or name another")
        result = found()
    except _USER_ERRORS as error:
        raise DataError(f"{script}:{function} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, Mapping):
        raise DataError(f"{script}:{function} gave a {type(result).__name__}; expected a dict of input name to array")
    return {str(name): np.asarray(value) for name, value in result.items()}


def _read_folder(path: Path, slots: tuple[Slot, ...], image: ImagePreparation, limit: int, seed: int) -> Block:
    sets = [path] if any(path.glob("input_*.pb")) else sorted(path.glob("test_data_set_*"), key=_number)
    if sets:
        return Block(arrays=_read_test_data(sets, slots))
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"folder {path} holds neither test_data_set_* nor images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return _read_images(path, files, slots, image, limit, seed)


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"(\d+)(?=\D*$)", path.name)
    return (int(digits.group()) if digits else -1, path.name)


def _read_test_data(folders: list[Path], slots: tuple[Slot, ...]) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {}
    names = {slot.name for slot in slots}
    for folder in folders:
        files = sorted(folder.glob("input_*.pb"), key=_number)
        if not files:
            raise DataError(f"{folder} holds no input_*.pb; remove the folder or add them")
        for file in files:
            name, array = _read_tensor(file)
            if name not in names:
                index = _number(file)[0]
                if not 0 <= index < len(slots):
                    raise DataError(f"{file} belongs to no input of the model; its inputs are {_list(slots)}")
                name = slots[index].name
            parts.setdefault(name, []).append(array)
    if len({len(arrays) for arrays in parts.values()}) > 1:
        counts = ", ".join(f"{name!r} {len(arrays)}" for name, arrays in parts.items())
        raise DataError(f"not every test_data_set has every input: {counts}; remove the incomplete ones")
    try:
        return {name: np.concatenate([np.atleast_1d(array) for array in arrays]) for name, arrays in parts.items()}
    except ValueError as error:
        raise DataError(f"the test_data_sets differ in shape and cannot be one array: {error}") from error


def _read_tensor(file: Path) -> tuple[str, Array]:
    try:
        tensor = onnx.TensorProto.FromString(file.read_bytes())
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (DecodeError, TypeError, ValueError, KeyError, OSError) as error:
        raise DataError(f"{file} is not a serialised tensor: {' '.join(str(error).split())}") from error


def _read_images(
    path: Path, files: list[Path], slots: tuple[Slot, ...], image: ImagePreparation, limit: int, seed: int
) -> Block:
    if len(slots) != 1:
        raise DataError(f"folder {path} of images fits one input; the model has {len(slots)}: {_list(slots)}")
    layout = _layout(slots[0], image)
    taken = np.arange(len(files))
    if len(files) > limit:
        taken = np.sort(np.random.default_rng(seed).choice(len(files), size=limit, replace=False))
    chosen = [files[index] for index in taken]
    arrays = np.stack([_prepare(file, slots[0], layout, image) for file in chosen])
    return Block(
        arrays={slots[0].name: arrays}, total=len(files), taken=taken, files=tuple(file.name for file in chosen)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    channels: int
    height: int
    width: int
    channels_first: bool


def _layout(slot: Slot, image: ImagePreparation) -> _Layout:
    shape = slot.shape
    if shape is None or len(shape) != 4 or (shape[1] not in (1, 3) and shape[3] not in (1, 3)):
        raise DataError(f"images need an input of rank 4 with 1 or 3 channels; the model's input is {slot}")
    first = shape[1] in (1, 3)
    channels, sides = (shape[1], shape[2:]) if first else (shape[3], shape[1:3])
    default = image.crop or DEFAULT_IMAGE
    height, width = (side if isinstance(side, int) else default for side in sides)
    if image.crop is not None and (height, width) != (image.crop, image.crop):
        raise DataError(
            f"the image crop is {image.crop}, the model's input is {slot}; set the crop to the input's side"
        )
    count = int(channels) if isinstance(channels, int) else 3
    if len(image.mean) not in (1, count) or len(image.std) not in (1, count):
        raise DataError(f"image mean and std have 3 values, the model's input is {slot}; give one value")
    if slot.dtype is not None and slot.dtype.kind in "iu" and image.divide_by != 1:
        raise DataError(f"input {slot} takes whole pixels; set the image's divide_by to 1, it is {image.divide_by:g}")
    return _Layout(channels=count, height=height, width=width, channels_first=first)


def _prepare(file: Path, slot: Slot, layout: _Layout, image: ImagePreparation) -> Array:
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if layout.channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise DataError(f"{file} is not an image that can be read: {error}; remove or replace it") from error
    if image.crop is not None:
        scale = image.crop / min(picture.size)
        sides = (max(image.crop, round(picture.width * scale)), max(image.crop, round(picture.height * scale)))
        picture = picture.resize(sides, Image.Resampling.BILINEAR)
        left, top = (picture.width - image.crop) // 2, (picture.height - image.crop) // 2
        picture = picture.crop((left, top, left + image.crop, top + image.crop))
    elif picture.size != (layout.width, layout.height):
        picture = picture.resize((layout.width, layout.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, dtype=np.float32).reshape(layout.height, layout.width, layout.channels)
    if image.channels == "bgr":
        pixels = pixels[..., ::-1]
    mean, std = np.asarray(image.mean, dtype=np.float32), np.asarray(image.std, dtype=np.float32)
    values: Array = (pixels / np.float32(image.divide_by) - mean) / std
    values = values.transpose(2, 0, 1) if layout.channels_first else values
    dtype = slot.dtype or np.dtype(np.float32)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        values = np.clip(np.rint(values), bounds.min, bounds.max)
    return np.ascontiguousarray(values, dtype=dtype)
