"""Faults as a bug of the product would make them, the gates that each must fail, and how they are planted.

The gates that must fail leave out *is the trace* wherever the outputs can tell:
a bug in the exporter itself would be traced again, and a plan has no nodes to compare.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onerec_trt.core.artifacts import sha256
from onerec_trt.tools.pipeline import Folders
from onnx import helper, numpy_helper
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

SERVING, SCORING = "model.onnx", "scoring.onnx"
TRACE, SCORING_TRACE, STEPS = "model.onnx is the trace", "scoring.onnx is the trace", "steps alike in both graphs"
ITEMS, SCORES, LEFT_OUT = "items in range, distinct and in order", "scores are the scoring graph's", "no better item left out"
SCORING_GATES = tuple(f"scoring {what}{of}" for what in ("log-probabilities", "KL") for of in ("", ", mean"))
FEW = "scoring log-probabilities, few requests"
ORDER, TOP_1, HITS = "order outside the tie band", "top-1 outside the tie band", "hits within the paired interval of FP32"
REGRET = "score regret@16"
SOURCE, WEIGHTS, SCORING_WEIGHTS = "quantized checkpoint from its sources", "weights in the file", "weights in scoring.onnx"
WIDTH = 16

Model = onnx.ModelProto


class Fault(NamedTuple):
    """What is planted in which files, the gates that must fail, and what the message of the first one must name.

    `elsewhere`: for faults that lie in no exported graph. `source_alone`: only the gate on the quantized checkpoint is asked; the others
    would pass what was exported from it, and take their time.
    """

    name: str
    plant: Callable[[Model], None]
    gates: tuple[str, ...]
    place: str = ""
    files: tuple[str, ...] = (SERVING,)
    elsewhere: Callable[[Folders], None] | None = None
    precision: str = "fp8-row"
    source_alone: bool = False


def node(model: Model, name: str) -> onnx.NodeProto:
    (found,) = [each for each in model.graph.node if each.name == name]
    return found


def behind(model: Model, value: str, op_type: str, constant: np.ndarray | float | None, **attributes: int) -> None:
    """Put a node behind a value, which everything that read it reads now; a graph output keeps its name."""
    is_output = value in {output.name for output in model.graph.output}
    new = f"{value}.{len(model.graph.node)}"
    inner, outer = (new, value) if is_output else (value, new)
    place = next(number for number, each in enumerate(model.graph.node) if value in each.output)
    for each in model.graph.node:
        side = each.output if is_output else each.input
        for number, name in enumerate(side):
            if name == value:
                side[number] = inner if is_output else outer
    inputs = [inner]
    if constant is not None:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), f"{new}.constant"))
        inputs.append(f"{new}.constant")
    model.graph.node.insert(place + 1, helper.make_node(op_type, inputs, [outer], **attributes))


def wire(model: Model, name: str, place: int, value: str) -> None:
    node(model, name).input[place] = value


def set_attributes(model: Model, attribute: str, value: float, op_types: tuple[str, ...]) -> None:
    for each in model.graph.node:
        for found in each.attribute:
            if found.name == attribute and each.op_type.startswith(op_types):
                found.CopyFrom(helper.make_attribute(attribute, value))


def scores_times(factor: float) -> Callable[[Model], None]:
    return lambda model: behind(model, "scores", "Mul", np.float32(factor))


def scores_wired_to_another_tensor(model: Model) -> None:
    (last,) = [each for each in model.graph.node if "scores" in each.output]
    last.output[0] = "true"
    model.graph.node.append(helper.make_node("Identity", ["step1.beam.0"], ["scores"]))


def garbage_behind_the_tenth_item(model: Model) -> None:
    offset = np.zeros((1, WIDTH, 3), np.int64)
    offset[:, 10:, 2] = 7
    behind(model, "sids", "Add", offset)
    behind(model, "sids", "Mod", np.int64(32))


def reordered(*outputs: str) -> Callable[[Model], None]:
    places = np.array([0, *range(9, 0, -1), *range(10, WIDTH)], np.int64)

    def plant(model: Model) -> None:
        for output in outputs:
            behind(model, output, "Gather", places, axis=1)

    return plant


def an_item_twice(model: Model) -> None:
    for output in ("sids", "scores"):
        behind(model, output, "Gather", np.array([0, *range(WIDTH - 1)], np.int64), axis=1)


def a_token_out_of_range(model: Model) -> None:
    behind(model, "sids", "Add", np.array([0, 0, 32], np.int64))


def without(name: str, residual: str) -> Callable[[Model], None]:
    """The rest reads what would have been the input of the residual addition."""

    def plant(model: Model) -> None:
        skipped = f"{name}.0"
        for each in model.graph.node:
            for place, value in enumerate(each.input):
                if value == skipped:
                    each.input[place] = residual

    return plant


def weights_of_another_layer(model: Model) -> None:
    other = node(model, "step2.blocks.0.cross.o")
    for place, value in enumerate(other.input):
        if value.startswith("decoder."):
            wire(model, "step2.blocks.1.cross.o", place, value)


def last_token_masked(model: Model) -> None:
    attention = [each for each in model.graph.node if each.op_type == "ContextAttention"]
    behind(model, attention[0].input[3], "Sub", np.int64(1))


def long_contexts_cut(model: Model) -> None:
    """Few requests have one."""
    for each in [each.input[3] for each in model.graph.node if each.op_type == "ContextAttention"][:1]:
        behind(model, each, "Min", np.int64(6))


def half_the_beam(model: Model) -> None:
    behind(model, "step0.beam.0", "Add", np.array([[0.0] * 4 + [-1e4] * 4], np.float32))


def earlier_scores_weighed(model: Model) -> None:
    behind(model, "step1.beam.0", "Mul", np.float32(0.9))


def norms_epsilon(model: Model) -> None:
    set_attributes(model, "epsilon", 1e-3, ("RmsNorm",))


def routers_of_one(model: Model) -> None:
    """The second expert of every token gets the weight 0; the shared one keeps its own."""
    for weights in [each.output[1] for each in model.graph.node if each.op_type == "MoeRoute"]:
        behind(model, weights, "Mul", np.array([[1.0, 0.0, 1.0]], np.float32))


def ties_the_other_way(model: Model) -> None:
    """Groups of equal candidates in falling order of their numbers."""
    (body,) = [each for each in model.functions if each.name == "BeamStep"]
    for each in body.node:
        for attribute in each.attribute:
            if attribute.name == "largest":
                attribute.i = 1


def mask_off_by_one(model: Model) -> None:
    (body,) = [each for each in model.functions if each.name == "ContextNorm"]
    (less,) = [each for each in body.node if each.op_type == "Less"]
    less.op_type = "LessOrEqual"


def without_quantization(model: Model) -> None:
    """One layer runs in FP16: its codes are read as they are, its scales beside them are in no node."""
    quantized = node(model, "step1.blocks.0.cross.q")
    values = [helper.make_node("Cast", [quantized.input[place]], [f"half.{place}"], to=onnx.TensorProto.FLOAT16) for place in (0, 2)]
    quantized.op_type = "Linear"
    quantized.input[:] = ["half.0", "half.2"]
    del quantized.attribute[:]
    place = list(model.graph.node).index(quantized)
    for number, each in enumerate(values):
        model.graph.node.insert(place + number, each)


def wrong_parents(model: Model) -> None:
    behind(model, "step1.beam.1", "Mul", np.int64(0))


def history_exchanged(model: Model) -> None:
    attention = node(model, "step2.blocks.1.self.attention")
    attention.input[1], attention.input[2] = "step0.blocks.0.self.qkv.0", "step1.blocks.0.self.qkv.0"


def another_position(model: Model) -> None:
    places = [each for each in model.graph.node if each.op_type == "Gather" and each.input[0] == "decoder.position_embedding"]
    places[2].input[1] = places[1].input[1]


def head_of_another_step(model: Model) -> None:
    wire(model, "step2.head", 1, "decoder.heads.1.weight")


def keys_halved(model: Model) -> None:
    behind(model, "context.key_norm_0.0", "Mul", np.float16(0.5))


def a_weight_at_anothers_place(model: Model) -> None:
    weights = {each.name: each for each in model.graph.initializer}
    one, other = weights["decoder.heads.0.weight"], weights["decoder.heads.1.weight"]
    del one.external_data[:]
    one.external_data.extend(other.external_data)


def another_contract(model: Model) -> None:
    (entry,) = [each for each in model.metadata_props if each.key == "onerec_trt.io"]
    entry.value = entry.value.replace('"min_context":2', '"min_context":1')


def nothing(_: Model) -> None:
    """Both graphs are as they were."""


def rerecord(folder: Path, name: str) -> None:
    """Let the record of a stage name the content that a file has now."""
    record = json.loads((folder / "record.json").read_text())
    record["wrote"][name] = sha256(folder / name)
    (folder / "record.json").write_text(json.dumps(record))


def change_quantized(folders: Folders, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change one tensor of the quantized checkpoint, and its record."""
    shard = json.loads((folders.calibrated / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(folders.calibrated / shard)
    tensors[name] = change(tensors[name])
    save_file(tensors, folders.calibrated / shard, metadata={"format": "pt"})
    rerecord(folders.calibrated, shard)


def scales_after_the_export(folders: Folders) -> None:
    """All scales of one linear x 1.5; the export, before that, got them right."""
    change_quantized(folders, "blocks.0.ffn.down.weight_scale", lambda scale: scale * 1.5)
    record = json.loads((folders.exported / "record.json").read_text())
    record["read"]["quantized_checkpoint"] = sha256(folders.calibrated)
    (folders.exported / "record.json").write_text(json.dumps(record))


def one_channel_scale(folders: Folders) -> None:
    def change(scale: Tensor) -> Tensor:
        scale.view(-1)[3] *= 1.5
        return scale

    change_quantized(folders, "blocks.1.cross_attention.q.weight_scale", change)


def input_scale(folders: Folders) -> None:
    change_quantized(folders, "blocks.1.self_attention.o.input_scale", lambda scale: scale * 1.5)


def reference_scores(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Folders], None]:
    """The FP32 reference holds other scores of its items."""

    def plant(folders: Folders) -> None:
        path = folders.reference / "reference.safetensors"
        arrays = load_arrays(path)
        arrays["scores_nW"] = change(arrays["scores_nW"])
        save_arrays(arrays, path)
        rerecord(folders.reference, path.name)

    return plant


def targets_never_found(model: Model) -> None:
    """The last token of every item is another."""
    behind(model, "sids", "Add", np.array([[[0, 0, 16]]], np.int64))
    behind(model, "sids", "Mod", np.int64(32))


FAULTS = [
    Fault("scores are NaN", scores_times(np.nan), (SCORES, ITEMS), "scoring graph"),
    Fault("scores are zero", scores_times(0.0), (SCORES,), "item"),
    Fault("scores are another tensor", scores_wired_to_another_tensor, (SCORES,), "item"),
    Fault("items from rank 11 on are garbage", garbage_behind_the_tenth_item, (SCORES,), "item 1"),
    Fault("ranks 2 to 10 reversed, scores with them", reordered("sids", "scores"), (ITEMS, ORDER), "behind a worse one"),
    Fault("ranks 2 to 10 reversed, scores as they were", reordered("sids"), (SCORES, ORDER), "item"),
    Fault("an item twice", an_item_twice, (ITEMS,), "an item twice"),
    Fault("a token out of range", a_token_out_of_range, (ITEMS,), "out of range"),
    Fault(
        "step 2 leaves out the experts",
        without("step2.blocks.1.ffn.experts", "step2.blocks.1.self.o.0"),
        (STEPS, SCORES),
        "step2.head_norm",
    ),
    Fault(
        "step 2 leaves out the last cross attention",
        without("step2.blocks.1.cross.o", "step2.blocks.0.ffn.down.0"),
        (STEPS, SCORES),
        "step2.blocks.1.self",
    ),
    Fault("step 2 uses another layer's cross.o", weights_of_another_layer, (STEPS, SCORES), "step2.blocks.1.cross.o"),
    Fault("step 2 reads another layer's history", history_exchanged, (STEPS, SCORES), "step2.blocks.1.self.attention"),
    Fault("step 2 attends to the wrong parents", wrong_parents, (SCORES,), "item"),
    Fault("step 2 has the position of step 1", another_position, (SCORES,), "item"),
    Fault("step 2 has the head of step 1", head_of_another_step, (STEPS, SCORES), "step2.head"),
    Fault("the last context token is masked", last_token_masked, (SCORES,), "item"),
    Fault("half the beam inside", half_the_beam, (LEFT_OUT,), "lost at step 0"),
    Fault("earlier scores weighed by 0.9", earlier_scores_weighed, (SCORES,), "item"),
    Fault("epsilon 1e-3 in the norms", norms_epsilon, (STEPS, SCORES), "norm"),
    Fault("routers of one expert instead of two", routers_of_one, (SCORES,), "item"),
    Fault("keys of the context halved", keys_halved, (SCORES,), "item"),
    Fault("keys of the context halved in both graphs", keys_halved, (*SCORING_GATES, TRACE), "typical", (SERVING, SCORING)),
    Fault(
        "of long contexts the end is cut off in both graphs",
        long_contexts_cut,
        (FEW, TRACE, SCORING_TRACE),
        "the worst is",
        (SERVING, SCORING),
    ),
    Fault("the scoring graph alone has the wrong head", head_of_another_step, (*SCORING_GATES, SCORES, STEPS), "typical", (SCORING,)),
    Fault(
        "a weight of the scoring graph lies elsewhere",
        a_weight_at_anothers_place,
        (SCORING_WEIGHTS,),
        "decoder.heads.0.weight",
        (SCORING,),
    ),
    Fault("ties are broken the other way", ties_the_other_way, ("operator BeamStep", TRACE), "scores equal"),
    Fault("the mask of ContextNorm is off by one", mask_off_by_one, ("operator ContextNorm", TRACE), "with", (SERVING, SCORING)),
    Fault(
        "a layer is not quantized in either graph",
        without_quantization,
        (TRACE, SCORING_TRACE),
        "step1.blocks.0.cross.q",
        (SERVING, SCORING),
    ),
    Fault("another contract in the file", another_contract, (TRACE,), "onerec_trt.io"),
    Fault("a weight of the serving graph lies elsewhere", a_weight_at_anothers_place, (WEIGHTS,), "decoder.heads.0.weight"),
    Fault("every item has another last token", targets_never_found, ("overlap@10", "overlap@16", HITS, REGRET, TOP_1, SCORES), "regret"),
    Fault(
        "the scales of a linear x 1.5 after the export",
        nothing,
        (SOURCE, "packed model beside ModelOpt", "packed model beside ModelOpt, mean", WEIGHTS, SCORING_WEIGHTS),
        "blocks.0.ffn.down.weight_scale",
        (),
        scales_after_the_export,
    ),
    Fault(
        "calibration writes the scale of a channel x 1.5",
        nothing,
        (SOURCE,),
        "blocks.1.cross_attention.q.weight_scale",
        (),
        one_channel_scale,
        source_alone=True,
    ),
    Fault(
        "calibration writes a static input scale x 1.5",
        nothing,
        (SOURCE,),
        "blocks.1.self_attention.o.input_scale",
        (),
        input_scale,
        "fp8-static",
        source_alone=True,
    ),
    Fault(
        "the reference has the same score for every item",
        nothing,
        ("requests inside the tie band", REGRET),
        "",
        (),
        reference_scores(np.zeros_like),
    ),
]


def plant(folders: Folders, fault: Fault) -> None:
    """Change the files and the records with them, so that no check of hashes can see it."""
    for name in fault.files:
        model = onnx.load(folders.exported / name, load_external_data=False)
        fault.plant(model)
        (folders.exported / name).write_bytes(model.SerializeToString())
        rerecord(folders.exported, name)
    if fault.elsewhere is not None:
        fault.elsewhere(folders)
