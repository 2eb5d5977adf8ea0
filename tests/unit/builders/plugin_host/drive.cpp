// For tests: does with the compiled host what TensorRT does with a plugin, from the field to the launch. Usage: drive HOST PROGRAM ROWS...
// The first ROWS is the profile's largest; the node has one FP16 input [rows, 64].
#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace nvinfer1;

namespace
{

// An expression as text, such as "(rows+127)".
class Text final : public IDimensionExpr, public apiv::VDimensionExpr
{
public:
    explicit Text(std::string given)
        : text(std::move(given))
    {
        mImpl = this;
    }

    bool isConstant() const override
    {
        return false;
    }

    int64_t getConstantValue() const override
    {
        return 0;
    }

    bool isSizeTensor() const override
    {
        return false;
    }

    std::string text;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder
{
public:
    Builder()
    {
        mImpl = this;
    }

    IDimensionExpr const* constant(int64_t value) override
    {
        return make(std::to_string(value));
    }

    IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) override
    {
        static char const* const names[] = {"+", "*", " max ", " min ", "-", "==", "<", "/", "/^"};
        return make("(" + textOf(&first) + names[static_cast<int>(op)] + textOf(&second) + ")");
    }

    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override
    {
        return nullptr;
    }

    IDimensionExpr const* make(std::string text)
    {
        mMade.push_back(std::make_unique<Text>(std::move(text)));
        return mMade.back().get();
    }

    static std::string textOf(IDimensionExpr const* expression)
    {
        return static_cast<Text const*>(expression)->text;
    }

private:
    std::vector<std::unique_ptr<Text>> mMade;
};

class Logger final : public ILogger
{
    void log(Severity, char const* message) noexcept override
    {
        std::printf("error: %s\n", message);
    }
};

class Finder final : public ILoggerFinder
{
public:
    virtual ~Finder() = default;

    ILogger* findLogger() override
    {
        return &mLogger;
    }

private:
    Logger mLogger;
};

template <typename Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type)
{
    return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

PluginTensorDesc half(int64_t rows)
{
    PluginTensorDesc desc{};
    desc.dims = {2, {rows, 64}};
    desc.type = DataType::kHALF;
    desc.format = TensorFormat::kLINEAR;
    desc.scale = 1.0F;
    return desc;
}

bool describeNode(IPluginV3& plugin, int64_t mostRows)
{
    auto& build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    DataType type = DataType::kHALF;
    DataType output = DataType::kFLOAT;
    Builder builder;
    DimsExprs in{2, {builder.make("rows"), builder.make("64")}};
    DimsExprs out{};
    if (build.getNbOutputs() != 1 || build.getOutputDataTypes(&output, 1, &type, 1) != 0
        || build.getOutputShapes(&in, 1, nullptr, 0, &out, 1, builder) != 0)
    {
        return false;
    }
    std::printf("output type %d", static_cast<int>(output));
    for (int i = 0; i < out.nbDims; ++i)
    {
        std::printf(" %s", Builder::textOf(out.d[i]).c_str());
    }
    DynamicPluginTensorDesc tensors[2] = {{half(-1), {2, {1, 64}}, {2, {mostRows, 64}}, {2, {1, 64}}}, {half(-1), {}, {}, {}}};
    tensors[1].desc.type = output;
    bool supported = build.supportsFormatCombination(0, tensors, 1, 1) && build.supportsFormatCombination(1, tensors, 1, 1);
    tensors[0].desc.format = TensorFormat::kCHW32;
    supported = supported && !build.supportsFormatCombination(0, tensors, 1, 1);
    std::printf("\nconfigure %d supported %d workspace %zu\n", build.configurePlugin(tensors, 1, tensors + 1, 1), supported,
        build.getWorkspaceSize(tensors, 1, tensors + 1, 1));
    return true;
}

void execute(IPluginV3& attached, int64_t rows)
{
    auto& runtime = capability<IPluginV3OneRuntime>(attached, PluginCapabilityType::kRUNTIME);
    PluginTensorDesc const desc = half(rows);
    void const* inputs[] = {reinterpret_cast<void*>(0x1000)};
    void* outputs[] = {reinterpret_cast<void*>(0x2000)};
    std::printf("shape %d\n", runtime.onShapeChange(&desc, 1, &desc, 1));
    auto const stream = reinterpret_cast<cudaStream_t>(0x57);
    std::printf("enqueue %d\n", runtime.enqueue(&desc, &desc, inputs, outputs, reinterpret_cast<void*>(0x100000), stream));
}

IPluginV3* attach(IPluginV3& plugin)
{
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME).attachToContext(nullptr);
}

// Contexts come and go in several threads; what they load is one module.
void attachInThreads(IPluginV3& plugin)
{
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
    {
        threads.emplace_back([&plugin] {
            for (int round = 0; round < 50; ++round)
            {
                delete attach(plugin);
            }
        });
    }
    for (std::thread& thread : threads)
    {
        thread.join();
    }
}

} // namespace

int main(int count, char** words)
{
    void* const host = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    if (host == nullptr)
    {
        std::printf("error: %s\n", dlerror());
        return 1;
    }
    Finder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(host, "setLoggerFinder"))(&finder);
    int32_t creators = 0;
    auto* const list = reinterpret_cast<IPluginCreatorInterface* const* (*) (int32_t&)>(dlsym(host, "getCreators"))(creators);
    auto& creator = *static_cast<IPluginCreatorV3One*>(list[0]);
    std::printf("%s %s '%s' %s\n", creator.getPluginName(), creator.getPluginVersion(), creator.getPluginNamespace(),
        creator.getFieldNames()->fields[0].name);

    std::ifstream file(words[2], std::ios::binary);
    std::string const bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    PluginField const field{"program", bytes.data(), PluginFieldType::kCHAR, static_cast<int32_t>(bytes.size())};
    PluginFieldCollection const fields{1, &field};
    std::unique_ptr<IPluginV3> made(creator.createPlugin("step0.q", &fields, TensorRTPhase::kBUILD));
    if (made == nullptr || !describeNode(*made, std::atoll(words[3])))
    {
        return 1;
    }
    // Into a plan and out of it.
    PluginFieldCollection const* const kept = capability<IPluginV3OneRuntime>(*made, PluginCapabilityType::kRUNTIME).getFieldsToSerialize();
    std::unique_ptr<IPluginV3> plugin(creator.createPlugin("step0.q", kept, TensorRTPhase::kRUNTIME));
    made.reset();
    execute(*plugin, 1); // not attached
    std::unique_ptr<IPluginV3> const context(attach(*plugin));
    if (context == nullptr)
    {
        return 1;
    }
    attachInThreads(*plugin);
    plugin.reset();
    for (int i = 3; i < count; ++i)
    {
        execute(*context, std::atoll(words[i]));
    }
    return 0;
}
