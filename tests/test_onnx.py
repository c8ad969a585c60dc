"""Against ONNX: its reference evaluator, the test cases that come with it, and ONNX Runtime where it is installed.

Ten training steps beside the evaluator are in test_origins.py. Errors are multiples of the dtype's ``eps``, relative to
the largest magnitude; the evaluator computes in the dtype of the data, so most of what is seen in float32 are its own.
"""

from __future__ import annotations

import builtins
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastbn
from tests import tolerances
from tests.data_for_tests import same_bits, tensor
from tests.origins.compare import DTYPES, largest_differences
from tests.origins.onnx import cases, evaluator, model_of, runtime

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.peers

MULTIPLE = 16
"""Of ``eps``. The evaluator rounds an output seven times, in terms larger than it, and sums hundreds of values in the
dtype itself."""
SHAPES = [(50, 4), (8, 4, 9), (5, 4, 6, 7), (3, 4, 2, 5, 6)]
RUNNERS = [evaluator, runtime]


def layer_like_onnx(rng, dtype, *, momentum=0.1, **options):
    """A layer that has parameters, statistics and ONNX's conventions."""
    bn = fastbn.BatchNorm(4, momentum=momentum, correction=0, dtype=dtype, **options)
    bn.running_mean[:], bn.running_var[:] = rng.standard_normal(4), rng.uniform(0.5, 2.0, 4)
    if bn.affine:
        bn.gamma[:], bn.beta[:] = rng.standard_normal(4), rng.standard_normal(4)
    return bn


@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_steps_beside_the_runtime(dtype):
    found = largest_differences(cases(dtype, runtime), dtype)
    assert found.pop("gradients") is None  # ONNX has none
    for quantity, value in found.items():
        assert value <= tolerances.ORIGINS[dtype][quantity], quantity


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": 0.25, "eps": 2.0**-9}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_node_layer(rng, shape, options, dtype, training, run):
    """What the node computes, the layer that is read from it does too, in float64 to the last places."""
    bn = layer_like_onnx(rng, dtype, **options).train(training)
    node, initializers = fastbn.to_onnx(bn, name="layer", x="data", y="result")
    assert (node.name, node.op_type, node.output[0]) == ("layer", "BatchNormalization", "result")
    assert [*node.input] == ["data", *(tensor_proto.name for tensor_proto in initializers)]
    again = fastbn.from_onnx(node, initializers)
    assert again.training is training
    assert again.dtype == dtype
    assert again.axis == 1
    for a, b in zip(fastbn.to_onnx(again, name="layer", x="data", y="result"), (node, initializers), strict=True):
        assert a == b  # nothing gets lost on a second round
    x = tensor(rng, shape, dtype, mean=1.0, scale=2.0)
    out, *statistics = run(model_of(node, initializers, len(shape)))(x)
    assert tolerances.ulps(again(x), out, dtype) <= MULTIPLE
    assert len(statistics) == (2 if training else 0)
    for ours, theirs in zip((again.running_mean, again.running_var), statistics):  # noqa: B905 - none in inference
        assert tolerances.ulps(ours, theirs, dtype) <= MULTIPLE


def bundled_cases():
    """The test cases of the operator that come with the onnx package: name, model, inputs, outputs."""
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators overflow while they are made
        cases = loader.load_model_tests(kind="node")
    cases += loader.load_model_tests(kind="pytorch-converted")
    for case in cases:
        if "batchnorm" not in case.name.lower():
            continue
        if case.model is not None:
            for inputs, outputs in case.data_sets:
                yield case.name, case.model, inputs, outputs
            continue
        folder = Path(case.model_dir)
        for data in sorted(folder.glob("test_data_set_*")):
            inputs, outputs = (
                [onnx.numpy_helper.to_array(onnx.load_tensor(path)) for path in sorted(data.glob(f"{kind}_*.pb"))]
                for kind in ("input", "output")
            )
            yield case.name, onnx.load(folder / "model.onnx"), inputs, outputs


