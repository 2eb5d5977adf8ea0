// Evaluates a program for given shapes.
#include "execution.h"

#include <climits>
#include <limits>

namespace onerec
{
namespace
{

constexpr int64_t kAlignment = 256;
constexpr int64_t kMaxBlocks[3] = {INT32_MAX, 65535, 65535}; // CUDA's limits of a grid

bool evaluate(Expression const& expression, Shape const* shapes, int64_t& value)
{
    Integers integers{shapes};
    return run(expression, integers, value);
}

bool failed(std::string& error, Program const& program, Shape const* shapes, std::string const& what)
{
    error = what + " for inputs of " + shapeText(shapes, program.inputs.size());
    return false;
}

// Gives the next region of the workspace; regions begin aligned.
bool reserve(int64_t size, int64_t& end, int64_t& offset)
{
    int64_t rounded = 0;
    if (size < 0 || __builtin_add_overflow(size, kAlignment - 1, &rounded))
    {
        return false;
    }
    offset = end;
    return !__builtin_add_overflow(end, rounded / kAlignment * kAlignment, &end);
}

// Largest hidden scratch that one of the launches wants.
bool hiddenScratch(Program const& program, Variant const& variant, Shape const* shapes, int64_t& global, int64_t& profile)
{
    for (Launch const& launch : variant.launches)
    {
        Kernel const& kernel = program.kernels[launch.kernel];
        if (kernel.globalScratchBytes == 0 && kernel.profileScratchBytes == 0)
        {
            continue;
        }
        int64_t blocks = 1;
        for (Expression const& axis : launch.grid)
        {
            int64_t extent = 0;
            if (!evaluate(axis, shapes, extent) || extent < 0 || __builtin_mul_overflow(blocks, extent, &blocks))
            {
                return false;
            }
        }
        int64_t sizes[2] = {};
        if (__builtin_mul_overflow(blocks, static_cast<int64_t>(kernel.globalScratchBytes), &sizes[0])
            || __builtin_mul_overflow(blocks, static_cast<int64_t>(kernel.profileScratchBytes), &sizes[1]))
        {
            return false;
        }
        global = global < sizes[0] ? sizes[0] : global;
        profile = profile < sizes[1] ? sizes[1] : profile;
    }
    return true;
}

void append(Call& call, uint64_t value)
{
    call.values[call.count] = value; // little-endian: a narrower argument is its first bytes
    call.arguments[call.count] = &call.values[call.count];
    ++call.count;
}

template <typename Pointer>
uint64_t address(Pointer* pointer)
{
    return reinterpret_cast<uint64_t>(pointer);
}

bool appendArgument(Argument const& argument, Shape const* shapes, Layout const& layout, Memory const& memory, Call& call)
{
    int64_t value = 0;
    uint32_t bits = 0;
    switch (argument.kind)
    {
    case Argument::Kind::kInput: append(call, address(memory.inputs[argument.index])); return true;
    case Argument::Kind::kOutput: append(call, address(memory.outputs[argument.index])); return true;
    case Argument::Kind::kScratch: append(call, address(memory.workspace + layout.offsets[argument.index])); return true;
    case Argument::Kind::kInt32:
        if (!evaluate(argument.value, shapes, value) || value < INT32_MIN || value > INT32_MAX)
        {
            return false;
        }
        append(call, static_cast<uint64_t>(value));
        return true;
    case Argument::Kind::kInt64:
        if (!evaluate(argument.value, shapes, value))
        {
            return false;
        }
        append(call, static_cast<uint64_t>(value));
        return true;
    case Argument::Kind::kFloat32:
        std::memcpy(&bits, &argument.number, sizeof(bits));
        append(call, bits);
        return true;
    }
    return false;
}

} // namespace

std::string shapeText(Shape const* shapes, size_t count)
{
    std::string text;
    for (size_t i = 0; i < count; ++i)
    {
        text += i > 0 ? ", " : "";
        for (int32_t axis = 0; axis < shapes[i].rank; ++axis)
        {
            text += (axis > 0 ? "x" : "") + std::to_string(shapes[i].dimensions[axis]);
        }
        text += shapes[i].rank == 0 ? "scalar" : "";
    }
    return text;
}

bool accepts(Program const& program, Shape const* shapes, size_t count, std::string& error)
{
    bool fits = count == program.inputs.size();
    for (size_t i = 0; fits && i < count; ++i)
    {
        std::vector<int64_t> const& wanted = program.inputs[i].dimensions;
        fits = wanted.size() == static_cast<size_t>(shapes[i].rank);
        for (size_t axis = 0; fits && axis < wanted.size(); ++axis)
        {
            int64_t const extent = shapes[i].dimensions[axis]; // -1 while a network is built: not known yet
            fits = wanted[axis] == kAnyDimension || extent == kAnyDimension || extent == wanted[axis];
        }
    }
    if (!fits)
    {
        std::vector<Shape> wanted;
        for (Input const& input : program.inputs)
        {
            wanted.push_back({static_cast<int32_t>(input.dimensions.size()), input.dimensions.data()});
        }
        error = "a kernel program takes inputs of " + shapeText(wanted.data(), wanted.size()) + " (-1: any), not of " + shapeText(shapes, count);
    }
    return fits;
}

Variant const* choose(Program const& program, Shape const* shapes, std::string& error)
{
    for (Variant const& variant : program.variants)
    {
        int64_t holds = 0;
        if (!evaluate(variant.when, shapes, holds))
        {
            failed(error, program, shapes, "the condition of a variant overflows or divides by zero");
            return nullptr;
        }
        if (holds != 0)
        {
            return &variant;
        }
    }
    failed(error, program, shapes, "a kernel program has no variant");
    return nullptr;
}

bool arrange(Program const& program, Variant const* variant, Shape const* shapes, Layout& layout, std::string& error)
{
    layout.bytes = 0;
    for (size_t i = 0; i < program.scratch.size(); ++i)
    {
        if (!evaluate(program.scratch[i].bytes, shapes, layout.sizes[i]) || !reserve(layout.sizes[i], layout.bytes, layout.offsets[i]))
        {
            return failed(error, program, shapes, "the size of a scratch buffer overflows or is negative");
        }
    }
    int64_t global = 0;
    int64_t profile = 0;
    for (Variant const& each : program.variants)
    {
        if ((variant == nullptr || variant == &each) && !hiddenScratch(program, each, shapes, global, profile))
        {
            return failed(error, program, shapes, "the size of a kernel's own scratch overflows or is negative");
        }
    }
    return (reserve(global, layout.bytes, layout.globalScratch) && reserve(profile, layout.bytes, layout.profileScratch))
        || failed(error, program, shapes, "the size of the workspace overflows");
}

bool prepare(Program const& program, Launch const& launch, Shape const* shapes, Layout const& layout, Memory const& memory, Call& call,
    std::string& error)
{
    Kernel const& kernel = program.kernels[launch.kernel];
    call.empty = false;
    call.count = 0;
    for (int axis = 0; axis < 3; ++axis)
    {
        int64_t extent = 0;
        if (!evaluate(launch.grid[axis], shapes, extent) || extent < 0 || extent > kMaxBlocks[axis])
        {
            return failed(error, program, shapes, "the grid of kernel " + kernel.entry + " is impossible");
        }
        call.grid[axis] = static_cast<uint32_t>(extent);
        call.empty = call.empty || extent == 0;
    }
    for (size_t i = 0; i < launch.arguments.size(); ++i)
    {
        if (!appendArgument(launch.arguments[i], shapes, layout, memory, call))
        {
            return failed(error, program, shapes, "argument " + std::to_string(i) + " of kernel " + kernel.entry + " overflows");
        }
    }
    append(call, kernel.globalScratchBytes > 0 ? address(memory.workspace + layout.globalScratch) : 0);
    append(call, kernel.profileScratchBytes > 0 ? address(memory.workspace + layout.profileScratch) : 0);
    return true;
}

} // namespace onerec
