// The CUDA driver, found at run time: the host links no CUDA library and loads on machines that have none.
#pragma once

#include <cuda.h>

#include <string>

namespace onerec
{

struct Driver
{
    decltype(&::cuGetErrorString) getErrorString;
    decltype(&::cuCtxGetCurrent) ctxGetCurrent;
    decltype(&::cuCtxPushCurrent) ctxPushCurrent;
    decltype(&::cuCtxPopCurrent) ctxPopCurrent;
    decltype(&::cuModuleLoadData) moduleLoadData;
    decltype(&::cuModuleUnload) moduleUnload;
    decltype(&::cuModuleGetFunction) moduleGetFunction;
    decltype(&::cuFuncGetAttribute) funcGetAttribute;
    decltype(&::cuFuncSetAttribute) funcSetAttribute;
    decltype(&::cuLaunchKernelEx) launchKernelEx;
    decltype(&::cuMemsetD8Async) memsetD8Async;
};

// The driver, the same for the whole process; null and a reason if it is not there.
Driver const* driver(std::string& error);

// "cuLaunchKernel failed: invalid argument (1)"
std::string describe(Driver const& driver, char const* call, CUresult result);

} // namespace onerec
