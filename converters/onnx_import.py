"""ONNX file -> Graph: parsed, checked, normalised to one opset, constants folded, every shape and dtype known.

Normalised forms
----------------
After ``import_model`` every node has one of these forms (opset ``NORMAL_OPSET`` semantics, whatever the file had). The
attributes named are always present and nothing else is. ``x|""``: the input is the empty string where it is absent; the
number of inputs is fixed. Axes are never negative. A letter in capitals is a constant.

==========================  =============================  ==========================================================
op                          inputs                         attrs
==========================  =============================  ==========================================================
Conv                        x, w, b|""                     kernel_shape, strides, pads (begins then ends), dilations,
                                                           group; auto_pad is resolved into pads
MaxPool                     x                              kernel_shape, strides, pads, dilations, ceil_mode
AveragePool                 x                              as MaxPool, and count_include_pad
ReduceMean/Sum/Max/Min/     x                              axes (sorted list), keepdims. GlobalAveragePool and
Prod/L1/L2/SumSquare                                       GlobalMaxPool become ReduceMean and ReduceMax
MatMul                      a, b
Gemm                        a, b, c|""                     alpha, beta, transA, transB
BatchNormalization          x, scale, bias, mean, var      epsilon
Clip                        x, MIN|"", MAX|""
PRelu                       x, slope
LeakyRelu, Elu, Celu,       x                              alpha
ThresholdedRelu
HardSigmoid                 x                              alpha, beta
Selu                        x                              alpha, gamma
Gelu                        x                              approximate
Softmax, LogSoftmax         x                              axis
ArgMax, ArgMin              x                              axis, keepdims, select_last_index
Concat                      x, y, ...  (two or more)       axis
Reshape                     x                              shape: a Shape (tuple of int | Batch). Also stands for
                                                           Flatten, Squeeze, Unsqueeze
Transpose                   x                              perm
Slice                       x                              axes, starts, ends, steps: clamped; steps may be negative,
                                                           ends is then -1 for "through element 0"
Split                       x                              axis, split (list of sizes)
Gather                      x, indices                     axis
Pad                         x, VALUE|""                    pads (2 * rank: begins then ends), mode
Expand                      x                              shape: a Shape (left only where it cannot be collapsed)
Cast                        x                              to (TensorProto data type)
QuantizeLinear              x, scale, ZERO_POINT           axis; the output dtype is the zero point's
DequantizeLinear            x, scale, zero_point|""        axis
Add Sub Mul Div Pow Equal   a, b                           Sum, Max, Min of more inputs become chains; a Mean becomes
Less LessOrEqual Greater                                   Add ... Div
GreaterOrEqual Max Min And
Or Xor
Where                       condition, a, b
one-input elementwise ops   x                              (see UNARY_OPS in passes/shape_rules.py)
qonnx.BipolarQuant          x, scale
qonnx.Quant                 x, scale, zero_point, bits     signed, narrow, rounding_mode (upper case); IntQuant too
qonnx.Trunc                 x, scale, zero_point,          rounding_mode, signed, narrow, version: 1 (five inputs) or 2
                            in_bits[, out_scale], out_bits (six)
qonnx.MultiThreshold        x, thresholds                  out_scale, out_bias, data_layout
==========================  =============================  ==========================================================

Constant, Identity, Dropout, CastLike, Flatten, Squeeze, Unsqueeze, Sum, Mean, Shape, Size, ConstantOfShape, Range and
control flow never occur. A node with constant inputs only never occurs. A constant operand of an elementwise op has size 1
along every axis where its values repeat, if the result keeps its shape ([1, C, H, W] -> [1, C, 1, 1]). An Identity between
a graph input and a graph output is a Reshape to the same shape.
"""