def test_bundled_cases():
    """All of them: inference and training mode, opset 15 and opset 6, whatever the package has."""
    names = []
    for name, model, inputs, outputs in bundled_cases():
        (node,) = model.graph.node
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        given = dict(zip((value.name for value in model.graph.input), inputs, strict=False))
        given |= {tensor_proto.name: tensor_proto for tensor_proto in model.graph.initializer}
        x = given.pop(node.input[0])
        bn = fastbn.from_onnx(node, given, opset=opset)
        assert bn.training is ("training" in name)
        results = [bn(x), bn.running_mean, bn.running_var][: len(outputs)]
        for ours, theirs in zip(results, outputs, strict=True):
            assert ours.dtype == theirs.dtype
            assert tolerances.ulps(ours, theirs, np.float32) <= MULTIPLE, name
        names.append(name)
    assert {f"test_batchnorm_{kind}{mode}" for kind in ("example", "epsilon") for mode in ("", "_training_mode")} <= {
        *names
    }
    assert {"test_BatchNorm1d_3d_input_eval", "test_BatchNorm2d_eval", "test_BatchNorm3d_momentum_eval"} <= {*names}


ARRAYS = {
    "s": np.array([1.0, 2.0], np.float32),
    "b": np.array([3.0, 4.0], np.float32),
    "m": np.array([5.0, 6.0], np.float32),
    "v": np.array([7.0, 8.0], np.float32),
}


def node_of(outputs=1, inputs=("x", "s", "b", "m", "v"), **options):
    return onnx.helper.make_node("BatchNormalization", inputs, [f"y{i}" for i in range(outputs)], **options)


def test_what_an_inference_node_says():
    bn = fastbn.from_onnx(node_of(), ARRAYS)
    assert bn.training is False
    assert bn.eps == float(np.float32(1e-5))
    assert bn.momentum == 1 - float(np.float32(0.9))
    assert bn.correction == 0
    assert bn.num_batches_tracked == 0
    for attribute, array in zip(("gamma", "beta", "running_mean", "running_var"), ARRAYS.values(), strict=True):
        ours = getattr(bn, attribute)
        assert same_bits(ours, array)
        assert not np.shares_memory(ours, array)
    custom = fastbn.from_onnx(node_of(epsilon=0.25, momentum=0.75), ARRAYS)
    assert (custom.eps, custom.momentum) == (0.25, 0.25)


