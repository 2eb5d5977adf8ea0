// A program on the GPU: its kernels loaded, its launches enqueued.
#pragma once

#include "execution.h"
#include "module_cache.h"

#include <memory>
#include <string>
#include <vector>

namespace onerec
{

// The kernels of a program, loaded. Indexed like Program::kernels.
struct Loaded
{
    Driver const* driver;
    std::vector<std::shared_ptr<Module>> modules;
    std::vector<CUfunction> functions;
};

// Loads every kernel into the current CUDA context. Null and a reason on failure.
std::shared_ptr<Loaded const> loadAll(Program const& program, std::string& error);

// Enqueues what the program does for these shapes; allocates and loads nothing.
bool runAll(Program const& program, Loaded const& loaded, Shape const* shapes, Memory const& memory, CUstream stream, std::string& error);

} // namespace onerec
