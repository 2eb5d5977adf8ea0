// What a program does for given shapes: its variant, where scratch lies in the workspace, grids and arguments of launches.
// Nothing here allocates on the heap unless it fails, and nothing knows TensorRT or CUDA.
#pragma once

#include "program.h"

#include <array>

namespace onerec
{

// Addresses of what a node reads and writes.
struct Memory
{
    void const* const* inputs;
    void* const* outputs;
    char* workspace;
};

// Offsets into the workspace. Launches follow one another on a stream, so that they share the two hidden regions.
struct Layout
{
    std::array<int64_t, kMaxTensors> offsets;
    std::array<int64_t, kMaxTensors> sizes;
    int64_t globalScratch;
    int64_t profileScratch;
    int64_t bytes;
};

// Arguments of a launch as the driver wants them: addresses of values.
struct Call
{
    uint32_t grid[3];
    bool empty; // a grid with a zero launches nothing
    std::array<uint64_t, kMaxArguments + 2> values;
    std::array<void*, kMaxArguments + 2> arguments;
    size_t count;
};

// Checks the inputs against what the program declares.
bool accepts(Program const& program, Shape const* shapes, size_t count, std::string& error);

// The first variant whose condition is not zero; null and a reason if there is none.
Variant const* choose(Program const& program, Shape const* shapes, std::string& error);

// Where scratch lies for the given shapes while the given variant runs; null: room for any of them.
bool arrange(Program const& program, Variant const* variant, Shape const* shapes, Layout& layout, std::string& error);

// Grid and arguments of one launch.
bool prepare(Program const& program, Launch const& launch, Shape const* shapes, Layout const& layout, Memory const& memory, Call& call,
    std::string& error);

// "2x1408, 16": for messages.
std::string shapeText(Shape const* shapes, size_t count);

} // namespace onerec
