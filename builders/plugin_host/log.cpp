// Where messages go.
#include "log.h"

#include <atomic>
#include <cstdio>

namespace onerec
{
namespace
{

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

} // namespace

void useLoggerOf(nvinfer1::ILoggerFinder* given)
{
    finder = given;
}

void logError(std::string const& message) noexcept
{
    nvinfer1::ILoggerFinder* const known = finder;
    nvinfer1::ILogger* const logger = known == nullptr ? nullptr : known->findLogger();
    if (logger != nullptr)
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    }
    else
    {
        std::fprintf(stderr, "[onerec_trt] %s\n", message.c_str());
    }
}

} // namespace onerec
