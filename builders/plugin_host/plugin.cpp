// The library's door: the creator that reads a node's program, and the functions that TensorRT looks for.
#include "kernel_program.h"
#include "log.h"

#include <NvInferRuntimePlugin.h>
#include <NvInferVersion.h>

#include <cstring>

static_assert(NV_TENSORRT_MAJOR == 10 || NV_TENSORRT_MAJOR == 11, "the plugin host is written for TensorRT 10 and 11");

using namespace nvinfer1;

namespace onerec
{
namespace
{

class Creator final : public IPluginCreatorV3One
{
public:
    IPluginV3* createPlugin(char const* name, PluginFieldCollection const* fields, TensorRTPhase) noexcept override
    {
        return guarded<>(static_cast<IPluginV3*>(nullptr), [&] { return create(name == nullptr ? "" : name, *fields); });
    }

    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mFields;
    }

    char const* getPluginName() const noexcept override
    {
        return kPluginName;
    }

    char const* getPluginVersion() const noexcept override
    {
        return kPluginVersion;
    }

    char const* getPluginNamespace() const noexcept override
    {
        return kPluginNamespace;
    }

private:
    static IPluginV3* create(std::string const& name, PluginFieldCollection const& fields)
    {
        std::string_view bytes;
        for (int32_t i = 0; i < fields.nbFields; ++i)
        {
            PluginField const& field = fields.fields[i];
            if (std::strcmp(field.name, kProgramField) == 0 && field.data != nullptr && field.length > 0)
            {
                bytes = {static_cast<char const*>(field.data), static_cast<size_t>(field.length)};
            }
        }
        std::string error = "it has no field 'program'";
        std::shared_ptr<Carried const> carried = bytes.empty() ? nullptr : carry(bytes, error);
        if (carried == nullptr)
        {
            logError("node '" + name + "': " + error);
            return nullptr;
        }
        return new KernelProgram(std::move(carried), nullptr);
    }

    PluginField mField{kProgramField, nullptr, PluginFieldType::kCHAR, 0};
    PluginFieldCollection mFields{1, &mField};
};

} // namespace
} // namespace onerec

#define ONEREC_EXPORT extern "C" __attribute__((visibility("default")))

ONEREC_EXPORT void setLoggerFinder(ILoggerFinder* finder)
{
    onerec::useLoggerOf(finder);
}

ONEREC_EXPORT IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static onerec::Creator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

#if NV_TENSORRT_MAJOR < 11
ONEREC_EXPORT IPluginCreator* const* getPluginCreators(int32_t& count)
{
    count = 0; // of the interface before IPluginCreatorV3One
    return nullptr;
}
#endif
