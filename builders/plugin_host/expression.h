// Integer expressions over input dimensions: a list of instructions for a stack, operands before operators.
// `operators/launch/expression.py` builds them; the numbers of the operations are part of the program format.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace onerec
{

enum class Op : uint8_t
{
    kConstant = 0,
    kDimension = 1,
    kAdd = 2,
    kSubtract = 3,
    kMultiply = 4,
    kFloorDivide = 5,
    kCeilDivide = 6,
    kMinimum = 7,
    kMaximum = 8,
    kLess = 9, // the last one
};

struct Instruction
{
    Op op;
    uint8_t input;
    uint8_t axis;
    int64_t value;
};

using Expression = std::vector<Instruction>;

constexpr int kMaxOperands = 64; // values on the stack at one time; the reader refuses expressions that need more

// Runs an expression that the reader has checked. A domain computes: with integers at run time, with TensorRT's
// expressions while a network is built. Gives false where the domain does.
template <typename Domain>
bool run(Expression const& expression, Domain& domain, typename Domain::Value& result)
{
    std::array<typename Domain::Value, kMaxOperands> stack;
    int top = 0;
    for (Instruction const& instruction : expression)
    {
        if (instruction.op == Op::kConstant)
        {
            stack[top++] = domain.constant(instruction.value);
        }
        else if (instruction.op == Op::kDimension)
        {
            stack[top++] = domain.dimension(instruction.input, instruction.axis);
        }
        else
        {
            --top;
            if (!domain.compute(instruction.op, stack[top - 1], stack[top], stack[top - 1]))
            {
                return false;
            }
        }
    }
    result = stack[0];
    return true;
}

struct Shape
{
    int32_t rank;
    int64_t const* dimensions;
};

// 64-bit integers; an overflow or a division by zero is a failure.
struct Integers
{
    using Value = int64_t;

    Shape const* shapes; // of every input, with the ranks that the program declares

    Value constant(int64_t value) const
    {
        return value;
    }

    Value dimension(int input, int axis) const
    {
        return shapes[input].dimensions[axis];
    }

    static bool compute(Op op, Value first, Value second, Value& result)
    {
        switch (op)
        {
        case Op::kAdd: return !__builtin_add_overflow(first, second, &result);
        case Op::kSubtract: return !__builtin_sub_overflow(first, second, &result);
        case Op::kMultiply: return !__builtin_mul_overflow(first, second, &result);
        case Op::kFloorDivide: return divide(first, second, -1, result);
        case Op::kCeilDivide: return divide(first, second, 1, result);
        case Op::kMinimum: result = first < second ? first : second; return true;
        case Op::kMaximum: result = first < second ? second : first; return true;
        case Op::kLess: result = first < second; return true;
        case Op::kConstant:
        case Op::kDimension: break;
        }
        return false;
    }

private:
    // C++ rounds towards zero; `away` is where an inexact quotient goes: down or up.
    static bool divide(Value first, Value second, int away, Value& result)
    {
        if (second == 0 || (first == INT64_MIN && second == -1))
        {
            return false;
        }
        Value const quotient = first / second;
        bool const exact = first % second == 0;
        bool const positive = (first < 0) == (second < 0);
        result = quotient + (!exact && positive == (away > 0) ? away : 0);
        return true;
    }
};

} // namespace onerec
