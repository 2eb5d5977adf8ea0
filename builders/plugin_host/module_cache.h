// Loaded cubins, one copy per process and CUDA context, however many nodes and execution contexts use them.
#pragma once

#include "driver.h"
#include "program.h"

#include <memory>
#include <string>
#include <string_view>

namespace onerec
{

// A loaded cubin. Unloaded when the last owner goes.
class Module;

// The module for a cubin in the current CUDA context; loads it if nobody holds it. Thread safe. Null and a reason on failure.
std::shared_ptr<Module> load(std::string_view cubin, std::string& error);

// A kernel ready to launch: really loaded, its shared memory granted. Null and a reason on failure.
CUfunction function(Module& module, Kernel const& kernel, std::string& error);

} // namespace onerec
