// A program's types and expressions in TensorRT's terms, while a network is built.
#pragma once

#include "program.h"

#include <NvInferRuntime.h>

namespace onerec
{

inline nvinfer1::DataType dataType(DType dtype)
{
    switch (dtype)
    {
    case DType::kFloat32: return nvinfer1::DataType::kFLOAT;
    case DType::kFloat16: return nvinfer1::DataType::kHALF;
    case DType::kFloat8E4M3: return nvinfer1::DataType::kFP8;
    case DType::kInt32: return nvinfer1::DataType::kINT32;
    case DType::kInt64: break;
    }
    return nvinfer1::DataType::kINT64;
}

// TensorRT's expressions as the values of a program's expressions.
struct Symbols
{
    using Value = nvinfer1::IDimensionExpr const*;

    nvinfer1::DimsExprs const* inputs;
    nvinfer1::IExprBuilder& builder;

    Value constant(int64_t value)
    {
        return builder.constant(value);
    }

    Value dimension(int input, int axis) const
    {
        return inputs[input].d[axis];
    }

    bool compute(Op op, Value first, Value second, Value& result)
    {
        result = first == nullptr || second == nullptr ? nullptr : builder.operation(operation(op), *first, *second);
        return result != nullptr;
    }

    static nvinfer1::DimensionOperation operation(Op op)
    {
        switch (op)
        {
        case Op::kSubtract: return nvinfer1::DimensionOperation::kSUB;
        case Op::kMultiply: return nvinfer1::DimensionOperation::kPROD;
        case Op::kFloorDivide: return nvinfer1::DimensionOperation::kFLOOR_DIV;
        case Op::kCeilDivide: return nvinfer1::DimensionOperation::kCEIL_DIV;
        case Op::kMinimum: return nvinfer1::DimensionOperation::kMIN;
        case Op::kMaximum: return nvinfer1::DimensionOperation::kMAX;
        case Op::kLess: return nvinfer1::DimensionOperation::kLESS;
        case Op::kAdd:
        case Op::kConstant:
        case Op::kDimension: break;
        }
        return nvinfer1::DimensionOperation::kSUM;
    }
};

} // namespace onerec
