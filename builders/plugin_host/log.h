// Messages for the user, through TensorRT's logger where there is one.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace onerec
{

void useLoggerOf(nvinfer1::ILoggerFinder* finder);

void logError(std::string const& message) noexcept;

// Runs `body`; no exception crosses into TensorRT: it is logged, and the answer is `failure`.
template <typename Body, typename Answer>
Answer guarded(Answer failure, Body body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& exception)
    {
        logError(exception.what());
        return failure;
    }
}

} // namespace onerec
