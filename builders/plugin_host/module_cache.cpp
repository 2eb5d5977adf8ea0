// One table of loaded modules, keyed by content and CUDA context.
#include "module_cache.h"

#include <mutex>
#include <unordered_map>

namespace onerec
{

class Module
{
public:
    Module(Driver const& driver, CUcontext context, std::string_view cubin)
        : driver(driver)
        , context(context)
        , content(cubin)
    {
    }

    Module(Module const&) = delete;
    Module& operator=(Module const&) = delete;

    // Errors are ignored: at the end of a process the driver may be gone, and the module with it.
    ~Module()
    {
        if (handle != nullptr && driver.ctxPushCurrent(context) == CUDA_SUCCESS)
        {
            driver.moduleUnload(handle);
            CUcontext popped = nullptr;
            driver.ctxPopCurrent(&popped);
        }
    }

    Driver const& driver;
    CUcontext const context;
    std::string const content; // equal hashes do not mean equal contents
    CUmodule handle = nullptr;
    std::mutex mutex; // of what is set on its functions
};

namespace
{

constexpr int kSharedBytesWithoutAsking = 48 * 1024;

struct Table
{
    std::mutex mutex;
    std::unordered_multimap<size_t, std::weak_ptr<Module>> modules;
};

// Never destroyed: plugins may outlive the destructors of static objects.
Table& table()
{
    static Table& table = *new Table;
    return table;
}

size_t keyOf(std::string_view cubin, CUcontext context)
{
    return std::hash<std::string_view>()(cubin) ^ std::hash<void*>()(context);
}

// Also drops entries whose modules are gone.
std::shared_ptr<Module> find(Table& table, size_t key, std::string_view cubin, CUcontext context)
{
    auto const range = table.modules.equal_range(key);
    for (auto entry = range.first; entry != range.second;)
    {
        std::shared_ptr<Module> module = entry->second.lock();
        if (module != nullptr && module->context == context && module->content == cubin)
        {
            return module;
        }
        entry = module == nullptr ? table.modules.erase(entry) : std::next(entry);
    }
    return nullptr;
}

} // namespace

std::shared_ptr<Module> load(std::string_view cubin, std::string& error)
{
    Driver const* const cuda = driver(error);
    if (cuda == nullptr)
    {
        return nullptr;
    }
    CUcontext context = nullptr;
    CUresult result = cuda->ctxGetCurrent(&context);
    if (result != CUDA_SUCCESS || context == nullptr)
    {
        error = result == CUDA_SUCCESS ? "this thread has no CUDA context" : describe(*cuda, "cuCtxGetCurrent", result);
        return nullptr;
    }
    Table& known = table();
    size_t const key = keyOf(cubin, context);
    std::lock_guard<std::mutex> const lock(known.mutex);
    if (std::shared_ptr<Module> module = find(known, key, cubin, context))
    {
        return module;
    }
    auto module = std::make_shared<Module>(*cuda, context, cubin);
    result = cuda->moduleLoadData(&module->handle, module->content.data());
    if (result != CUDA_SUCCESS)
    {
        module->handle = nullptr;
        error = describe(*cuda, "cuModuleLoadData", result) + "; a plan runs on the compute capability it was built for alone";
        return nullptr;
    }
    known.modules.emplace(key, module);
    return module;
}

CUfunction function(Module& module, Kernel const& kernel, std::string& error)
{
    Driver const& cuda = module.driver;
    std::lock_guard<std::mutex> const lock(module.mutex);
    CUfunction function = nullptr;
    CUresult result = cuda.moduleGetFunction(&function, module.handle, kernel.entry.c_str());
    if (result != CUDA_SUCCESS)
    {
        error = "kernel " + kernel.entry + ": " + describe(cuda, "cuModuleGetFunction", result);
        return nullptr;
    }
    // The driver loads code lazily; asking for an attribute loads it now, so that no launch does during a graph capture.
    int threads = 0;
    result = cuda.funcGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function);
    if (result != CUDA_SUCCESS)
    {
        error = "kernel " + kernel.entry + ": " + describe(cuda, "cuFuncGetAttribute", result);
        return nullptr;
    }
    if (kernel.warps * kThreadsPerWarp > static_cast<uint32_t>(threads))
    {
        error = "kernel " + kernel.entry + " was compiled for at most " + std::to_string(threads) + " threads, not for "
            + std::to_string(kernel.warps * kThreadsPerWarp);
        return nullptr;
    }
    int const bytes = static_cast<int>(kernel.sharedBytes);
    int granted = 0; // by another node, which may launch with more
    result = cuda.funcGetAttribute(&granted, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, function);
    if (result == CUDA_SUCCESS && bytes > granted && bytes > kSharedBytesWithoutAsking)
    {
        result = cuda.funcSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
    }
    if (result != CUDA_SUCCESS)
    {
        error = "kernel " + kernel.entry + " wants " + std::to_string(kernel.sharedBytes) + " bytes of shared memory: "
            + describe(cuda, "setting it", result);
        return nullptr;
    }
    return function;
}

} // namespace onerec
