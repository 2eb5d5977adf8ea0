// Finds the CUDA driver's functions in libcuda.so.1.
#include "driver.h"

#include <dlfcn.h>

namespace onerec
{
namespace
{

struct Found
{
    Driver driver{};
    std::string error;
};

// cuda.h maps some names to versioned ones by macros; the macro's expansion is the symbol to look for.
#define ONEREC_TEXT_(name) #name
#define ONEREC_SYMBOL(name) ONEREC_TEXT_(name)

template <typename Function>
void find(void* library, char const* symbol, Function& function, std::string& error)
{
    function = reinterpret_cast<Function>(dlsym(library, symbol));
    if (function == nullptr && error.empty())
    {
        error = std::string("the CUDA driver is too old: it lacks ") + symbol;
    }
}

Found search()
{
    Found found;
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        char const* const reason = dlerror();
        found.error = std::string("the CUDA driver does not load: ") + (reason == nullptr ? "no reason given" : reason);
        return found;
    }
    Driver& driver = found.driver;
    find(library, ONEREC_SYMBOL(cuGetErrorString), driver.getErrorString, found.error);
    find(library, ONEREC_SYMBOL(cuCtxGetCurrent), driver.ctxGetCurrent, found.error);
    find(library, ONEREC_SYMBOL(cuCtxPushCurrent), driver.ctxPushCurrent, found.error);
    find(library, ONEREC_SYMBOL(cuCtxPopCurrent), driver.ctxPopCurrent, found.error);
    find(library, ONEREC_SYMBOL(cuModuleLoadData), driver.moduleLoadData, found.error);
    find(library, ONEREC_SYMBOL(cuModuleUnload), driver.moduleUnload, found.error);
    find(library, ONEREC_SYMBOL(cuModuleGetFunction), driver.moduleGetFunction, found.error);
    find(library, ONEREC_SYMBOL(cuFuncGetAttribute), driver.funcGetAttribute, found.error);
    find(library, ONEREC_SYMBOL(cuFuncSetAttribute), driver.funcSetAttribute, found.error);
    find(library, ONEREC_SYMBOL(cuLaunchKernelEx), driver.launchKernelEx, found.error);
    find(library, ONEREC_SYMBOL(cuMemsetD8Async), driver.memsetD8Async, found.error);
    return found;
}

} // namespace

Driver const* driver(std::string& error)
{
    static Found const found = search();
    if (!found.error.empty())
    {
        error = found.error;
        return nullptr;
    }
    return &found.driver;
}

std::string describe(Driver const& driver, char const* call, CUresult result)
{
    char const* text = nullptr;
    driver.getErrorString(result, &text);
    return std::string(call) + " failed: " + (text == nullptr ? "unknown error" : text) + " (" + std::to_string(result) + ")";
}

} // namespace onerec
