// For tests: the part of the CUDA driver that the host uses, as libcuda.so.1. Writes every call to standard output.
// FAKE_DRIVER names a function that fails.
#include <cuda.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace
{

std::atomic<long> modules{0};
thread_local CUcontext current = reinterpret_cast<CUcontext>(0xC0);

CUresult answer(char const* function)
{
    char const* const broken = std::getenv("FAKE_DRIVER");
    return broken != nullptr && std::strcmp(broken, function) == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

} // namespace

extern "C"
{

CUresult cuGetErrorString(CUresult, char const** text)
{
    *text = "invalid argument";
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context)
{
    *context = answer("no context") == CUDA_SUCCESS ? current : nullptr;
    return answer("cuCtxGetCurrent");
}

CUresult cuCtxPushCurrent(CUcontext context)
{
    std::printf("push %p\n", static_cast<void*>(context));
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context)
{
    *context = current;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, void const* image)
{
    *module = reinterpret_cast<CUmodule>(++modules);
    std::printf("load %s\n", static_cast<char const*>(image)); // the test's cubins are text that ends in a zero
    return answer("cuModuleLoadData");
}

CUresult cuModuleUnload(CUmodule)
{
    std::printf("unload\n");
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, char const* name)
{
    std::printf("function %s\n", name);
    *function = reinterpret_cast<CUfunction>(const_cast<char*>(name)); // the host keeps names as long as functions
    return answer("cuModuleGetFunction");
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction)
{
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 512 : 0;
    return answer("cuFuncGetAttribute");
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int value)
{
    std::printf("shared %d\n", value);
    return answer("cuFuncSetAttribute");
}

CUresult cuLaunchKernelEx(CUlaunchConfig const* config, CUfunction function, void** arguments, void**)
{
    std::printf("launch %s %ux%ux%u threads %u shared %u stream %p", reinterpret_cast<char*>(function), config->gridDimX, config->gridDimY,
        config->gridDimZ, config->blockDimX, config->sharedMemBytes, static_cast<void*>(config->hStream));
    for (unsigned i = 0; i < config->numAttrs; ++i)
    {
        bool const early = config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            && config->attrs[i].value.programmaticStreamSerializationAllowed == 1;
        std::printf(early ? " early" : " unknown attribute");
    }
    std::printf(" arguments");
    for (int i = 0; i < 4; ++i) // every kernel of the test has two addresses and the two hidden ones
    {
        std::printf(" %#llx", *static_cast<unsigned long long*>(arguments[i]));
    }
    std::printf("\n");
    return answer("cuLaunchKernelEx");
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t size, CUstream)
{
    std::printf("set %#llx %zu bytes to %d\n", address, size, value);
    return answer("cuMemsetD8Async");
}
}
