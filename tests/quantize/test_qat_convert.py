"""Fake-quantized models as all-int8 ``.tflite`` files: the same codes, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tflite
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras_marks import KERAS

from edgekiln.errors import BadModelError
from edgekiln.export.interpret import run_graph
from edgekiln.export.ir import DType, Graph
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.quantize import qat_worker
from edgekiln.quantize.affine import quantize_array
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.qat import (
    QatConfig,
    activation_quantizers,
    quantize_model,
    weight_quantizers,
)
from edgekiln.quantize.qat_convert import check_convertible, convert_qat
from edgekiln.quantize.tflite_rewrite import file_layout
from edgekiln.train.datasets import load_dataset
from edgekiln.train.model_file import write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
IMAGES = np.random.default_rng(3).normal(size=(16, 6, 6, 3)).astype(np.float32)


def conv(filters: int = 4, **options: Any) -> Any:
    return layers.Conv2D(filters, 3, padding="same", **options)


def image_model(body: Callable[[Any], Any], shape: tuple[int, ...] = (6, 6, 3)) -> Any:
    keras.utils.set_random_seed(5)
    image = layers.Input(shape, name="image")
    model = keras.Model(image, body(image), name="small")
    generator = np.random.default_rng(5)
    for layer in model.layers:
        if getattr(layer, "use_bias", False):
            layer.bias.assign(generator.normal(size=layer.bias.shape) * 0.1)
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.3, 1.2, w.shape) for w in layer.weights])
    return model


def convert_here(model: Any, directory: Path) -> bytes:
    """What the worker does, without the seconds that a process costs."""
    write_model(model, directory / "m.keras")
    job = {"model": str(directory / "m.keras"), "where": "m", "output": str(directory / "m.tflite")}
    qat_worker.convert(job, lambda _: None)
    data = (directory / "m.tflite").read_bytes()
    audit_int8(data, "m")
    return data


def linear_ops(graph: Graph) -> list[Any]:
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    return [op for op in graph.ops if op.name in names]


def assert_same_weights(model: Any, graph: Graph) -> None:
    """Every operator holds the codes, scales and bias of a layer, and every layer is there."""
    expected = weight_quantizers(model)
    found = set()
    for op in linear_ops(graph):
        kernel, bias = graph.tensor(op.inputs[1]), graph.tensor(op.inputs[-1])
        operand = graph.tensor(op.inputs[0])
        assert kernel.data is not None and bias.data is not None
        (name,) = {
            name
            for name, layer in expected.items()
            if np.array_equal(file_layout(layer.weight_codes(), op.name), kernel.data)
        }
        found.add(name)
        layer = expected[name]
        scales = layer.weight_scales()
        np.testing.assert_array_equal(np.float32(kernel.q.scales), scales)
        product = np.float64(operand.q.scale) * scales
        np.testing.assert_array_equal(np.float32(bias.q.scales), product.astype(np.float32))
        np.testing.assert_allclose(bias.data * product, np.asarray(layer.bias), atol=product.max())
        packed = layer.weight_bits == 4 and op.name != "TRANSPOSE_CONV"
        assert kernel.dtype is (DType.INT4 if packed else DType.INT8)
    assert found == set(expected)


def assert_same_ranges(model: Any, graph: Graph) -> None:
    grids = {(each.scale, each.zero_point) for each in activation_quantizers(model).values()}
    for tensor in graph.tensors.values():
        if tensor.data is None:
            assert (tensor.q.scale, tensor.q.zero_point) in grids


def output_codes(graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Computes each sample with the compiler's definitions."""
    results = []
    for sample in zip(*inputs, strict=True):
        arguments = [
            quantize_array(
                x[np.newaxis], graph.tensor(t).q.scale, graph.tensor(t).q.zero_point, "i1"
            )
            for x, t in zip(sample, graph.inputs, strict=True)
        ]
        results.append(run_graph(graph, arguments))
    return [np.concatenate(column) for column in zip(*results, strict=True)]


def assert_near(model: Any, graph: Graph, inputs: Any, codes: int) -> None:
    """Outputs lie within some codes of the Keras model's: kernels round twice, biases once."""
    flat = [np.asarray(each) for each in keras.tree.flatten(inputs)]
    want = keras.tree.flatten(model(inputs, training=False))
    for tensor, one, other in zip(graph.outputs, output_codes(graph, flat), want, strict=True):
        q = graph.tensor(tensor).q
        exact = np.asarray(other, np.float64) / q.scale + q.zero_point
        assert np.abs(one - exact).max() <= codes
        assert np.abs(one - exact).mean() < 0.5