def test_forms_of_initializers():
    protos = [onnx.numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    other = onnx.numpy_helper.from_array(np.ones((3, 3), np.int64), "other")
    graph = onnx.helper.make_graph([], "graph", [], [], [other, *protos])
    expected = fastbn.from_onnx(node_of(), ARRAYS)
    for given in (
        protos,
        iter(protos),
        graph.initializer,
        {proto.name: proto for proto in protos},
        {**ARRAYS, "s": protos[0], "other": None},
    ):
        bn = fastbn.from_onnx(node_of(), given)
        assert repr(bn) == repr(expected)
        for name, value in bn.state_dict().items():
            assert same_bits(value, expected.state_dict()[name])


def test_the_wider_dtype():
    double = {name: array.astype(np.float64) for name, array in ARRAYS.items()}
    assert fastbn.from_onnx(node_of(), double).dtype == np.float64
    mixed = fastbn.from_onnx(node_of(), {**ARRAYS, "m": double["m"]})
    assert mixed.dtype == mixed.gamma.dtype == mixed.running_mean.dtype == np.float64


@pytest.mark.parametrize(
    ("opset", "node", "training"),
    [
        (1, node_of(consumed_inputs=[0, 0, 0, 1, 1], is_test=1), False),
        (6, node_of(is_test=1), False),
        (6, node_of(is_test=0, spatial=1), True),
        (6, node_of(), True),
        (6, node_of(5), True),
        (7, node_of(spatial=1), False),
        (8, node_of(), False),
        (7, node_of(5), True),
        (9, node_of(), False),
        (13, node_of(3), True),
        (14, node_of(), False),
        (14, node_of(3, training_mode=1), True),
        (15, node_of(1, training_mode=1), True),
        (15, node_of(1, training_mode=0), False),
        (22, node_of(1), False),
    ],
)
def test_opsets(opset, node, training):
    assert fastbn.from_onnx(node, ARRAYS, opset=opset).training is training


def test_outputs_without_a_name_do_not_count():
    node = node_of()
    node.output.extend(["", ""])
    assert fastbn.from_onnx(node, ARRAYS).training is False
    assert fastbn.from_onnx(node, ARRAYS, opset=9).training is False


@pytest.mark.parametrize(("opset", "outputs"), [(7, 1), (9, 1), (9, 5)])
def test_older_opsets_in_the_runtime(rng, opset, outputs):
    """The evaluator has the older versions otherwise than ONNX describes them; the runtime is the oracle here."""
    node = onnx.helper.make_node(
        "BatchNormalization", ["x", *"sbmv"], [f"y{i}" for i in range(outputs)], epsilon=0.125, momentum=0.75
    )
    arrays = dict(zip("sbmv", rng.uniform(0.5, 2.0, (4, 4)).astype(np.float32), strict=True))
    protos = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    bn = fastbn.from_onnx(node, arrays, opset=opset)
    x = tensor(rng, (5, 4, 6), np.float32)
    results = runtime(model_of(node, protos, 3, opset))(x)
    assert tolerances.ulps(bn(x), results[0], np.float32) <= MULTIPLE
    if outputs > 1:
        assert tolerances.ulps(bn.running_mean, results[1], np.float32) <= MULTIPLE
        assert tolerances.ulps(bn.running_var, results[2], np.float32) <= MULTIPLE


def external():
    proto = onnx.numpy_helper.from_array(ARRAYS["s"], "s")
    proto.data_location = onnx.TensorProto.EXTERNAL
    return proto


def tensor_of(kind, **changes):
    proto = onnx.helper.make_tensor("s", kind, [2], [1.0, 2.0])
    for name, value in changes.items():
        setattr(proto, name, value)
    return {**ARRAYS, "s": proto}


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_half_precision_is_widened(kind):
    bn = fastbn.from_onnx(node_of(), tensor_of(kind))
    assert bn.dtype == bn.gamma.dtype == np.float32
    assert bn.gamma.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("node", ARRAYS), {}, TypeError, "node: expected a NodeProto or ModelProto, got str 'node'"),
        (
            (onnx.helper.make_node("Relu", ["x"], ["y"]), ARRAYS),
            {},
            ValueError,
            r"node.op_type: expected one of .*Relu",
        ),
        ((node_of(domain="com.example"), ARRAYS), {}, ValueError, r"node.domain: expected one of .*com.example"),
        ((node_of(is_test=1), ARRAYS), {}, ValueError, r"node.attribute \(opset 15\): got unknown keys \['is_"),
        (
            (node_of(spatial=1), ARRAYS),
            {"opset": 9},
            ValueError,
            r"node.attribute \(opset 9\): got unknown keys \['spatial'\]",
        ),
        (
            (node_of(training_mode=1), ARRAYS),
            {"opset": 13},
            ValueError,
            r"node.attribute \(opset 9\): got unknown keys \['train",
        ),
        (
            (node_of(spatial=0), ARRAYS),
            {"opset": 7},
            ValueError,
            "node.attribute spatial: expected True: .*, got False",
        ),
        (
            (node_of(3), ARRAYS),
            {},
            ValueError,
            "node.output: expected at most 1, of .*=False, got 3",
        ),
        ((node_of(5, training_mode=1), ARRAYS), {}, ValueError, "node.output: expected at most 3, of .*=True, got 5"),
        ((node_of(inputs=["x", "s"]), ARRAYS), {}, ValueError, "node.input: expected 5: x, scale, B, .*, got 2"),
        ((node_of(), ARRAYS), {"opset": 0}, ValueError, "opset: expected an integer above 0"),
        ((node_of(), ARRAYS), {"opset": 15.0}, TypeError, "opset: expected an integer"),
        ((node_of(), {}), {}, ValueError, r"initializers: expected one of the name 's', got the names \[\]"),
        ((node_of(), 3), {}, TypeError, "initializers: expected several TensorProto, got int 3"),
        ((node_of(), [ARRAYS["s"]]), {}, TypeError, r"initializers\[0\]: expected a TensorProto, got an array"),
        ((node_of(), {**ARRAYS, "s": np.ones((2, 1))}), {}, ValueError, r"initializers\['s'\]: expected 1 dimension"),
        ((node_of(), {**ARRAYS, "v": np.ones(3)}), {}, ValueError, r"initializers\['v'\]: expected shape \(2,\)"),
        ((node_of(), {**ARRAYS, "m": np.ones(2, int)}), {}, TypeError, r"initializers\['m'\]: expected dtype float32"),
        ((node_of(), {**ARRAYS, "v": -np.ones(2)}), {}, ValueError, r"initializers\['v'\]: expected no value below"),
        ((node_of(), tensor_of(1, data_type=99)), {}, ValueError, r"initializers\['s'\].data_type: .*, got 99"),
        ((node_of(), tensor_of(1, data_type=0)), {}, ValueError, r"initializers\['s'\].data_type: .*, got 0"),
        ((node_of(), tensor_of(1, raw_data=b"abc")), {}, ValueError, r"initializers\['s'\]: expected a whole tensor"),
        ((node_of(), tensor_of(onnx.TensorProto.INT32)), {}, TypeError, r"initializers\['s'\]: expected dtype float32"),
        ((node_of(), None), {}, TypeError, "initializers: expected a mapping or an iterable with a node, got None"),
        ((node_of(), {**ARRAYS, "s": external()}), {}, ValueError, r"initializers\['s'\].data_location: expected 0: "),
        ((node_of(momentum=1.5), ARRAYS), {}, ValueError, "momentum: expected 0 to 1, got 1.5"),
        ((node_of(epsilon=-1.0), ARRAYS), {}, ValueError, "eps: expected a finite number not below 0, got -1"),
    ],
)
def test_nodes_that_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        fastbn.from_onnx(*arguments, **options)


