"""What the next step needs beside a model: compiler command lines, build files and provider options.

A model file, a chip and the inputs' shapes come in; the texts by file name, or the files written, go out. Nothing is
compiled. The texts follow the toolchains' public options as `backends.toolchain` and its sources name them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import backends
from backends import Backend, Fact, Kernel
from backends.toolchain import routes_of
from passes import storage
from passes.fitness import converted, nearest_opset, opset_of
from passes.graph_io import to_graph
from passes.model_io import Loaded, prepare
from passes.shapes import Shape, infer
from passes.structure import structures
from passes.workload import workload

SOC = {
    "310": "Ascend310", "310b1": "Ascend310B1", "310p1": "Ascend310P1", "310p3": "Ascend310P3", "910": "Ascend910A",
    "910-30": "Ascend910A", "910a": "Ascend910A", "910b": "Ascend910B3", "910b1": "Ascend910B1",
    "910b2": "Ascend910B2", "910b3": "Ascend910B3", "910b4": "Ascend910B4",
}  # fmt: skip
ARCHITECTURE = {
    "220": "mtp_220", "270": "mtp_270", "290": "mtp_290", "370": "mtp_372", "370s4": "mtp_372", "370x4": "mtp_372",
    "370x8": "mtp_372", "590": "mtp_592",
}  # fmt: skip
XPU = {"k100": "xpu1", "k200": "xpu1", "r200": "xpu2", "r300": "xpu2", "p800": "xpu3"}
SMALL_CHANNELS = 4
WORTH = 0.02
"""Share of the first convolution's time from which the small-channel layout is asked for."""


def emit(loaded: Loaded, model: Path, target: str, shapes: Mapping[str, Shape]) -> tuple[Path, ...]:
    """Write the deployment files beside a model.

    Args:
        loaded: The model that the file holds.
        model: The file; the texts stand beside it and take its stem.
        target: Chip.
        shapes: Of every input.

    Returns:
        The files written; none for a chip that runs ONNX files as they are, or of whose toolchain nothing is known.

    Raises:
        OutputError: A file cannot be written.
    """
    chip = backends.get(target)
    routes = routes_of(chip) or ()
    written: list[Path] = []
    notes: list[str] = []
    source = model
    found = opset_of(loaded.proto)
    wanted = nearest_opset(found, routes[0]) if routes else found
    if wanted != found:
        result = converted(loaded.proto, wanted)
        if isinstance(result, str):
            limit = "most" if found > wanted else "least"
            notes.append(f"{routes[0].name} takes opset {wanted} at {limit} and this is {found}: {result}")
        else:
            source = model.with_name(f"{model.stem}.opset{wanted}.onnx")
            storage.save(result, source, protected=[model])
            written.append(source)
    for name, text in texts(loaded, source.name, chip, shapes, notes).items():
        path = model.with_name(name)
        storage.save_text(text, path, protected=[model])
        written.append(path)
    return tuple(written)


def unneeded(chip: Backend) -> str | None:
    """Why nothing is written for a chip, and what to do about it; None where files are written."""
    routes = routes_of(chip)
    if routes is None:
        return (
            f"--emit-toolchain writes nothing: nothing is known of the toolchain of {chip.name}; name the one that "
            'takes its models in the chip file, such as toolchain = "ascend:310p3"'
        )
    if not routes:
        return f"--emit-toolchain writes nothing: {chip.name} runs ONNX files as they are, with ONNX Runtime"
    return None


def texts(
    loaded: Loaded, file: str, chip: Backend, shapes: Mapping[str, Shape], notes: list[str] | None = None
) -> dict[str, str]:
    """The texts by file name.

    Args:
        loaded: The model.
        file: Name of its file, as the texts say it.
        chip: A variant of a family with a toolchain; others give nothing.
        shapes: Of every input.
        notes: Sentences that each script starts with.
    """
    stem, (family, variant) = Path(file).stem, chip.compiled_as
    said = "".join(f"# {note}\n" for note in notes or ())
    if family == "ascend":
        return {f"{stem}.atc.sh": _atc(loaded, file, chip, variant, shapes, said), f"{stem}.cann.py": _cann(file, said)}
    if family == "mlu":
        build = f"{stem}.magicmind.json"
        return {build: _build_file(loaded, variant, shapes), f"{stem}.magicmind.py": _magicmind(file, build, said)}
    if family == "kunlunxin":
        device = XPU.get(variant, "xpu2")
        return {f"{stem}.xtcl.py": _xtcl(file, device, shapes, said), f"{stem}.paddle.sh": _paddle(file, said)}
    return {}