def everything(x: Any) -> Any:
    """All linear operators, with all that is fused, shared, rescaled or prescribed."""
    x = layers.ReLU()(layers.BatchNormalization()(conv(use_bias=False)(x)))
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu6")(x)
    y = conv(4)(layers.ZeroPadding2D(1)(y))
    y = layers.Cropping2D(1)(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Concatenate()([x, layers.SeparableConv2D(3, 3, padding="same")(x)])
    x = layers.AveragePooling2D(2)(layers.Dropout(0.2)(x))
    x = layers.Conv2DTranspose(4, 3, strides=2, activation="relu")(x)
    gate = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.MaxPooling2D(2)(layers.Multiply()([x, gate]))
    return layers.Dense(5, activation="softmax")(layers.Flatten()(x))


CONFIGS = {
    "8 bits": QatConfig(),
    "4 bits": QatConfig(weight_bits=4),
    "learned, 4 bits and 8": QatConfig(
        weight_bits=4,
        weight_scale="lsq",
        ranges="lsq",
        layer_weight_bits={"separable_conv2d": 8, "conv2d": 8},
    ),
}


@pytest.fixture(scope="module")
def float_model() -> Any:
    keras.backend.clear_session()
    return image_model(everything)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_ranges_are_the_models(name: str, float_model: Any, tmp_path: Path) -> None:
    model = quantize_model(float_model, CONFIGS[name], IMAGES)
    for layer in weight_quantizers(model).values():
        # Scales that no converter would find.
        if layer.weight_scale == "lsq":
            layer.set_weight_scales(layer.weight_scales() * 0.9)
    data = convert_here(model, tmp_path)
    graph = read_tflite(data, "m")
    assert_same_weights(model, graph)
    assert_same_ranges(model, graph)
    assert_near(model, graph, IMAGES, codes=2)


def test_through_the_worker(
    float_model: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = quantize_model(float_model, QatConfig(weight_bits=4), IMAGES)
    capfd.readouterr()
    convert_qat(model, tmp_path / "out" / "m.tflite")
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "Converting to int8" in err
    data = (tmp_path / "out" / "m.tflite").read_bytes()
    # LiteRT reads int4 in these operators too.
    interpreter = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    graph = read_tflite(data, "m")
    assert_same_weights(model, graph)
    q = graph.tensor(graph.inputs[0]).q
    codes = quantize_array(IMAGES[:1], q.scale, q.zero_point, "i1")
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], codes)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.abs(got.astype(int) - run_graph(graph, [codes])[0]).max() <= 1