@pytest.mark.parametrize(
    ("bn", "options", "error", "message"),
    [
        (fastbn.BatchNorm(3).freeze(), {}, TypeError, "bn: expected a BatchNorm, got FrozenBatchNorm"),
        (fastbn.BatchNorm(3, axis=-1, correction=0), {}, ValueError, "bn.axis: expected 1, where .*, got -1"),
        (fastbn.BatchNorm(3, track_running_stats=False), {}, ValueError, "bn.track_running_stats: expected True"),
        (fastbn.BatchNorm(3), {}, ValueError, "bn.correction: expected 0: ONNX's .*, got 1"),
        (
            fastbn.BatchNorm(3, correction=0, momentum=None),
            {},
            ValueError,
            "bn.momentum: expected a number: .*, got None",
        ),
        (fastbn.BatchNorm(3, eps=1e-50).eval(), {}, ValueError, "bn.eps: expected a number in the range of float32"),
        (fastbn.BatchNorm(3, eps=1e50).eval(), {}, ValueError, "bn.eps: expected a number in the range of float32"),
        (fastbn.BatchNorm(3).eval(), {"name": 1}, TypeError, "name: expected a str, got int 1"),
        (fastbn.BatchNorm(3).eval(), {"y": None}, TypeError, "y: expected a str, got NoneType"),
    ],
)
def test_layers_that_are_refused(bn, options, error, message):
    with pytest.raises(error, match=message):
        fastbn.to_onnx(bn, **options)


def test_evaluation_needs_no_conventions_of_training():
    """Correction and a cumulative average do not matter to inference."""
    bn = fastbn.BatchNorm2d(3, momentum=None).eval()
    node, initializers = fastbn.to_onnx(bn)
    assert [attribute.name for attribute in node.attribute] == ["epsilon"]
    assert fastbn.from_onnx(node, initializers).training is False


