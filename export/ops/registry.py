"""The operators that the compiler knows, by their name in TensorFlow Lite."""

from __future__ import annotations

from edgekiln.export.ops import cortex_m0plus, cortex_m4, neon, sparse
from edgekiln.export.ops.add import Add, Sub
from edgekiln.export.ops.arg_max import ArgMax, ArgMin
from edgekiln.export.ops.arithmetic import Div, Maximum, Minimum, Mul, SquaredDifference
from edgekiln.export.ops.base import Op
from edgekiln.export.ops.batch_matmul import BatchMatmul
from edgekiln.export.ops.cast import Cast
from edgekiln.export.ops.comparison import (
    Equal,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    LogicalAnd,
    LogicalNot,
    LogicalOr,
    NotEqual,
    SelectV2,
)
from edgekiln.export.ops.concatenation import Concatenation, Pack
from edgekiln.export.ops.conv_2d import Conv2D
from edgekiln.export.ops.cumsum import CumSum
from edgekiln.export.ops.depthwise_conv_2d import DepthwiseConv2D
from edgekiln.export.ops.fully_connected import FullyConnected
from edgekiln.export.ops.functions import (
    Abs,
    Ceil,
    Cos,
    Elu,
    Exp,
    Floor,
    HardSwish,
    Log,
    Neg,
    Round,
    Rsqrt,
    Sin,
    Sqrt,
    Square,
)
from edgekiln.export.ops.gather import Gather, GatherNd
from edgekiln.export.ops.log_softmax import LogSoftmax
from edgekiln.export.ops.lstm import UnidirectionalSequenceLstm
from edgekiln.export.ops.pad import MirrorPad, Pad, PadV2
from edgekiln.export.ops.pool_2d import AveragePool2D, MaxPool2D
from edgekiln.export.ops.quantize import Dequantize, Quantize
from edgekiln.export.ops.reduce import Mean, ReduceMax, ReduceMin, Sum
from edgekiln.export.ops.relu import LeakyRelu, Prelu, Relu, Relu6, ReluN1To1
from edgekiln.export.ops.repeat import BroadcastTo, Fill, Tile, ZerosLike
from edgekiln.export.ops.reshape import ExpandDims, Reshape, Shape, Squeeze
from edgekiln.export.ops.resize import ResizeBilinear, ResizeNearestNeighbor
from edgekiln.export.ops.sigmoid import Logistic, Tanh
from edgekiln.export.ops.slice import Reverse, Slice, StridedSlice
from edgekiln.export.ops.softmax import Softmax
from edgekiln.export.ops.space_to_batch import BatchToSpaceNd, SpaceToBatchNd
from edgekiln.export.ops.split import Split, SplitV, Unpack
from edgekiln.export.ops.svdf import Svdf
from edgekiln.export.ops.transpose import DepthToSpace, SpaceToDepth, Transpose
from edgekiln.export.ops.transpose_conv import TransposeConv
from edgekiln.export.ops.variables import AssignVariable, CallOnce, ReadVariable, VarHandle

OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Abs,
        Add,
        ArgMax,
        ArgMin,
        AssignVariable,
        AveragePool2D,
        BatchMatmul,
        BatchToSpaceNd,
        BroadcastTo,
        CallOnce,
        Cast,
        Ceil,
        Concatenation,
        Conv2D,
        Cos,
        CumSum,
        DepthToSpace,
        DepthwiseConv2D,
        Dequantize,
        Div,
        Elu,
        Equal,
        Exp,
        ExpandDims,
        Fill,
        Floor,
        FullyConnected,
        Gather,
        GatherNd,
        Greater,
        GreaterEqual,
        HardSwish,
        LeakyRelu,
        Less,
        LessEqual,
        Log,
        LogSoftmax,
        LogicalAnd,
        LogicalNot,
        LogicalOr,
        Logistic,
        MaxPool2D,
        Maximum,
        Mean,
        Minimum,
        MirrorPad,
        Mul,
        Neg,
        NotEqual,
        Pack,
        Pad,
        PadV2,
        Prelu,
        Quantize,
        ReadVariable,
        ReduceMax,
        ReduceMin,
        Relu,
        Relu6,
        ReluN1To1,
        Reshape,
        ResizeBilinear,
        ResizeNearestNeighbor,
        Reverse,
        Round,
        Rsqrt,
        SelectV2,
        Shape,
        Sin,
        Slice,
        Softmax,
        SpaceToBatchNd,
        SpaceToDepth,
        Split,
        SplitV,
        Sqrt,
        Square,
        SquaredDifference,
        Squeeze,
        StridedSlice,
        Sub,
        Sum,
        Svdf,
        Tanh,
        Tile,
        Transpose,
        TransposeConv,
        UnidirectionalSequenceLstm,
        Unpack,
        VarHandle,
        ZerosLike,
    )
}

for _family in (cortex_m0plus, cortex_m4, neon):
    Conv2D.kernels += _family.CONV_2D
    DepthwiseConv2D.kernels += _family.DEPTHWISE_CONV_2D
    FullyConnected.kernels += _family.FULLY_CONNECTED
Conv2D.kernels += sparse.CONV_2D
FullyConnected.kernels += sparse.FULLY_CONNECTED
Add.kernels += cortex_m4.ADD + neon.ADD
AveragePool2D.kernels += neon.AVERAGE_POOL_2D
MaxPool2D.kernels += neon.MAX_POOL_2D
Mean.kernels += neon.SUM
Sum.kernels += neon.SUM