def _atc(loaded: Loaded, file: str, chip: Backend, variant: str, shapes: Mapping[str, Shape], said: str) -> str:
    stem = Path(file).stem
    sizes = ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())
    options = [
        f"--framework=5 --model={shlex.quote(file)} --output={shlex.quote(stem)}",
        f"--input_format={'NCHW' if all(len(shape) == 4 for shape in shapes.values()) else 'ND'}",
        f"--input_shape={shlex.quote(sizes)}",
        f"--soc_version={SOC.get(variant, 'Ascend310P3')}",
        "--precision_mode=force_fp16",
    ]
    if small_channel_gain(loaded, chip, shapes) > WORTH:
        options.append("--enable_small_channel=1")
    if any(node.op_type in ("Gelu", "Erf") for node in loaded.proto.graph.node):
        options.append("--op_select_implmode=high_performance --optypelist_for_implmode=Gelu")
    lines = " \\\n    ".join(options)
    head = f"#!/bin/sh\n{said}# Compile for {chip.name}; soc_version is 'Ascend' and the name in npu-smi info.\n"
    return f"{head}atc {lines}\n"


def small_channel_gain(loaded: Loaded, chip: Backend, shapes: Mapping[str, Shape]) -> float:
    """Share of the first convolution's modelled time that a layout of four channels saves; 0 when it reads more."""
    model = prepare(loaded)
    known = infer(model, shapes)
    for structure in structures(to_graph(model)):
        work = workload(structure, known.get) if structure.op_type == "Conv" else None
        if work is None or work.matrix is None:
            continue
        if not set(work.inputs) & set(shapes) or work.matrix.channels > SMALL_CHANNELS:
            return 0.0
        four = Fact(value=SMALL_CHANNELS, source="hicann/asc-devkit: NC1HWC0_C04")
        plain, small = chip.cost(Kernel(head=work)), replace(chip, tile_in=four).cost(Kernel(head=work))
        return 0.0 if plain is None or small is None else 1 - small.seconds / plain.seconds
    return 0.0


def _cann(file: str, said: str) -> str:
    options = {"device_id": 0, "enable_cann_graph": True, "precision_mode": "force_fp16"}
    options |= {"op_select_impl_mode": "high_performance"}
    return (
        f"{said}# ONNX Runtime on Ascend: pip install onnxruntime-cann\n"
        "import onnxruntime\n\n"
        f"OPTIONS = {options!r}\n"
        f"session = onnxruntime.InferenceSession({file!r}, providers=[('CANNExecutionProvider', OPTIONS)])\n"
    )


def _build_file(loaded: Loaded, variant: str, shapes: Mapping[str, Shape]) -> str:
    initial = {value.name for value in loaded.proto.graph.initializer}
    inputs = [value.name for value in loaded.proto.graph.input if value.name not in initial]
    nhwc = {"src": "NCHW", "dst": "NHWC"}
    images = {str(index): nhwc for index, name in enumerate(inputs) if _is_image(shapes, name)}
    float_unit = variant.startswith(("370", "590"))
    content: dict[str, object] = {
        "archs": [ARCHITECTURE.get(variant, "mtp_372")],
        "graph_shape_mutable": False,
        "precision_config": {"precision_mode": "force_float16" if float_unit else "qint16_mixed_float16"},
        "opt_config": {"type64to32_conversion": True, "conv_scale_fold": True},
    }
    if images:
        content["convert_input_layout"] = images
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _is_image(shapes: Mapping[str, Shape], name: str) -> bool:
    return len(shapes.get(name, ())) == 4 and shapes[name][1] in (1, 3, 4)


def _magicmind(file: str, build: str, said: str) -> str:
    stem = Path(file).stem
    return (
        f"{said}# Build with MagicMind, then: mm_run --magicmind_model {stem}.mm --devices 0\n"
        "from pathlib import Path\n\n"
        "from magicmind.python.runtime import Builder, BuilderConfig, ModelKind, Network\n"
        "from magicmind.python.runtime.parser import Parser\n\n"
        "network, config = Network(), BuilderConfig()\n"
        f"Parser(ModelKind.kOnnx).parse(network, {file!r})\n"
        f"config.parse_from_string(Path({build!r}).read_text())\n"
        f"Builder().build_model({stem!r}, network, config).serialize_to_file({stem + '.mm'!r})\n"
    )


def _xtcl(file: str, device: str, shapes: Mapping[str, Shape], said: str) -> str:
    return (
        f"{said}# Compile with XTCL (TVM); XTCL_USE_FP16=1 in the environment runs float16.\n"
        "import onnx\nimport tvm\nfrom tvm import relay\n\n"
        f"shapes = {dict(shapes)!r}\n"
        f"module, params = relay.frontend.from_onnx(onnx.load({file!r}), shapes)\n"
        f"target = 'xpu -libs=xdnn -split-device-funcs -device-type={device}'\n"
        "with tvm.transform.PassContext(opt_level=3, disabled_pass=['xgraph_layout_opt']):\n"
        "    library = relay.build(module, target=target, params=params)\n"
        f"library.export_library({Path(file).stem + '.so'!r})\n"
    )


def _paddle(file: str, said: str) -> str:
    stem = Path(file).stem
    return (
        f"#!/bin/sh\n{said}# The Paddle route: convert, then run with paddlepaddle-xpu and use_xpu.\n"
        f"x2paddle --framework=onnx --model={shlex.quote(file)} --save_dir={shlex.quote(stem + '.paddle')}\n"
    )