def test_replaced_arrays(rng):
    """Of another dtype: all in the wider one. Of another shape: refused."""
    bn = fastbn.BatchNorm(3).eval()
    bn.gamma = rng.standard_normal(3)
    assert {proto.data_type for proto in fastbn.to_onnx(bn).initializers} == {onnx.TensorProto.DOUBLE}
    bn.gamma = bn.running_mean[::-1]
    fastbn.to_onnx(bn)
    bn.gamma = np.ones(4)
    with pytest.raises(ValueError, match=r"gamma: expected shape \(3,\)"):
        fastbn.to_onnx(bn)


def test_without_onnx(monkeypatch):
    imported = builtins.__import__

    def without_onnx(name, *arguments, **options):
        if name == "onnx":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    node = node_of()
    monkeypatch.setattr(builtins, "__import__", without_onnx)
    for call in (lambda: fastbn.from_onnx(node, ARRAYS), lambda: fastbn.to_onnx(fastbn.BatchNorm(3).eval())):
        with pytest.raises(ImportError, match=r"expected the package onnx, fastbn's extra \[onnx\]"):
            call()


def model_with(nodes, initializers, imports=(("", 15),), inputs=("x",)):
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inputs]
    graph = onnx.helper.make_graph(nodes, "graph", values, [], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(*each) for each in imports])


def protos(**arrays):
    return [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]


@pytest.mark.parametrize(
    "imports",
    [
        [("", 15)],
        [("ai.onnx.ml", 3), ("", 15)],
        [("com.microsoft", 1), ("ai.onnx.ml", 3), ("ai.onnx", 15)],
    ],
)
def test_a_model_says_which_opset_it_is_of(imports):
    """Opset 3, of another domain, would make a training layer of an inference node."""
    (layer,) = fastbn.from_onnx(model_with([node_of()], protos(**ARRAYS), imports)).values()
    assert layer.training is False
    assert repr(layer) == repr(fastbn.from_onnx(node_of(), ARRAYS))


def test_an_old_model():
    (layer,) = fastbn.from_onnx(model_with([node_of()], protos(**ARRAYS), [("ai.onnx.ml", 15), ("", 6)])).values()
    assert layer.training is True


def test_where_a_models_values_are():
    """Initialisers, ``Constant`` nodes of each kind, and ``Identity`` nodes in front, several and shared."""
    make = onnx.helper.make_node
    nodes = [
        make("Constant", [], ["ones"], value=onnx.numpy_helper.from_array(np.ones(2, np.float32))),
        make("Constant", [], ["floats"], value_floats=[3.0, 4.0]),
        make("Identity", ["m"], ["same"]),
        make("Identity", ["same"], ["again"]),
        make("Relu", ["x"], ["r"]),
        make("BatchNormalization", ["r", "ones", "floats", "again", "v"], ["second", ""]),
        make("BatchNormalization", ["second", "ones", "floats", "m", "ones"], ["first"]),
        make("BatchNormalization", ["x", "?", "?", "?", "?"], ["foreign"], domain="com.example"),
    ]
    layers = fastbn.from_onnx(model_with(nodes, protos(m=ARRAYS["m"], v=ARRAYS["v"])))
    assert [*layers] == ["second", "first"]  # the graph's order
    assert layers["second"].gamma.tolist() == [1.0, 1.0]
    assert layers["second"].beta.tolist() == [3.0, 4.0]
    assert layers["second"].running_mean.tolist() == [5.0, 6.0]
    assert layers["first"].running_var.tolist() == [1.0, 1.0]
    assert not np.shares_memory(layers["first"].gamma, layers["second"].gamma)
    assert fastbn.from_onnx(model_with([make("Relu", ["x"], ["y"])], [])) == {}


