"""Inference engines as opponents: ONNX Runtime and OpenVINO, where they and onnx are installed.

Both get one ONNX model per row, its weights constants that they pack when they compile it, shapes
and number of threads fixed, float32. Input and output are memory of torch's tensors, bound once:
a call copies and allocates nothing.
"""

import functools
import importlib

import torch
from conv_relu_pool_layers import Layer, input_of, pair


def _imported(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


onnx, onnxruntime, openvino = map(_imported, ("onnx", "onnxruntime", "openvino"))
ENGINES = {"onnxruntime": onnxruntime, "openvino": openvino}
MISSING = [name for name, engine in ENGINES.items() if None in (engine, onnx)]  # none without onnx


def lineup(row, threads):
    """The engines' contenders for the inference of one row: dict from name to call."""
    if onnx is None:
        return {}
    contenders, model = {}, onnx_model(row).SerializeToString()
    if onnxruntime is not None:
        contenders["onnxruntime"] = _onnxruntime(model, row, threads)
    if openvino is not None:
        contenders["openvino CL"] = _openvino(model, row, threads, torch.channels_last)
        contenders["openvino"] = _openvino(model, row, threads, torch.contiguous_format)
    return contenders


ACTIVATIONS = {  # inputs and outputs are named a and b
    "none": [("Identity", ["a"], ["b"], {})],
    "relu": [("Relu", ["a"], ["b"], {})],
    "leaky_relu": [("LeakyRelu", ["a"], ["b"], {"alpha": 0.01})],
    "sigmoid": [("Sigmoid", ["a"], ["b"], {})],
    "silu": [("Sigmoid", ["a"], ["s"], {}), ("Mul", ["a", "s"], ["b"], {})],
}


def onnx_model(row):
    """The row's layer, with the weights of :class:`Layer`: x ``[N, C, H, W]`` to y."""
    layer = Layer(row, None)
    parameters = [
        onnx.numpy_helper.from_array(value.detach().numpy(), name)
        for name, value in layer.named_parameters()
    ]
    conv = {
        "strides": pair(row.stride),
        "pads": pair(row.padding) * 2,
        "dilations": pair(row.dilation),
        "group": row.groups,
    }
    pool = {
        "kernel_shape": pair(row.pool_size),
        "strides": pair(row.pool_stride or row.pool_size),
        "pads": pair(row.pool_padding) * 2,
    }
    nodes = [
        ("Conv", ["x", *(p.name for p in parameters)], ["a"], conv),
        *ACTIVATIONS[row.activation],
        {
            "max": ("MaxPool", ["b"], ["y"], pool),
            "avg": ("AveragePool", ["b"], ["y"], pool | {"count_include_pad": 1}),
            "none": ("Identity", ["b"], ["y"], {}),
        }[row.pool],
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, *ends, **attributes) for kind, *ends, attributes in nodes],
        "layer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, row.x_shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, row.y_shape)],
        parameters,
    )
    # Versions old enough for any release of the engines in use, new enough for these nodes.
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _onnxruntime(model, row, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads spin within a call, but not on into the turn of the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x, y = input_of(row), torch.empty(row.y_shape)
    binding = session.io_binding()
    for name, t, bind in (("x", x, binding.bind_input), ("y", y, binding.bind_output)):
        bind(name, "cpu", 0, onnx.TensorProto.FLOAT, list(t.shape), t.data_ptr())
    return _Call(functools.partial(session.run_with_iobinding, binding), x, y)


def _openvino(model, row, threads, memory_format):
    core = openvino.Core()
    model = core.read_model(model)
    x = input_of(row, memory_format)
    y = torch.empty(row.y_shape, memory_format=memory_format)
    arrays = x.numpy(), y.numpy()
    if memory_format is torch.channels_last:
        arrays = x.permute(0, 2, 3, 1).numpy(), y.permute(0, 2, 3, 1).numpy()
        frame = openvino.preprocess.PrePostProcessor(model)
        for end in (frame.input(), frame.output()):
            end.tensor().set_layout(openvino.Layout("NHWC"))
            end.model().set_layout(openvino.Layout("NCHW"))
        model = frame.build()
    properties, hint = openvino.properties, openvino.properties.hint
    compiled = core.compile_model(
        model,
        "CPU",
        {
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            hint.inference_precision: openvino.Type.f32,
            hint.enable_cpu_pinning: False,  # pinning is for the caller of the race
            properties.inference_num_threads: threads,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(arrays[0], shared_memory=True))
    request.set_output_tensor(openvino.Tensor(arrays[1], shared_memory=True))
    return _Call(request.infer, x, y)


class _Call:
    """Has the engine read ``x`` and write ``y``, whose memory it knows by address only."""

    def __init__(self, run, x, y):
        self.run, self.x, self.y = run, x, y

    def __call__(self):
        self.run()
        return (self.y,)
