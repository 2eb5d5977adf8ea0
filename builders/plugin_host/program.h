// A launch program as the host holds it. `operators/launch/encoding.py` documents the bytes it is read from.
// Nothing here knows TensorRT or CUDA, so that it is tested on any machine.
#pragma once

#include "expression.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace onerec
{

constexpr size_t kMaxTensors = 64;   // inputs, outputs, scratch buffers: of each
constexpr size_t kMaxArguments = 64; // of a launch
constexpr size_t kMaxDimensions = 8;
constexpr uint32_t kMaxWarps = 32;
constexpr uint32_t kThreadsPerWarp = 32;
constexpr uint32_t kMaxSharedBytes = 1 << 20;
constexpr int64_t kAnyDimension = -1;

enum class DType : uint8_t
{
    kFloat32,
    kFloat16,
    kFloat8E4M3,
    kInt64,
    kInt32, // the last one
};

struct Kernel
{
    uint32_t cubin;
    std::string entry;
    uint32_t warps;
    uint32_t sharedBytes;
    uint32_t globalScratchBytes;  // per thread block
    uint32_t profileScratchBytes; // per thread block
    bool dependent;               // waits by itself for the launch before it
};

struct Input
{
    DType dtype;
    std::vector<int64_t> dimensions;
};

struct Output
{
    DType dtype;
    std::vector<Expression> dimensions;
};

struct Buffer
{
    Expression bytes;
    bool clear;
};

struct Argument
{
    enum class Kind : uint8_t
    {
        kInput,
        kOutput,
        kScratch,
        kInt32,
        kInt64,
        kFloat32, // the last one
    };

    Kind kind;
    uint32_t index;
    float number;
    Expression value;
};

struct Launch
{
    uint32_t kernel;
    Expression grid[3];
    std::vector<Argument> arguments;
};

struct Variant
{
    Expression when;
    std::vector<Launch> launches;
    std::vector<bool> uses; // which scratch buffers
};

struct Program
{
    std::vector<std::string_view> cubins; // in the bytes the program was read from
    std::vector<Kernel> kernels;
    std::vector<Input> inputs;
    std::vector<Output> outputs;
    std::vector<Buffer> scratch;
    std::vector<Variant> variants;
};

// Reads a program; every index and every expression is checked. `bytes` must outlive it.
// Gives false and says why for bytes that are no program.
bool decode(std::string_view bytes, Program& program, std::string& error);

} // namespace onerec