@pytest.mark.parametrize(
    ("nodes", "imports", "message"),
    [
        ([], [("", 15)], "node.input 's': expected an initializer or a constant, got a name that no node gives"),
        (
            [onnx.helper.make_node("Mul", ["x", "x"], ["s"])],
            [("", 15)],
            "node.input 's': expected an initializer or a constant, got the output of a node 'Mul'",
        ),
        (
            [onnx.helper.make_node("Identity", ["t"], ["s"]), onnx.helper.make_node("Identity", ["s"], ["t"])],
            [("", 15)],
            "node.input 's': expected an initializer or a constant, got the output of a node 'Identity'",
        ),
        (
            [onnx.helper.make_node("Constant", [], ["s"], value_ints=[1, 2])],
            [("", 15)],
            "node.input 's': expected a Constant node with a tensor or floats, got 'value_ints'",
        ),
        (
            [onnx.helper.make_node("Constant", [], ["s"], value_float=1.0)],
            [("", 15)],
            r"initializers\['s'\]: expected 1 dimension, got shape \(\)",
        ),
        ([], [("ai.onnx.ml", 3)], r"model.opset_import: expected one entry of .*, got \['ai.onnx.ml 3'\]"),
    ],
)
def test_models_that_are_refused(nodes, imports, message):
    rest = protos(**{name: array for name, array in ARRAYS.items() if name != "s"})
    model = model_with([*nodes, node_of()], rest, imports)
    with pytest.raises(ValueError, match=message):
        fastbn.from_onnx(model)


def test_a_model_brings_all_of_its_own():
    model = model_with([node_of()], protos(**ARRAYS))
    with pytest.raises(ValueError, match="opset: expected None with a model, which has its own, got 15"):
        fastbn.from_onnx(model, opset=15)
    with pytest.raises(ValueError, match="initializers: expected None with a model"):
        fastbn.from_onnx(model, ARRAYS)


@pytest.mark.parametrize("training", [False, True])
def test_one_dimension(rng, training):
    """Of a single channel, as the specification has it; the evaluator is the oracle in inference."""
    arrays = {name: array[:1] for name, array in ARRAYS.items()}
    layer = fastbn.from_onnx(node_of(3 if training else 1, training_mode=int(training)), arrays)
    x = rng.standard_normal(9, dtype=np.float32)
    column = fastbn.from_onnx(node_of(3 if training else 1, training_mode=int(training)), arrays)
    layer.keep_for_backward = column.keep_for_backward = True
    assert same_bits(layer(x), column(x[:, None])[:, 0])
    assert same_bits(layer.backward(x), column.backward(x[:, None])[:, 0])
    out = np.empty_like(x)
    assert layer(x, out=out) is out
    assert same_bits(out, column(x[:, None])[:, 0])
    if not training:
        expected = (x - 5) / np.sqrt(7 + 1e-5) * 1 + 3
        np.testing.assert_allclose(layer(x), expected, rtol=1e-6)
        assert fastbn.to_onnx(layer).node.op_type == "BatchNormalization"
    with pytest.raises(ValueError, match="x: expected 2 or more dimensions"):
        fastbn.from_onnx(node_of(), ARRAYS)(x)


def test_an_exported_network():
    """By PyTorch's exporter, with a layer of ``affine=False``."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    network = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3, affine=False), torch.nn.ReLU(), torch.nn.BatchNorm2d(3, eps=1e-3)
    )
    x = torch.randn(4, 3, 5, 5)
    network(x)
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    layers = list(fastbn.from_onnx(program.model_proto).values())
    assert [layer.training for layer in layers] == [False, False]
    ours = layers[1](np.maximum(layers[0](x.numpy()), 0))
    with torch.no_grad():
        np.testing.assert_allclose(ours, network(x).numpy(), atol=1e-6)


def test_epsilon_of_zero(rng):
    """Refused in training nodes only."""
    layer = fastbn.from_onnx(node_of(epsilon=0.0), ARRAYS)
    x = rng.standard_normal((4, 2), dtype=np.float32)
    expected = (x - ARRAYS["m"]) / np.sqrt(ARRAYS["v"]) * ARRAYS["s"] + ARRAYS["b"]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    assert fastbn.from_onnx(*fastbn.to_onnx(layer)).eps == 0
    with pytest.raises(ValueError, match="eps: expected a finite number above 0 in training"):
        fastbn.from_onnx(node_of(3, training_mode=1, epsilon=0.0), ARRAYS)
