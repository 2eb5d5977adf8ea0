// For tests: a program, read and evaluated by the host's own code, as text. Needs neither TensorRT nor CUDA.
#include "execution.h"

#include <cstdio>

using namespace onerec;

namespace
{

constexpr int kDone = 0;
constexpr int kNoProgram = 1;
constexpr int kRefused = 2;

std::string shapesText(Program const& program, Shape const* shapes, bool& ok)
{
    std::string text;
    for (Output const& output : program.outputs)
    {
        text += "output " + std::to_string(static_cast<int>(output.dtype));
        for (Expression const& dimension : output.dimensions)
        {
            Integers integers{shapes};
            int64_t value = 0;
            ok = run(dimension, integers, value) && ok;
            text += " " + std::to_string(value);
        }
        text += "\n";
    }
    return text;
}

bool evaluate(Program const& program, Shape const* shapes, std::string& text)
{
    bool ok = true;
    std::string const outputs = shapesText(program, shapes, ok);
    Layout room;
    Layout layout;
    Variant const* const variant = choose(program, shapes, text);
    if (!ok || variant == nullptr || !arrange(program, nullptr, shapes, room, text) || !arrange(program, variant, shapes, layout, text))
    {
        return false;
    }
    std::array<void*, kMaxTensors> addresses;
    for (size_t i = 0; i < addresses.size(); ++i)
    {
        addresses[i] = reinterpret_cast<void*>(0x1000 + i);
    }
    Memory const memory{addresses.data(), addresses.data(), reinterpret_cast<char*>(0x100000)};
    std::string lines = outputs + "workspace " + std::to_string(room.bytes) + "\n";
    for (size_t i = 0; i < program.scratch.size(); ++i)
    {
        bool const clears = program.scratch[i].clear && variant->uses[i];
        lines += "scratch " + std::to_string(layout.offsets[i]) + " " + std::to_string(layout.sizes[i]) + (clears ? " cleared\n" : "\n");
    }
    for (Launch const& launch : variant->launches)
    {
        Call call;
        if (!prepare(program, launch, shapes, layout, memory, call, text))
        {
            return false;
        }
        Kernel const& kernel = program.kernels[launch.kernel];
        lines += kernel.entry + " of " + std::string(program.cubins[kernel.cubin]);
        for (uint32_t const extent : call.grid)
        {
            lines += " " + std::to_string(extent);
        }
        lines += " | " + std::to_string(kernel.warps) + " " + std::to_string(kernel.sharedBytes) + (kernel.dependent ? " dependent |" : " |");
        for (size_t i = 0; i < call.count; ++i)
        {
            bool const narrow = i < launch.arguments.size() && launch.arguments[i].kind == Argument::Kind::kInt32;
            uint64_t const value = *static_cast<uint64_t*>(call.arguments[i]);
            lines += " " + std::to_string(narrow ? value & UINT32_MAX : value);
        }
        lines += call.empty ? " nothing\n" : "\n";
    }
    text = lines;
    return true;
}

} // namespace

// `dimensions`: of all inputs, one after the other. Writes what happened to `answer`, cut to its size.
extern "C" int describe(char const* bytes, size_t size, int64_t const* dimensions, int32_t const* ranks, size_t inputs, char* answer, size_t room)
{
    std::string text;
    Program program;
    int result = kNoProgram;
    if (decode({bytes, size}, program, text))
    {
        std::vector<Shape> shapes;
        for (size_t i = 0; i < inputs; ++i)
        {
            shapes.push_back({ranks[i], dimensions});
            dimensions += ranks[i];
        }
        bool const done = accepts(program, shapes.data(), inputs, text) && evaluate(program, shapes.data(), text);
        result = done ? kDone : kRefused;
    }
    std::snprintf(answer, room, "%s", text.c_str());
    return result;
}
