// Loads a program's kernels and enqueues its launches.
#include "launching.h"

namespace onerec
{
namespace
{

bool clearScratch(Driver const& cuda, Program const& program, Variant const& variant, Layout const& layout, char* workspace,
    CUstream stream, std::string& error)
{
    for (size_t i = 0; i < program.scratch.size(); ++i)
    {
        if (!program.scratch[i].clear || !variant.uses[i] || layout.sizes[i] == 0)
        {
            continue;
        }
        auto const address = reinterpret_cast<CUdeviceptr>(workspace + layout.offsets[i]);
        CUresult const result = cuda.memsetD8Async(address, 0, static_cast<size_t>(layout.sizes[i]), stream);
        if (result != CUDA_SUCCESS)
        {
            error = describe(cuda, "cuMemsetD8Async", result);
            return false;
        }
    }
    return true;
}

bool launchKernel(Driver const& cuda, Kernel const& kernel, CUfunction function, Call& call, CUstream stream, std::string& error)
{
    // A kernel that waits by itself starts while the one before it still runs.
    CUlaunchAttribute early{};
    early.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    early.value.programmaticStreamSerializationAllowed = 1;
    CUlaunchConfig config{};
    config.gridDimX = call.grid[0];
    config.gridDimY = call.grid[1];
    config.gridDimZ = call.grid[2];
    config.blockDimX = kernel.warps * kThreadsPerWarp;
    config.blockDimY = 1;
    config.blockDimZ = 1;
    config.sharedMemBytes = kernel.sharedBytes;
    config.hStream = stream;
    config.attrs = &early;
    config.numAttrs = kernel.dependent ? 1 : 0;
    CUresult const result = cuda.launchKernelEx(&config, function, call.arguments.data(), nullptr);
    if (result != CUDA_SUCCESS)
    {
        error = "kernel " + kernel.entry + ": " + describe(cuda, "cuLaunchKernelEx", result);
    }
    return result == CUDA_SUCCESS;
}

} // namespace

std::shared_ptr<Loaded const> loadAll(Program const& program, std::string& error)
{
    auto loaded = std::make_shared<Loaded>();
    loaded->driver = driver(error);
    if (loaded->driver == nullptr)
    {
        return nullptr;
    }
    for (Kernel const& kernel : program.kernels)
    {
        std::shared_ptr<Module> module = load(program.cubins[kernel.cubin], error);
        CUfunction const ready = module == nullptr ? nullptr : function(*module, kernel, error);
        if (ready == nullptr)
        {
            return nullptr;
        }
        loaded->modules.push_back(std::move(module));
        loaded->functions.push_back(ready);
    }
    return loaded;
}

bool runAll(Program const& program, Loaded const& loaded, Shape const* shapes, Memory const& memory, CUstream stream, std::string& error)
{
    Variant const* const variant = choose(program, shapes, error);
    Layout layout;
    Driver const& cuda = *loaded.driver;
    if (variant == nullptr || !arrange(program, variant, shapes, layout, error)
        || !clearScratch(cuda, program, *variant, layout, memory.workspace, stream, error))
    {
        return false;
    }
    for (Launch const& launch : variant->launches)
    {
        Call call;
        if (!prepare(program, launch, shapes, layout, memory, call, error))
        {
            return false;
        }
        if (!call.empty && !launchKernel(cuda, program.kernels[launch.kernel], loaded.functions[launch.kernel], call, stream, error))
        {
            return false;
        }
    }
    return true;
}

} // namespace onerec