BODIES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "prescribed ranges before a concatenation": (
        lambda x: layers.Concatenate()(
            [conv(activation="sigmoid")(x), conv(activation="tanh")(x), conv()(x)]
        ),
        ["CONCATENATION", *["CONV_2D"] * 3, "LOGISTIC", "QUANTIZE", "QUANTIZE", "TANH"],
    ),
    "activations that are not fused": (
        lambda x: conv(activation="silu")(layers.LeakyReLU(0.1)(conv()(layers.ReLU()(x)))),
        ["CONV_2D", "CONV_2D", "LEAKY_RELU", "LOGISTIC", "MUL", "RELU"],
    ),
    "norms with no layer before them": (
        lambda x: layers.ReLU()(
            layers.BatchNormalization()(conv(3)(layers.BatchNormalization()(x)))
        ),
        ["CONV_2D", "DEPTHWISE_CONV_2D"],
    ),
    "enlarging": (
        lambda x: layers.UpSampling2D(2, interpolation="bilinear")(layers.UpSampling2D(2)(x)),
        ["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"],
    ),
    "dense along the last axis": (
        lambda x: layers.Dense(2)(layers.Dense(4, activation="relu")(x)),
        ["FULLY_CONNECTED", "FULLY_CONNECTED"],
    ),
    "groups and dilation": (
        lambda x: layers.Conv2D(4, 3, dilation_rate=2)(conv(6, groups=3)(x)),
        ["CONV_2D", "CONV_2D"],
    ),
    "a pooled convolution with its activation after": (
        lambda x: layers.ReLU()(layers.MaxPooling2D(2)(conv()(x))),
        ["CONV_2D", "MAX_POOL_2D", "QUANTIZE"],
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_operators(name: str, tmp_path: Path) -> None:
    body, operators = BODIES[name]
    model = quantize_model(image_model(body), QatConfig(), IMAGES)
    graph = read_tflite(convert_here(model, tmp_path), "m")
    assert sorted(op.name for op in graph.ops) == operators
    assert_same_weights(model, graph)
    assert_near(model, graph, IMAGES, codes=3)


def test_one_dimension(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        x = layers.Conv1D(4, 3, dilation_rate=2, padding="causal")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        return layers.GlobalAveragePooling1D()(layers.MaxPooling1D(2)(x))

    inputs = np.random.default_rng(1).normal(size=(8, 12, 2)).astype(np.float32)
    model = quantize_model(image_model(body, (12, 2)), QatConfig(), inputs)
    graph = read_tflite(convert_here(model, tmp_path), "m")
    names = [op.name for op in graph.ops if op.name != "RESHAPE"]
    assert names == ["PAD", "CONV_2D", "MAX_POOL_2D", "MEAN"]
    assert_same_weights(model, graph)
    assert_near(model, graph, inputs, codes=2)


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_outputs_and_a_shared_layer(structure: str, tmp_path: Path) -> None:
    shared = conv(3, activation="relu", name="shared")
    wide, narrow = layers.Input((6, 6, 3), name="wide"), layers.Input((3,), name="narrow")
    x = shared(shared(wide))
    y = layers.Concatenate()([layers.GlobalMaxPooling2D()(x), narrow])
    first, second = layers.Dense(4, name="z")(y), layers.Subtract(name="a")([x, wide])
    inputs: Any = [wide, narrow]
    outputs: Any = [first, second]
    values: Any = [IMAGES, IMAGES[:, 0, 0]]
    if structure == "dict":
        inputs, outputs = {"wide": wide, "narrow": narrow}, {"z": first, "a": second}
        values = {"wide": IMAGES, "narrow": IMAGES[:, 0, 0]}
    model = quantize_model(keras.Model(inputs, outputs, name="several"), QatConfig(), values)
    graph = read_tflite(convert_here(model, tmp_path), "m")
    assert [op.name for op in linear_ops(graph)] == ["CONV_2D", "CONV_2D", "FULLY_CONNECTED"]
    shapes = [graph.tensor(t).shape[1:] for t in (*graph.inputs, *graph.outputs)]
    assert shapes == [tuple(t.shape[1:]) for t in (*model.inputs, *model.outputs)]
    assert_same_weights(model, graph)
    assert_near(model, graph, values, codes=3)


def test_data_are_aligned_and_versions_those_of_int4(tmp_path: Path) -> None:
    body = BODIES["norms with no layer before them"][0]
    model = quantize_model(image_model(body), QatConfig(weight_bits=4), IMAGES)
    data = convert_here(model, tmp_path)
    file = tflite.Model.GetRootAsModel(data, 0)
    for index in range(file.BuffersLength()):
        buffer = file.Buffers(index)
        if buffer.DataLength():
            vector = flatbuffers.number_types.UOffsetTFlags.py_type(buffer._tab.Offset(4))
            assert buffer._tab.Vector(vector) % 16 == 0
    codes = (file.OperatorCodes(index) for index in range(file.OperatorCodesLength()))
    used = {
        file.Subgraphs(0).Operators(index).OpcodeIndex()
        for index in range(file.Subgraphs(0).OperatorsLength())
    }
    versions = {code.BuiltinCode(): code.Version() for i, code in enumerate(codes) if i in used}
    assert versions == {
        tflite.BuiltinOperator.CONV_2D: 7,
        tflite.BuiltinOperator.DEPTHWISE_CONV_2D: 6,
    }


@pytest.fixture(scope="module")
def digits() -> Any:
    """A small CNN on digits, trained for some seconds, with its data."""
    data = load_dataset("digits")
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            conv(4, strides=2, use_bias=False, name="first"),
            *norm_relu(),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise"),
            *norm_relu(),
            layers.Conv2D(6, 1, use_bias=False, name="pointwise"),
            *norm_relu(),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise2"),
            *norm_relu(),
            layers.Conv2D(6, 1, use_bias=False, name="pointwise2"),
            *norm_relu(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="digits",
    )
    train(model, data, epochs=30, learning_rate=1e-2)
    return model, data


def norm_relu() -> tuple[Any, Any]:
    return layers.BatchNormalization(momentum=0.8), layers.ReLU()


def train(model: Any, data: Any, epochs: int, learning_rate: float) -> None:
    keras.utils.set_random_seed(4)
    model.compile(
        keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", jit_compile=False
    )
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)


def correct(model: Any, data: Any) -> float:
    decisions = np.argmax(model(data.x_test, training=False), axis=-1)
    return float(np.mean(decisions == data.y_test))


def training_loss(model: Any, data: Any) -> float:
    """The mean cross-entropy over the training images, which noise moves less than accuracy."""
    likely = np.asarray(model(data.x_train, training=False))[
        np.arange(len(data.y_train)), data.y_train
    ]
    return float(-np.mean(np.log(likely + 1e-3)))


def test_training_makes_up_for_four_bits(digits: Any, tmp_path: Path) -> None:
    float_model, data = digits
    samples = data.x_train[:200]
    plain = quantize_model(float_model, QatConfig(weight_bits=4), samples)
    model = quantize_model(
        float_model, QatConfig(weight_bits=4, weight_scale="lsq", ranges="lsq"), samples
    )
    full = correct(float_model, data)
    before, fitted = (training_loss(each, data) for each in (plain, model))
    assert full > 0.9
    train(model, data, epochs=6, learning_rate=2e-3)
    assert training_loss(model, data) < 0.6 * min(before, fitted)
    assert correct(model, data) > full - 0.02
    graph = read_tflite(convert_here(model, tmp_path), "m")
    assert_same_weights(model, graph)
    assert_same_ranges(model, graph)
    (codes,) = output_codes(graph, [data.x_test[:100]])
    want = np.argmax(model(data.x_test[:100], training=False), axis=-1)
    assert np.mean(np.argmax(codes, axis=-1) == want) >= 0.98


def test_zeros_of_a_pruned_model_are_zero_in_the_file(digits: Any, tmp_path: Path) -> None:
    float_model, data = digits
    pruned = keras.models.clone_model(float_model)
    pruned.set_weights(float_model.get_weights())
    zeros = {}
    for name in ("first", "classes"):
        kernel = np.asarray(pruned.get_layer(name).kernel).copy()
        kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
        pruned.get_layer(name).kernel.assign(kernel)
        zeros[name] = kernel == 0
    config = QatConfig(layer_weight_bits={"first": 4})
    model = quantize_model(pruned, config, data.x_train[:200])
    train(model, data, epochs=2, learning_rate=1e-3)
    graph = read_tflite(convert_here(model, tmp_path), "m")
    first, *_, classes = linear_ops(graph)
    for op, name in ((first, "first"), (classes, "classes")):
        kernel = graph.tensor(op.inputs[1]).data
        assert kernel is not None
        assert (kernel[file_layout(zeros[name], op.name)] == 0).all()
        assert (kernel != 0).mean() > 0.3
        assert zeros[name].mean() >= 0.5


def test_models_that_cannot_be_converted(float_model: Any, tmp_path: Path) -> None:
    ranges = quantize_model(float_model, QatConfig())
    with pytest.raises(BadModelError) as caught:
        convert_qat(ranges, tmp_path / "m.tflite")
    assert str(caught.value).startswith(
        "model 'small': has activations without a range; got image, conv2d, depthwise_conv2d, "
    )
    assert str(caught.value).endswith("; calibrate it: calibrate_ranges")
    assert not (tmp_path / "m.tflite").exists()

    model = quantize_model(float_model, QatConfig(exclude=("conv2d",)), IMAGES)
    with pytest.raises(BadModelError, match=r"^m: has layers that are not quantized; got conv2d; "):
        check_convertible(model, "m")
    with pytest.raises(BadModelError, match=r"^m: has layers that are not quantized; got conv2d, "):
        check_convertible(float_model, "m")

    model = quantize_model(float_model, QatConfig(), IMAGES)
    check_convertible(model, "m")
    activation_quantizers(model)["image"].enabled = False
    weight_quantizers(model)["conv2d"].weights_enabled = False
    with pytest.raises(
        BadModelError, match=r"^m: has quantizers that are switched off; got image, "
    ):
        check_convertible(model, "m")

    model = quantize_model(float_model, QatConfig(), IMAGES)
    activation_quantizers(model)["dense"].bits = 16
    with pytest.raises(
        BadModelError, match=r"^m: has activations of 16 bits; got dense; set their "
    ):
        check_convertible(model, "m")


def test_a_bias_of_more_than_32_bits_is_named(tmp_path: Path) -> None:
    model = quantize_model(image_model(lambda x: conv(name="c")(x)), QatConfig(), IMAGES)
    model.get_layer("c").bias.assign([0, 1e9, 0, 0])
    with pytest.raises(BadModelError) as caught:
        convert_here(model, tmp_path)
    assert str(caught.value).startswith(
        "m: node 0 CONV_2D, channel 1: a bias does not fit 32 bits; got 1e+09 at scale "
    )
